"""Each claim of the documents has its evidence, and the check of the claims sees each kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from claims import PAGE, Claim, faults, pages, read_claims, table, unlisted
from statements import statements

KEPT = "It keeps 95.5 % of all drafts."
SAID = f"# Title 7\n\n{KEPT} It is quick. ([Someone](https://a.example/1) saw 3 % of it.)\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one page, one test and two results."""
    (tmp_path / "README.md").write_text(SAID, encoding="utf-8")
    for folder in ("docs", "tests", "scripts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_it_is_kept(): ...\n\n\ndef helper(): ...\n", encoding="utf-8")
    (tmp_path / "docs" / "result.txt").write_text("arm   kept\nours  95.5\n", encoding="utf-8")
    (tmp_path / "docs" / "result.json").write_text('{"arms": [{"name": "a"}, {"name": "b", "kept": 0.9547}], "n": "4"}', encoding="utf-8")
    (tmp_path / "scripts" / "measure.py").write_text('parser.add_argument("--minutes")\n', encoding="utf-8")
    return tmp_path


def faults_with(root: Path, *, says: str | tuple[str, ...] = KEPT, **evidence: object) -> list[str]:
    """Return what is wrong with one claim, where the other sentence is exempt."""
    phrases = (says,) if isinstance(says, str) else says
    other = Claim("README.md", ("saw 3 % of it",), {"exempt": "example"})
    return list(faults([Claim("README.md", phrases, evidence), other], root))


# --------------------------------------------------------------------------- this repository


def test_every_claim_has_its_evidence_and_every_sentence_its_claim():
    found = list(faults(read_claims()))
    assert found == [], "run: python scripts/docs/claims.py"


def test_the_table_is_the_current_one():
    assert f"<!-- claims -->\n{table(read_claims())}<!-- /claims -->" in PAGE.read_text(encoding="utf-8"), (
        "run: python scripts/docs/claims.py"
    )


def test_claims_stand_under_pages_that_are_looked_at():
    assert {claim.page for claim in read_claims()} <= set(pages())


# --------------------------------------------------------------------------- what is a claim


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("It is never slower.", ["never"]),
        ("Every answer, always, exactly the same: only that, everything.", ["Every", "always", "exactly", "same", "only", "everything"]),
        ("It takes 2.5 s, 1,024 bytes and −3 %.", ["2.5", "1,024", "−3"]),
        ("Twenty pairs, two models, half a context.", ["Twenty", "half"]),
        ("The 128th call.", ["128th"]),
        ("At temperature 0 and 1, and T = 1.", []),
        ("Since 2024, by 2405.19261, with Python 3.10 and llama.cpp 0.3.36.", []),
        ("`--never 5` and Q8_0 and Qwen2.5-0.5B.", []),
    ],
)
def test_what_calls_for_evidence(text, seen):
    (one,) = statements(text)
    assert [one.text[start:end] for start, end in one.triggers()] == seen


def test_sentences_and_rows_are_separated_with_their_lines_and_links():
    page = "# Never 5\n\nOne *thing* only.\nAnd `x` is [that](u.md)\n([1](v.md)). Last\n\n```\nnever\n```\n\n"
    rows = "| never |  |\n|---|---|\n| a | **b** |\n"
    found = list(statements(page + rows + "<!-- made -->\nnever\n<!-- /made -->\n- item\n"))
    assert [(each.line, each.text) for each in found] == [
        (3, "One thing only."),
        (4, "And `x` is that ()."),
        (5, "Last"),
        (13, "a | b"),
        (17, "item"),
    ]
    assert found[1].links == ("u.md", "v.md")


# --------------------------------------------------------------------------- what is wrong


