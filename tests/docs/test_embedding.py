"""What docs/embedding.md says is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_each_python_block_runs_as_it_stands(tmp_path, number):
    program = tmp_path / "program.py"  # a file, because spawned processes read it again
    program.write_text(blocks("python")[number], encoding="utf-8")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("Aldrin|Lovelace", done.stdout)


def test_the_page_has_threads_loops_and_processes():
    assert len(blocks("python")) == 3


@pytest.mark.parametrize("source", blocks("py"))
def test_what_only_runs_beside_a_server_is_at_least_python(source):
    compile(source, str(PAGE), "exec")


def test_settings_of_other_programs_are_well_formed():
    assert all(map(yaml.safe_load, blocks("yaml")))
    assert all(map(json.loads, blocks("json")))


def test_links_and_pictures_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(targets) >= 3
    for target in targets:
        assert (PAGE.parent / target).exists(), target
