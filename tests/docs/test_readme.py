"""What the README says is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speccascade_local.models.catalog import CatalogFile
from speccascade_local.rules import registry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_block_runs_as_it_stands():
    (block,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Aldrin" in done.stdout


def test_the_python_block_is_about_ten_lines():
    assert len(blocks("python")[0].strip().splitlines()) <= 12


def test_the_transcript_is_the_committed_result_file():
    transcript = (ROOT / "docs" / "results" / "compare.txt").read_text(encoding="utf-8")
    assert transcript in README
    result = json.loads((ROOT / "docs" / "results" / "compare.json").read_text(encoding="utf-8"))
    assert f"$ {result['command']}\n{transcript}" in README
    for row in result["rows"]:
        assert row["text"] in transcript
        assert re.search(rf"^{row['arm']} +{row['stats']['tokens']} +{row['stats']['expert_calls']} ", transcript, re.MULTILINE)


def test_the_table_of_accuracies_is_the_committed_result_file():
    result = json.loads((ROOT / "docs" / "results" / "demo_pair.json").read_text(encoding="utf-8"))
    arms = {"drafter alone": "drafter", "expert alone": "expert", "sequential cascade": "sequential"}
    table = re.findall(r"^\| ([a-z ]+?)(?: \(`(.+)`\))? \| ([\d.]+) % \| ([\d.–]+) \|$", README, re.MULTILINE)
    assert len(table) == 6
    assert f"on the {result['arms']['expert']['all']['n']} questions" in README
    for name, rule, accuracy, per_call in table:
        graded = result["arms"][rule or arms[name]]["all"]
        assert accuracy == f"{100 * graded['accuracy']:.1f}", name
        assert per_call == (f"{graded['tokens_per_expert_call']:.2f}" if graded["tokens_per_expert_call"] else "–"), name


def test_the_yaml_block_is_a_valid_models_yaml():
    (block,) = blocks("yaml")
    assert "mine" in CatalogFile.model_validate(yaml.safe_load(block)).pairs


def test_the_table_of_rules_names_methods_that_exist():
    named = re.findall(r"^\| `(\w+)(?::[^`]*)?` \|", README, re.MULTILINE)
    assert set(named) <= set(registry.METHODS)
    assert len(named) == len(set(named)) > 8
    assert f"the default is `{registry.DEFAULT}`" in README


@pytest.mark.parametrize("place", [ROOT, ROOT / "scripts"], ids=lambda path: path.name)
def test_the_file_tree_names_every_script(place):
    listed = re.search(r"```\n(pyproject.*?)```", README, re.DOTALL).group(1)
    tracked = subprocess.run(["git", "ls-files", "--", "."], cwd=place, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if "/" not in name and name.endswith((".py", ".toml", ".yaml")) and not name.startswith("."):
            assert re.search(rf"\b{re.escape(name)}\b", listed), name


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("result", ["curves_scaled", "curves_demo"])
def test_what_is_said_of_token_v3s_quality_names_the_dials_that_were_measured(result):
    measured = json.loads((ROOT / "docs" / "results" / f"{result}.json").read_text(encoding="utf-8"))["arms"]
    dials = sorted({arm["rule"].removeprefix("token_v3:") for arm in measured if arm["rule"].startswith("token_v3:")})
    said = f"{', '.join(dials[:-1])} and {dials[-1]}"
    default = str(registry.DEFAULT).removeprefix("token_v3:")
    for text in (README, (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8")):
        words = " ".join(text.split())
        assert f"dials measured, {said}" in words
        assert default not in dials
        assert re.search(rf"default(, | dial, ){re.escape(default)}, is not among", words)


def test_the_default_dial_is_graded_as_the_readme_says():
    arms = json.loads((ROOT / "docs" / "results" / "demo_pair.json").read_text(encoding="utf-8"))["arms"]
    assert "answers as many right with it" in " ".join(README.split())
    assert arms[str(registry.DEFAULT)]["all"]["accuracy"] == arms["expert"]["all"]["accuracy"]