def test_a_claim_with_evidence_has_no_fault(root):
    assert faults_with(root, test="tests/test_x.py::test_it_is_kept[3-a]") == []
    assert faults_with(root, result={"docs/result.txt": ["ours 95.5"]}) == []
    assert faults_with(root, result={"docs/result.json": {"arms/name=b/kept": "95.5 %", "arms/1/kept": "95.5 %"}}) == []
    assert faults_with(root, command=["python scripts/measure.py --minutes 30", "speccascade bench demo --quick"]) == []
    assert faults_with(root, says=(KEPT, "saw 3 % of it"), source="https://a.example") == [
        f"README.md:3: {KEPT}\n  its evidence in scripts/docs/claims.yaml: the sentence does not cite https://a.example"
    ]
    assert faults_with(root, exempt="definition") == []


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ({"test": "tests/test_y.py::test_it_is_kept"}, "no file tests/test_y.py"),
        ({"test": "tests/test_x.py::test_it_is_lost"}, "tests/test_x.py has no test 'test_it_is_lost'"),
        ({"test": ["tests/test_x.py::test_it_is_kept", "tests/test_x.py::helper"]}, "has no test 'helper'"),
        ({"result": {"docs/none.txt": ["95.5"]}}, "no file docs/none.txt"),
        ({"result": {"docs/result.txt": "ours 95.6"}}, "docs/result.txt does not say 'ours 95.6'"),
        ({"result": {"docs/result.json": {"arms/1/kept": "95.6 %"}}}, "the claim does not say '95.6 %'"),
        ({"result": {"docs/result.json": {"arms/1/kept": "95.5"}}}, "kept is 0.9547, which is not 95.5"),
        ({"result": {"docs/result.json": {"arms/name=c/kept": "95.5 %"}}}, "no number at docs/result.json, arms/name=c/kept"),
        ({"result": {"docs/result.json": {"n": "95.5 %"}}}, "no number at docs/result.json, n"),
        ({"value": {"speccascade_local.nothing.MOST": "95.5"}}, "no speccascade_local.nothing.MOST"),
        ({"value": {"speccascade_local.llama.batch.BATCH_TOKENS": "95.5"}}, "BATCH_TOKENS is 512, which is not 95.5"),
        ({"command": "python scripts/none.py"}, "no command 'python scripts/none.py'"),
        ({"command": "python scripts/measure.py --hours 1"}, "no option --hours"),
        ({"command": "speccascade guess"}, "no command 'speccascade guess'"),
        ({"command": "speccascade bench --nothing"}, "no option --nothing"),
        ({"source": "https://b.example"}, "the sentence does not cite https://b.example"),
        ({"exempt": "obvious"}, "'obvious' is no reason"),
    ],
    ids=str,
)
def test_missing_evidence_is_reported_with_page_and_line(root, evidence, said):
    (fault,) = faults_with(root, **evidence)
    assert fault.startswith(f"README.md:3: {KEPT}\n")
    assert said in fault


def test_a_sentence_in_no_claim_is_reported_with_lines_that_add_it(root):
    (fault,) = faults([Claim("README.md", (KEPT,), {"exempt": "example"})], root)
    assert fault.startswith("README.md:3: in no claim: (Someone saw 3 % of it.)\n")
    entry = yaml.safe_load(fault[fault.index("  - says") :])
    assert entry == [{"says": "(Someone saw 3 % of it.)", "test": "tests/test_....py::test_..."}]


def test_a_changed_sentence_is_reported_with_its_earlier_evidence(root):
    (root / "README.md").write_text(SAID.replace("95.5", "96"), encoding="utf-8")
    stale, new = faults_with(root, exempt="example")
    assert stale.startswith(f"README.md: no longer says: {KEPT}\n")
    assert new.startswith("README.md:3: in no claim: It keeps 96 % of all drafts.")
    assert f"  # was: {KEPT}\n" in new
    assert yaml.safe_load(new[new.index("  - says") :]) == [{"says": "It keeps 96 % of all drafts.", "exempt": "example"}]


def test_each_number_must_stand_in_the_words_that_are_quoted(root):
    (root / "README.md").write_text("It keeps 5 of 7 drafts, always.\n", encoding="utf-8")
    claims = [Claim("README.md", ("It keeps 5 of",), {"exempt": "example"})]
    assert len(list(unlisted("README.md", claims, root))) == 1
    assert list(unlisted("README.md", [*claims, Claim("README.md", ("7 drafts, always",), {"exempt": "example"})], root)) == []


def test_words_that_hide_too_much_or_nothing_are_refused(root):
    assert any("'95.5 %' has fewer than 3 words" in fault for fault in faults_with(root, says=(KEPT, "95.5 %"), exempt="example"))
    assert any(
        "'It is quick.' is exempt and has neither" in fault for fault in faults_with(root, says=(KEPT, "It is quick."), exempt="example")
    )


def test_a_missing_page_is_reported(root):
    claims = [
        Claim("docs/none.md", ("a b c 5",), {"exempt": "example"}),
        Claim("README.md", (KEPT, "saw 3 % of it"), {"exempt": "example"}),
    ]
    assert list(faults(claims, root)) == ["claims.yaml: no page docs/none.md; the pages are README.md and docs/*.md"]


@pytest.mark.parametrize("entry", ["- says: x", "- test: y", "- {says: x, tests: y}"])
def test_an_entry_without_words_or_evidence_is_refused(tmp_path, entry):
    path = tmp_path / "claims.yaml"
    path.write_text(f"README.md:\n  {entry}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="needs 'says' and one or more of test, result"):
        read_claims(path)
