"""What the README and CONTRIBUTING say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speccascade_local.cli.app import VERBS
from speccascade_local.models.catalog import CatalogFile
from speccascade_local.rules import registry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING}
MOST_LINES = 130


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.slow
def test_the_python_block_runs_as_it_stands():
    (block,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Aldrin" in done.stdout


def test_the_figures_under_the_picture_are_those_of_the_committed_result():
    report = (ROOT / "docs" / "results" / "peers.txt").read_text(encoding="utf-8")
    first_table = report.partition("\n\n")[0].splitlines()
    assert first_table[0].startswith("Temperature 0:")
    arms = {words[0]: words[2:] for line in first_table[2:] if (words := re.split(r" {2,}", line.strip()))}
    speedups = {name: cells[0].split()[0] for name, cells in arms.items()}
    best_server = max((name for name in arms if name.startswith("llama-server")), key=lambda name: float(speedups[name]))
    named = (best_server, "strict (ours), auto blocks", "cascade token_v3:0.8 (ours), auto blocks")
    assert re.findall(r"([\d.]+) × (?:for|for the) (?=the fastest|`strict`|cascade)", " ".join(README.split())) == [
        speedups[name] for name in named
    ]
    assert all("100.0" in arms[name] for name in named)


def test_the_yaml_block_is_a_valid_models_yaml():
    (block,) = blocks("yaml")
    assert "mine" in CatalogFile.model_validate(yaml.safe_load(block)).pairs


def test_the_table_of_rules_names_rules_that_exist_and_the_default():
    named = re.findall(r"^\| `(\w+(?::[^`]*)?)` \|", README.partition("## Which rule")[2].partition("##")[0], re.MULTILINE)
    assert [registry.parse(rule) for rule in named]
    assert len(named) == 4
    assert f"| `{registry.DEFAULT}` |" in README
    assert "the default" in next(line for line in README.splitlines() if f"| `{registry.DEFAULT}` |" in line)


def test_the_table_of_commands_names_each_once():
    rows = [line for line in README.partition("## [Commands]")[2].partition("## ")[0].splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])) == sorted(VERBS)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page]):
        assert (ROOT / target).exists(), target


def test_contributing_names_each_room_and_each_folder_of_scripts():
    for folder in (ROOT / "speccascade_local", ROOT / "scripts"):
        for path in folder.iterdir():
            if any(path.glob("*.*")) and not path.name.startswith((".", "_")):
                assert f"{path.name}/" in CONTRIBUTING, path.name


def test_contributing_names_files_that_are_there():
    for path in re.findall(r"`((?:speccascade_local|scripts|tests|docs|\.ci)/[\w./-]+)`", CONTRIBUTING):
        assert (ROOT / path).exists(), path
