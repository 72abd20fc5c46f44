"""models.yaml: where it is looked for, which definition wins, and how errors are reported."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speccascade_local.common.errors import CatalogError
from speccascade_local.common.files import PACKAGE
from speccascade_local.models import catalog
from speccascade_local.rules import registry

PAIR = "  {name}:\n    drafter: d.gguf\n    expert: e.gguf\n    description: from {origin}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def pairs(*names: str, origin: str = "here") -> str:
    return "pairs:\n" + "".join(PAIR.format(name=name, origin=origin) for name in names)


@pytest.fixture(autouse=True)
def user_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder and an empty configuration folder, so that no file of this machine takes part."""
    monkeypatch.delenv("SPECCASCADE_MODELS", raising=False)
    folder = tmp_path / "config"
    monkeypatch.setattr(catalog.platformdirs, "user_config_path", lambda name: folder / name)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return folder / "speccascade"


def refused(path: Path, text: str) -> str:
    with pytest.raises(CatalogError) as error:
        catalog.read_file(write(path, text))
    return str(error.value)


# --------------------------------------------------------------------------- the search


def test_files_are_searched_in_the_documented_order(tmp_path: Path, user_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, by_env = write(tmp_path / "named.yaml", pairs("p")), write(tmp_path / "env.yaml", pairs("p"))
    here, user = write(Path("models.yaml"), pairs("p")), write(user_config / "models.yaml", pairs("p"))
    monkeypatch.setenv("SPECCASCADE_MODELS", str(by_env))
    found = catalog.search_path(named)
    assert found[:4] == [named, by_env, here, user]
    assert catalog.BUNDLED_PAIR in catalog.read_file(found[4])
    assert len(found) == 5


def test_the_first_file_that_defines_a_pair_wins_and_the_others_still_add_theirs(
    tmp_path: Path, user_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "b", "c", "d", catalog.BUNDLED_PAIR]
    origins = {
        "--models": tmp_path / "named.yaml",
        "env": tmp_path / "env.yaml",
        "here": Path("models.yaml"),
        "user": user_config / "models.yaml",
    }
    for position, (origin, path) in enumerate(origins.items()):
        write(path, pairs(*names[position:], origin=origin))
    monkeypatch.setenv("SPECCASCADE_MODELS", str(origins["env"]))
    descriptions = {name: catalog.find(name, origins["--models"]).description for name in names}
    assert descriptions == {"a": "from --models", "b": "from --models", "c": "from --models", "d": "from --models", "demo": "from --models"}
    descriptions = {name: catalog.find(name).description for name in names[1:]}
    assert descriptions == {"b": "from env", "c": "from env", "d": "from env", "demo": "from env"}
    monkeypatch.delenv("SPECCASCADE_MODELS")
    assert {name: catalog.find(name).description for name in names[2:]} == {"c": "from here", "d": "from here", "demo": "from here"}
    origins["here"].unlink()
    assert {name: catalog.find(name).description for name in names[3:]} == {"d": "from user", "demo": "from user"}
    origins["user"].unlink()
    assert catalog.known_pairs().keys() == catalog.read_file(catalog.packaged_file()).keys()


def test_a_file_named_twice_is_read_once_where_it_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = write(Path("models.yaml"), pairs("p"))
    monkeypatch.setenv("SPECCASCADE_MODELS", str(here.resolve()))
    assert [path.resolve() for path in catalog.search_path(here)].count(here.resolve()) == 1
    assert catalog.search_path(here)[0] == here


def test_only_named_files_must_exist(tmp_path: Path) -> None:
    assert len(catalog.search_path()) == 1


def test_a_missing_file_is_reported_with_who_named_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CatalogError, match=r"absent\.yaml: no such file \(named by --models\)"):
        catalog.search_path(tmp_path / "absent.yaml")
    monkeypatch.setenv("SPECCASCADE_MODELS", str(tmp_path))
    with pytest.raises(CatalogError, match=r"a folder \(named by \$SPECCASCADE_MODELS\)"):
        catalog.known_pairs()


def test_an_empty_environment_variable_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECCASCADE_MODELS", "")
    assert catalog.BUNDLED_PAIR in catalog.known_pairs()


@pytest.mark.parametrize("named", ["~no-such-user-here/models.yaml", "x" * 300])
def test_a_path_that_no_file_can_have_is_a_catalog_error(named: str) -> None:
    with pytest.raises(CatalogError):
        catalog.search_path(named)


