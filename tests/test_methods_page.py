"""What docs/methods.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from update_methods import DOCS, example, picture, table

import speccascade_local as sc
from speccascade_local import methods
from speccascade_local.calibration import Calibration
from speccascade_local.checks import fingerprint

PAGE = (DOCS / "methods.md").read_text(encoding="utf-8")
SECTIONS = {match[1]: match[2] for match in re.finditer(r"^### `(\w+)[^\n]*\n(.*?)(?=^##)", PAGE + "\n## end", re.DOTALL | re.MULTILINE)}


def test_the_table_is_what_the_code_says_of_itself():
    assert f"<!-- table -->\n{table()}\n<!-- /table -->" in PAGE


def test_the_example_rule_is_the_committed_file():
    assert f"<!-- my_rules -->\n{example()}\n<!-- /my_rules -->" in PAGE


def test_every_method_has_its_section_and_no_other():
    assert set(SECTIONS) == set(methods.METHODS)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_is_told_in_five_points_with_a_picture(name):
    assert len(re.findall(r"^- ", SECTIONS[name], re.MULTILINE)) == 5
    assert re.search(rf"!\[{name}\]\(methods/{name}\.svg\)", SECTIONS[name])
    assert (DOCS / "methods" / f"{name}.svg").exists()


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_picture_can_be_made_from_the_code(name, tmp_path):
    path = tmp_path / f"{name}.svg"
    picture(name).savefig(path)
    drawn = path.read_text(encoding="utf-8")
    assert "<svg" in drawn
    assert name.split(",")[0] in drawn


def test_the_figures_of_the_calibration_are_those_of_the_committed_file():
    calibration = Calibration.load(DOCS / "results" / "calibration.json")
    asked, kept = len(calibration.validation), calibration.kept
    told = f"answer {kept:.1%} of the {asked} validation questions alone and keeps {calibration.accuracy:.1%}"
    assert told.replace("%", " %") in " ".join(PAGE.split())
    assert calibration.accuracy == calibration.expert_accuracy
    demo = Path(sc.__file__).parent / "demo"
    assert (calibration.drafter, calibration.expert) == tuple(fingerprint(demo / name) for name in ("drafter.gguf", "expert.gguf"))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (DOCS / Path(target)).exists(), target
