"""What ships of the catalog: the pairs, the schema for editors, and what docs/models.md says of both."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from models import COMMANDS, PAGE, ROOT, SCHEMA, schema, table, transcript

from speccascade_local.models import catalog
from speccascade_local.models.catalog_schema import CatalogFile
from speccascade_local.rules import registry

TEXT = PAGE.read_text(encoding="utf-8")
PAIRS = catalog.read_file(catalog.packaged_file())
OF_THE_HUB = {name: pair for name, pair in PAIRS.items() if name != catalog.BUNDLED_PAIR}
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
YAML = yaml.safe_load(catalog.packaged_file().read_text(encoding="utf-8"))


def section(name: str) -> str:
    return TEXT.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


# --------------------------------------------------------------------------- the pairs


def test_there_are_pairs_of_many_families():
    assert len(OF_THE_HUB) >= 12
    assert len({pair.family for pair in OF_THE_HUB.values()}) >= 5


def test_documents_say_how_many_pairs_and_families_there_are():
    words = {20: "twenty", 10: "ten"}
    pairs, families = len(OF_THE_HUB), len({pair.family for pair in OF_THE_HUB.values()})
    assert f"{words[pairs]} real pairs of {words[families]} families" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"lists {words[pairs]} pairs by name" in (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_a_pair_says_all_that_is_needed_to_fetch_and_judge_it(name):
    pair = OF_THE_HUB[name]
    assert pair.family
    assert pair.description
    assert pair.seen_in
    assert "https://" in pair.seen_in
    assert pair.models.keys() == {"drafter", "expert"}
    assert all(model.hub and model.size and model.licence and not model.trouble for model in pair.models.values())
    assert pair.models["expert"].size > 2.5 * pair.models["drafter"].size


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_a_pair_that_was_not_measured_has_a_rule_that_loses_nothing(name):
    assert registry.parse(OF_THE_HUB[name].rule) == registry.parse("strict")


def test_a_file_has_one_size_and_one_licence_wherever_it_is_named():
    facts_of_files: dict[tuple[str | None, str], set[tuple[int | None, str | None]]] = {}
    for pair in OF_THE_HUB.values():
        for model in pair.models.values():
            facts_of_files.setdefault((model.hub, model.file), set()).add((model.size, model.licence))
    assert all(len(facts) == 1 for facts in facts_of_files.values())


# --------------------------------------------------------------------------- the schema


def test_the_committed_schema_is_the_one_that_the_code_makes():
    assert SCHEMA.read_text(encoding="utf-8") == schema()


def test_the_packaged_file_and_the_examples_fit_the_schema():
    VALIDATOR.validate(YAML)
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    VALIDATOR.validate(yaml.safe_load(example))
    CatalogFile.model_validate(yaml.safe_load(example))


VALUES = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(["", "x", "auto", "q8_0", "a/b", "../x", "ngram"])
FILES = st.dictionaries(st.sampled_from(["file", "hub", "revision", "scale", "sizes"]), VALUES, max_size=4) | VALUES
MODELS = VALUES | st.dictionaries(
    st.sampled_from(["file", "hub", "revision", "size", "licence", "gpu_layers", "device", "cache_type", "lora", "sizes"]),
    VALUES | FILES | st.lists(FILES, max_size=2),
    max_size=5,
)
ENTRIES = st.fixed_dictionaries(
    {"drafter": MODELS, "expert": MODELS},
    optional={name: MODELS | st.lists(VALUES, max_size=2) for name in ("rule", "family", "context", "source", "rpc", "description", "rul")},
)


@given(ENTRIES)
def test_what_the_code_takes_the_schema_takes(entry):
    """The other way round need not hold: an editor does not know which keys go together, and which rules there are."""
    data = {"pairs": {"p": entry}}
    try:
        CatalogFile.model_validate(data)
    except ValueError:
        return
    VALIDATOR.validate(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"pairs": 3},
        {"pairs": {}, "version": 2},
        {"pairs": {"p": {"drafter": "d"}}},
        {"pairs": {"p": {"drafter": "d", "expert": ""}}},
        {"pairs": {"p": {"drafter": "d", "expert": 3}}},
        {"pairs": {"p": {"drafter": "d", "expert": "e", "rul": "strict"}}},
        {"pairs": {"p": {"drafter": "d", "expert": {"hub": "a/b"}}}},
        {"pairs": {"p": {"drafter": "d", "expert": {"file": "e", "sizes": 3}}}},
        {"pairs": {"p": {"drafter": "d", "expert": {"file": "e", "size": 0}}}},
        {"pairs": {"p": {"drafter": "d", "expert": {"file": "e", "hub": "nothing"}}}},
        {"pairs": {"p": {"drafter": "d", "expert": {"file": "e", "cache_type": "q9"}}}},
        {"pairs": {"p": {"drafter": "d", "expert": {"file": "e", "gpu_layers": "all"}}}},
        {"pairs": {"p": {"drafter": "d", "expert": {"file": "e", "lora": [3]}}}},
        {"pairs": {"p": {"drafter": "d", "expert": {"file": "e", "lora": {"file": "l", "skale": 1}}}}},
        {"pairs": {"p": {"drafter": "d", "expert": "e", "context": 0}}},
        {"pairs": {"p": {"drafter": "d", "expert": "e", "rpc": "host:1"}}},
    ],
)
def test_an_editor_sees_what_is_wrong(wrong):
    assert not VALIDATOR.is_valid(wrong)
    with pytest.raises(ValueError, match="validation error"):
        CatalogFile.model_validate(wrong)


# --------------------------------------------------------------------------- the page


def test_the_table_is_what_the_packaged_file_says():
    assert section("catalog") == table()
    assert all(f"| `{name}` |" in table() for name in OF_THE_HUB)


@pytest.mark.slow
def test_the_transcript_is_what_the_commands_say(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert [line for line in section("pull").splitlines() if line.startswith("$ spec")] == [f"$ speccascade {each}" for each in COMMANDS]
    committed = section("pull").splitlines()
    said_now = transcript([COMMANDS[0], *(each for each in COMMANDS if each.startswith("pull"))]).splitlines()
    assert [line for line in said_now if line not in committed] == []
    assert any("Trying to resume download" in line for line in said_now)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