def test_home_is_understood_in_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine.yaml", pairs("p"))
    assert catalog.find("p", "~/mine.yaml").source == tmp_path / "mine.yaml"


# --------------------------------------------------------------------------- one pair


def test_a_pair_is_read_with_all_that_it_says(tmp_path: Path) -> None:
    path = write(tmp_path / "m.yaml", "pairs:\n  p: {description: two, drafter: d.gguf, expert: e.gguf, rule: 'token_v3:0.3'}\n")
    (pair,) = catalog.read_file(path).values()
    models = {role: catalog.ModelSource(tmp_path / name, name) for role, name in (("drafter", "d.gguf"), ("expert", "e.gguf"))}
    assert pair == catalog.Pair("p", tmp_path / "d.gguf", tmp_path / "e.gguf", "token_v3:0.3", "two", path, models=models)


def test_description_and_rule_may_be_left_out(tmp_path: Path) -> None:
    pair = catalog.read_file(write(tmp_path / "m.yaml", "pairs: {p: {drafter: d, expert: e}}"))["p"]
    assert (pair.description, pair.rule) == ("", None)


def test_a_file_may_hold_no_pairs(tmp_path: Path) -> None:
    assert catalog.read_file(write(tmp_path / "m.yaml", "pairs: {}")) == {}


def test_paths_start_at_the_folder_of_the_file_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = write(
        tmp_path / "deep" / "m.yaml",
        f"pairs:\n  p: {{drafter: ../d.gguf, expert: sub/e.gguf}}\n  q: {{drafter: ~/d.gguf, expert: {tmp_path}/abs.gguf}}\n",
    )
    read = catalog.read_file(path)
    assert read["p"].drafter.resolve() == tmp_path / "d.gguf"
    assert read["p"].expert == tmp_path / "deep" / "sub" / "e.gguf"
    assert read["q"].drafter == tmp_path / "home" / "d.gguf"
    assert read["q"].expert == tmp_path / "abs.gguf"


def test_the_bundled_pair_is_found_from_anywhere_and_is_complete() -> None:
    pair = catalog.find(catalog.BUNDLED_PAIR)
    assert pair.drafter == PACKAGE / "demo" / "drafter.gguf"
    assert pair.missing == []
    assert registry.parse(pair.rule)


def test_bundled_files_may_be_named_in_any_catalog(tmp_path: Path) -> None:
    pair = catalog.read_file(write(tmp_path / "m.yaml", "pairs: {p: {drafter: 'bundled:drafter.gguf', expert: e.gguf}}"))["p"]
    assert pair.drafter == catalog.find(catalog.BUNDLED_PAIR).drafter


def test_exactly_the_files_that_are_not_there_are_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.yaml", pairs("p"))
    assert catalog.read_file(path)["p"].missing == [tmp_path / "d.gguf", tmp_path / "e.gguf"]
    write(tmp_path / "d.gguf", "")
    assert catalog.read_file(path)["p"].missing == [tmp_path / "e.gguf"]
    write(tmp_path / "e.gguf", "")
    assert catalog.read_file(path)["p"].missing == []


def test_an_unknown_pair_is_reported_with_the_nearest_names(tmp_path: Path) -> None:
    path = write(tmp_path / "m.yaml", pairs("qwen-small", "llama"))
    with pytest.raises(CatalogError, match=r"unknown pair 'qwen-smal'; did you mean 'qwen-small'\? \('speccascade models' lists all "):
        catalog.find("qwen-smal", path)
    with pytest.raises(CatalogError) as error:
        catalog.find("zzz", path)
    assert "did you mean" not in str(error.value)


def test_a_rule_is_kept_in_its_full_spelling(tmp_path: Path) -> None:
    for text in ("strict", "never", "token_v3:0.30", "opt:0.2"):
        pair = catalog.read_file(write(tmp_path / "m.yaml", f"pairs: {{p: {{drafter: d, expert: e, rule: '{text}'}}}}"))["p"]
        assert pair.rule == str(registry.parse(text))


