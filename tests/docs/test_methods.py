"""What docs/methods.md says is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from methods import DOCS, example, picture, table

import speccascade_local as sc
from speccascade_local.common.files import fingerprint
from speccascade_local.rules import registry
from speccascade_local.rules.calibrated import Calibration

PAGE = (DOCS / "methods.md").read_text(encoding="utf-8")
SECTIONS = {match[1]: match[2] for match in re.finditer(r"^### `(\w+)[^\n]*\n(.*?)(?=^##)", PAGE + "\n## end", re.DOTALL | re.MULTILINE)}


def test_the_table_is_what_the_code_says_of_itself():
    assert f"<!-- table -->\n{table()}\n<!-- /table -->" in PAGE


def test_the_example_rule_is_the_committed_file():
    assert f"<!-- my_rules -->\n{example()}\n<!-- /my_rules -->" in PAGE


def test_every_method_has_its_section_and_no_other():
    assert set(SECTIONS) == set(registry.METHODS)


@pytest.mark.parametrize("name", registry.METHODS)
def test_a_method_is_described_in_five_points_with_a_picture(name):
    assert len(re.findall(r"^- ", SECTIONS[name], re.MULTILINE)) == 5
    assert re.search(rf"!\[{name}\]\(methods/{name}\.svg\)", SECTIONS[name])
    assert (DOCS / "methods" / f"{name}.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.METHODS)
def test_a_picture_can_be_made_from_the_code(name, tmp_path):
    path = tmp_path / f"{name}.svg"
    picture(name).savefig(path)
    drawn = path.read_text(encoding="utf-8")
    assert "<svg" in drawn
    assert name.split(",")[0] in drawn


def test_the_figures_of_the_calibration_are_those_of_the_committed_file():
    calibration = Calibration.load(DOCS / "results" / "calibration.json")
    low, high = calibration.accuracy_interval
    said = (
        f"answer {calibration.kept:.1%} of {len(calibration.validation)} unseen questions alone. {calibration.accuracy:.1%} of the answers "
        f"are right [{low:.1%}, {high:.1%}]; the expert alone has {calibration.expert_accuracy:.1%}."
    )
    assert said.replace("%", " %") in " ".join(PAGE.split())
    assert f"--target {calibration.target_accuracy:g} " in PAGE
    demo = Path(sc.__file__).parent / "demo"
    assert (calibration.drafter, calibration.expert) == tuple(fingerprint(demo / name) for name in ("drafter.gguf", "expert.gguf"))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (DOCS / Path(target)).exists(), target


@pytest.mark.parametrize("place", ["README.md", "docs/methods.md", "docs/python.md", "docs/cli.md"])
def test_opt_is_nowhere_called_optimal_without_saying_that_it_is_an_estimate(place):
    """The paper's rule is a plug-in estimate of the optimal one for whole positions; it says itself that rules by token can do better."""
    for line in (DOCS.parent / place).read_text(encoding="utf-8").split("\n\n"):
        for sentence in re.split(r"(?<=[.:;])\s|^[-|]", line, flags=re.MULTILINE):
            if re.search(r"\boptimal (rule|deferral)", sentence):
                assert "estimate" in sentence, sentence
    assert "estimate" in registry.RULES["opt"].trade
    assert "estimate" in registry.describe(registry.RULES["opt"])["source"]


def test_the_budgets_section_says_what_it_does_not_promise_of_a_text():
    section = " ".join(SECTIONS["budget"].split())
    assert "For the whole text the bound is min(1, 100 · 0.02) = 1" in section


@pytest.mark.parametrize(("name", "sources"), [("lenience", ("A.5", "notebook")), ("typical", ("differs from Medusa off temperature 1",))])
def test_a_rule_that_is_not_its_sources_to_the_letter_says_where(name, sources):
    section = " ".join(SECTIONS[name].split())
    assert all(source in section for source in sources)


def test_what_holds_unless_you_say_otherwise_are_the_defaults():
    mentored, decisive = registry.RULES["mentored"](), registry.RULES["decision_tokens"](1.0)
    assert f"; {mentored.divergence:g} unless you say otherwise." in SECTIONS["mentored"]
    assert f"λ = {decisive.lam:g} and window = {decisive.window} unless you say otherwise." in " ".join(SECTIONS["decision_tokens"].split())


@pytest.mark.parametrize("tau", ["0.5", "1.0", "2.0", "3.0"])
def test_lam_as_the_paper_calibrates_it_is_above_the_default_on_every_pair_of_the_report(tau):
    report = json.loads((DOCS / "results" / "methods.json").read_text(encoding="utf-8"))
    (scores,) = (rows for title, rows in report["checks"].items() if title.startswith("scores of decision_tokens"))
    found = [row["lam"] for name, row in scores.items() if name.startswith(f"tau {tau},")]
    assert len(found) == 2
    assert min(found) > registry.RULES["decision_tokens"](1.0).lam
