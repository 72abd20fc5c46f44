"""What docs/benchmarking.md says about committed results is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from speccascade_local.rules import registry

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
PAGE = (DOCS / "benchmarking.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())
GRADES = json.loads((RESULTS / "demo_pair.json").read_text(encoding="utf-8"))["arms"]


def test_the_table_of_accuracies_is_the_committed_result_file():
    arms = {"drafter alone": "drafter", "expert alone": "expert", "sequential cascade": "sequential"}
    table = re.findall(r"^\| ([a-z ]+?)(?: \(`(.+)`\))? \| ([\d.]+) % \| ([\d.–]+) \|$", PAGE, re.MULTILINE)
    assert len(table) == 6
    assert f"on the {GRADES['expert']['all']['n']} questions" in WORDS
    for name, rule, accuracy, per_call in table:
        graded = GRADES[rule or arms[name]]["all"]
        assert accuracy == f"{100 * graded['accuracy']:.1f}", name
        assert per_call == (f"{graded['tokens_per_expert_call']:.2f}" if graded["tokens_per_expert_call"] else "–"), name


@pytest.mark.parametrize("result", ["curves_scaled", "curves_demo"])
def test_the_findings_about_token_v3_name_the_dials_that_were_measured(result):
    measured = json.loads((RESULTS / f"{result}.json").read_text(encoding="utf-8"))["arms"]
    dials = sorted({arm["rule"].removeprefix("token_v3:") for arm in measured if arm["rule"].startswith("token_v3:")})
    default = str(registry.DEFAULT).removeprefix("token_v3:")
    assert f"dials measured, {', '.join(dials[:-1])} and {dials[-1]}" in WORDS
    assert default not in dials
    assert f"default dial, {default}, is not among" in WORDS


def test_the_default_dial_is_graded_as_the_page_says():
    assert "answers as many right with it as the expert alone" in WORDS
    assert GRADES[str(registry.DEFAULT)]["all"]["accuracy"] == GRADES["expert"]["all"]["accuracy"]