# --------------------------------------------------------------------------- what is wrong in a file


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "the whole file: this must be a mapping"),
        ("# nothing but a comment\n", 1, "the whole file: "),
        ("- a list\n", 1, "the whole file: "),
        ("just text\n", 1, "the whole file: "),
        ("pair: {}\n", 1, "pairs: this key is missing"),
        ("# one\n\npairs:\n", 3, "pairs: this must be a mapping"),
        ("pairs:\n  - p\n", 1, "pairs: this must be a mapping"),
        ("pairs:\n  p: d.gguf\n", 2, "pairs.p: this must be a mapping"),
        ("pairs:\n  p:\n    drafter: d\n", 2, "pairs.p.expert: this key is missing"),
        (
            "pairs:\n  p:\n    drafter: d\n    expert: 3\n",
            4,
            "pairs.p.expert: this must be a file's name, or a mapping with the key file; seen: 3",
        ),
        ("pairs:\n  p:\n    drafter: ''\n    expert: e\n", 3, "pairs.p.drafter: this is empty; name a file; seen: ''"),
        (
            "pairs:\n  p:\n    expert: e\n    drafter: !!binary aGk=\n",
            4,
            "pairs.p.drafter: this must be a file's name, or a mapping with the key file; seen: b'hi'",
        ),
        (
            "pairs:\n  p:\n    expert: e\n    drafter: [d]\n",
            4,
            "pairs.p.drafter: this must be a file's name, or a mapping with the key file; seen: ['d']",
        ),
        ("pairs:\n  p:\n    expert: e\n    drafter: d\n    description: 3.5\n", 5, "pairs.p.description: input should be a valid string"),
        ("pairs:\n  p:\n    expert: e\n    drafter: d\n    rul: strict\n", 5, "pairs.p.rul: this key is not known; seen: 'strict'"),
        ("pairs: {}\nversion: 2\n", 2, "version: this key is not known; seen: 2"),
        ("pairs:\n  p: {drafter: d, expert: e}\n  q:\n    drafter: d\n    expert: true\n", 5, "pairs.q.expert: "),
        ("pairs:\n  p:\n    drafter: d\n    expert: e\n    rule: often\n", 5, "pairs.p.rule: "),
        ("pairs:\n  p:\n    drafter: d\n    expert: e\n    rule: token_v3:7\n", 5, "pairs.p.rule: "),
        ("pairs:\n  p:\n    drafter: d\n    expert: e\n    rule: 5\n", 5, "pairs.p.rule: input should be a valid string; seen: 5"),
        ("pairs:\n  7: {drafter: d, expert: e}\n", 2, "pairs.7"),
    ],
)
def test_a_wrong_entry_is_reported_with_file_line_and_key(tmp_path: Path, text: str, line: int, said: str) -> None:
    message = refused(tmp_path / "m.yaml", text)
    assert message.startswith(f"{tmp_path / 'm.yaml'}, line {line}: {said}")


def test_a_rule_that_is_refused_is_refused_in_the_words_of_the_rules(tmp_path: Path) -> None:
    message = refused(tmp_path / "m.yaml", "pairs: {p: {drafter: d, expert: e, rule: often}}")
    assert "token_v3" in message
    assert message.endswith("seen: 'often'")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("pairs: {}\npairs: {}\n", 2, "pairs"),
        (pairs("p") + PAIR.format(name="p", origin="there"), 6, "p"),
        ("pairs:\n  p:\n    drafter: a\n    expert: e\n    drafter: b\n", 5, "drafter"),
        ("other:\n  - {x: 1}\n  - {y: 1, y: 1}\npairs: {}\n", 3, "y"),
    ],
)
def test_a_key_that_stands_twice_is_refused_rather_than_overruled(tmp_path: Path, text: str, line: int, key: str) -> None:
    message = refused(tmp_path / "m.yaml", text)
    assert message == f"{tmp_path / 'm.yaml'}, line {line}: the key {key!r} is used twice; keep one"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pairs:\n  p: {drafter: d\n  q: 3\n", 3),
        ("pairs:\n\tp: 1\n", 2),
        ("a: b: c\n", 1),
        ("pairs: &x [*y]\n", 1),
        ("x: !!python/object:os.x {}\n", 1),
    ],
)
def test_broken_yaml_is_reported_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    assert refused(tmp_path / "m.yaml", text).startswith(f"{tmp_path / 'm.yaml'}, line {line}: not valid YAML: ")


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    assert "not valid YAML" in refused(tmp_path / "m.yaml", "pairs: !!python/object/apply:os.system ['true']\n")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes("pairs: {é: {drafter: d, expert: e}}".encode("latin-1"))
    with pytest.raises(CatalogError, match=r"m\.yaml: not UTF-8 text"):
        catalog.read_file(path)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + pairs("p").replace("\n", "\r\n").encode())
    assert catalog.read_file(path).keys() == {"p"}


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        catalog.read_file(tmp_path)


