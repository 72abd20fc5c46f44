from __future__ import annotations

import os
import stat
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.common.errors import CatalogError
from speccascade_local.models.catalog import packaged_file, read_file
from speccascade_local.models.catalog_edit import add_pair, entry_of, set_rule

FILE = """\
# mine, all mine
pairs:
  first:  # the one I use
    drafter: a.gguf
    rule: "opt:0.2"   # from a blog
    expert: b.gguf    # big

  second:
    expert: d.gguf
    drafter: c.gguf  # no rule yet

  flow: {drafter: e.gguf, expert: f.gguf}
  flow2: {drafter: e.gguf, rule: strict, expert: f.gguf}
# the end
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text(FILE)
    return path


def lines_changed(path):
    before, after = FILE.split("\n"), path.read_text().split("\n")
    return [line for line in after if line not in before], [line for line in before if line not in after]


@pytest.mark.parametrize(
    ("pair", "new", "old"),
    [
        ("first", ['    rule: "token_v3:0.3"  # 1.5 x'], ['    rule: "opt:0.2"   # from a blog']),
        ("second", ['    rule: "token_v3:0.3"  # 1.5 x'], []),
        ("flow", ['  flow: {drafter: e.gguf, expert: f.gguf, rule: "token_v3:0.3"}'], ["  flow: {drafter: e.gguf, expert: f.gguf}"]),
        (
            "flow2",
            ['  flow2: {drafter: e.gguf, rule: "token_v3:0.3", expert: f.gguf}'],
            ["  flow2: {drafter: e.gguf, rule: strict, expert: f.gguf}"],
        ),
    ],
)
def test_only_the_line_of_the_rule_changes(path, pair, new, old):
    set_rule(path, pair, "token_v3:0.3", comment="1.5 x")
    assert lines_changed(path) == (new, old)
    assert read_file(path)[pair].rule == "token_v3:0.3"


names = st.text("abc-_", min_size=1, max_size=6)
rules = st.dictionaries(names, st.sampled_from([None, "strict", "opt:0.2"]), min_size=1, max_size=4)


@given(rules, st.data(), st.sampled_from(["", "\n", "\n\n# end"]), st.sampled_from([False, None]))
def test_whatever_stands_in_a_file_nothing_else_changes(tmp_path_factory, pairs, data, end, style):
    path = tmp_path_factory.mktemp("edit") / "m.yaml"
    entries = {name: {"drafter": "a", "expert": "b", **({"rule": rule} if rule else {})} for name, rule in pairs.items()}
    text = yaml.safe_dump({"pairs": entries}, default_flow_style=style, sort_keys=False).rstrip("\n") + end
    path.write_text(text)
    chosen = data.draw(st.sampled_from(sorted(pairs)))
    set_rule(path, chosen, "chow:0.5")
    entries[chosen]["rule"] = "chow:0.5"
    assert yaml.safe_load(path.read_text()) == {"pairs": entries}


def test_a_new_pair_goes_to_the_end_of_a_file_or_begins_one(path, tmp_path):
    add_pair(path, "third", {"drafter": "bundled:drafter.gguf", "expert": "bundled:expert.gguf", "rule": "opt:0.2"}, comment="tuned")
    assert path.read_text().startswith(FILE.rstrip("\n"))
    assert read_file(path)["third"].rule == "opt:0.2"
    fresh = tmp_path / "deep" / "models.yaml"
    add_pair(fresh, "one", {"drafter": "a.gguf", "expert": "b.gguf"})
    assert list(read_file(fresh)) == ["one"]
    with pytest.raises(CatalogError, match="has a pair 'one' already"):
        add_pair(fresh, "one", {"drafter": "a.gguf", "expert": "b.gguf"})


@pytest.mark.slow
def test_every_packaged_pair_can_be_copied_whole_with_another_rule(tmp_path):
    mine = tmp_path / "models.yaml"
    for name, pair in read_file(packaged_file()).items():
        entry = {key: value for key, value in entry_of(packaged_file(), name).items() if key != "rule"}
        add_pair(mine, name, {**entry, "rule": "opt:0.2"}, comment="tuned")
        copy = read_file(mine)[name]
        assert copy.rule == "opt:0.2"
        assert replace(copy, rule=pair.rule, source=pair.source, models={}) == replace(pair, models={})
        assert dict(copy.models) == dict(pair.models)


@pytest.mark.slow
@pytest.mark.parametrize("name", read_file(packaged_file()))
def test_the_rule_of_a_packaged_pair_can_be_changed_in_its_place(tmp_path, name):
    mine = tmp_path / "models.yaml"
    mine.write_text(packaged_file().read_text(encoding="utf-8"), encoding="utf-8")
    set_rule(mine, name, "opt:0.2")
    before, after = packaged_file().read_text(encoding="utf-8").splitlines(), mine.read_text(encoding="utf-8").splitlines()
    assert len(before) == len(after)
    assert [new for old, new in zip(before, after) if old != new] == ['    rule: "opt:0.2"']


@pytest.mark.parametrize(
    "models",
    [
        "drafter: d\n    expert:\n      file: e\n      size: 3  # bytes",
        "drafter: d\n    expert:\n      file: e\n      lora:\n        - l\n        - file: k\n          scale: 2",
        "drafter: d\n    expert: {file: e, size: 3}",
        "drafter: d\n    expert: e\n    rpc:\n      - a:1\n      - b:2",
        "drafter: d\n    expert: e\n    rpc: [a:1,\n      b:2]",
    ],
)
@pytest.mark.parametrize(
    "behind", ["", "\n", "\n\n# a comment\n", "\n  q: {drafter: d, expert: e}\n", "\n\n  # next\n  q:\n    drafter: d\n    expert: e\n"]
)
def test_a_rule_can_be_added_after_a_value_of_any_kind(tmp_path, models, behind):
    mine = tmp_path / "models.yaml"
    mine.write_text(f"pairs:\n  p:\n    {models}{behind}")
    before = yaml.safe_load(mine.read_text())
    set_rule(mine, "p", "opt:0.2")
    before["pairs"]["p"]["rule"] = "opt:0.2"
    assert yaml.safe_load(mine.read_text()) == before


def test_what_cannot_be_changed_is_refused_and_left_alone(path, tmp_path, monkeypatch):
    with pytest.raises(CatalogError, match="has no pair 'none'"):
        set_rule(path, "none", "strict")
    shared = tmp_path / "shared.yaml"
    shared.write_text("pairs:\n  a: &one {drafter: x, expert: y, rule: strict}\n  b: *one\n")
    with pytest.raises(CatalogError, match="cannot be changed without touching more; write it yourself"):
        set_rule(shared, "b", "opt:0.2")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CatalogError, match=r"cannot be written \(Permission denied\)"):
        set_rule(path, "first", "strict")
    assert path.read_text() == FILE


def test_the_file_keeps_its_permissions(path):
    path.chmod(0o640)
    set_rule(path, "first", "strict")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in path.parent.iterdir()] == ["models.yaml"]


def test_a_file_behind_a_link_is_changed_and_the_link_stays(tmp_path):
    real, link = tmp_path / "dotfiles.yaml", tmp_path / "models.yaml"
    real.write_text("pairs: {mine: {drafter: a.gguf, expert: b.gguf}}\n")
    real.chmod(0o640)
    link.symlink_to(real)
    set_rule(link, "mine", "strict")
    assert link.is_symlink()
    assert "strict" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