def test_one_broken_file_on_the_way_is_reported_even_if_a_later_one_has_the_pair(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.yaml", "pairs: 3\n")
    with pytest.raises(CatalogError, match=r"broken\.yaml, line 1"):
        catalog.find(catalog.BUNDLED_PAIR, broken)


@pytest.mark.parametrize(
    "text",
    [
        "pairs:\n  p: {drafter: d, expert: e, description: 2024-02-30}\n",
        "pairs: 0x_\n",
        "pairs: &again {p: *again}\n",
        "? [a, b]\n: c\n",
        "pairs: \x07\n",
    ],
    ids=["a date that is none", "a number that is none", "a mapping that holds itself", "a key that is a list", "a bell"],
)
def test_what_yaml_or_the_system_trip_over_is_a_catalog_error_too(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path / "m.yaml", text).startswith(str(tmp_path / "m.yaml"))


@pytest.mark.parametrize("name", ["x" * 300, '"nul\\0"'])
def test_a_path_that_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    pair = catalog.read_file(write(tmp_path / "m.yaml", f"pairs: {{p: {{drafter: {name}, expert: e}}}}"))["p"]
    assert pair.missing == [pair.drafter, pair.expert]


def laughs(merged: bool) -> str:
    """Ten lines of aliases of aliases, which stand for 9^10 values, or for as many merged keys."""
    lines = ["a0: &a0 {x: 1, y: 2}" if merged else "a0: &a0 [lol, lol]"]
    for number in range(1, 11):
        inside = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {{<<: [{inside}]}}" if merged else f"a{number}: &a{number} [{inside}]")
    return "\n".join([*lines, "pairs: *a10\n"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(merged=False), "more than 20000 values with aliases expanded"),
        (laughs(merged=True), "more than 20000 values with aliases expanded"),
        (pairs(*(f"p{number}" for number in range(100_000))), "larger than 1 MiB"),
        (pairs(*(f"p{number}" for number in range(5_000))), "more than 20000 values"),
        ("pairs: " + "[" * 100_000, "more than 32 nested levels"),
        ("pairs:\n" + "".join(f"{'  ' * level}a:\n" for level in range(1, 900)), "more than 32 nested levels"),
        ("- " * 3000 + "a\n", "more than 32 nested levels"),
        (f"pairs: {'1' * 500_000}\n", "a text of 500000 characters"),
        (f"pairs: {'1:' * 5_000}1\n", "mapping"),
        (f"pairs: 0x{'f' * 16_000}\n", "mapping"),
        (f"pairs: {{p: {{drafter: d, expert: e, rule: {'a' * 16_000}}}}}\n", "characters; at most 10000"),
        (f"pairs: {{p: [{'x, ' * 15_000}]}}\n", "mapping"),
    ],
    ids=lambda text: f"{text[:20]!r}",
)
def test_a_file_that_stands_for_more_than_anyone_writes_is_refused_in_no_time_and_few_words(tmp_path: Path, text: str, said: str) -> None:
    begun = time.monotonic()
    message = refused(tmp_path / "m.yaml", text)
    assert said in message
    assert len(message) < 500 + len(str(tmp_path))
    assert time.monotonic() - begun < 15


def test_aliases_and_merged_keys_that_anyone_writes_are_read(tmp_path: Path) -> None:
    text = "pairs:\n  a: &a {drafter: d, expert: &e e, rule: strict}\n  b: {<<: *a, expert: *e, rule: never}\n  c: *a\n"
    found = catalog.read_file(write(tmp_path / "m.yaml", text))
    assert [pair.rule for pair in found.values()] == ["strict", "never", "strict"]
    assert "line 3: pairs.b.rule" in refused(tmp_path / "m.yaml", text.replace("never", "often"))


words = ["pairs", "p", "drafter", "expert", "rule", "strict", ": ", "\n", "  ", "    ", "- ", "{", "}", "[", "]", ",", "'", '"', "&a", "*a"]
scraps = st.lists(st.sampled_from(words), max_size=20).map("".join)


@given(scraps | st.text(max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_text_at_all_is_either_read_or_refused_as_a_catalog_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(CatalogError):
        assert all(pair.source == path for pair in catalog.read_file(path).values())
