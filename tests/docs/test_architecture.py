"""What docs/architecture.md says is so: its names exist, its examples run, and every module has its place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import speccascade_local

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = Path(speccascade_local.__file__).parent
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def names_in(module: str) -> set[str]:
    nodes = ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_every_module_has_its_room():
    rooms = PAGE[PAGE.index("## The rooms") : PAGE.index("## From the command line")]
    told = re.findall(r"`([\w/]+\.py)`", rooms)
    assert len(told) == len(set(told))
    there = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")}
    assert set(told) == there


@pytest.mark.parametrize(("module", "name"), re.findall(r"`([\w/]+\.py)`:\s+`(\w+)`", PAGE))
def test_what_is_named_is_there(module, name):
    assert name in names_in(module)


def test_a_drafted_token_is_accepted_in_one_place_of_the_loop():
    decided = {path.name for path in PACKAGE.glob("*.py") if re.search(r'= .*"accepted"', path.read_text(encoding="utf-8"))}
    assert decided == {"verify.py", "routing.py"}, "and routing.py, which has no drafts to verify"


def test_the_way_of_a_prompt_takes_at_most_eight_steps():
    way = PAGE[PAGE.index("## From the command line") : PAGE.index("## What always holds")]
    assert len(re.findall(r"^\d+\. ", way, re.MULTILINE)) <= 8


def test_the_examples_are_short_and_run(capsys):
    assert all(sum(bool(line.strip()) for line in block.splitlines()) < 15 for block in BLOCKS)
    rule, drafter, loop = BLOCKS
    exec(compile(rule, "rule", "exec", dont_inherit=True), {"__name__": "__main__"})
    answer = capsys.readouterr().out
    assert "astronaut" in answer
    together: dict[str, object] = {}
    exec(drafter, together)
    exec(loop, together)
    origins = capsys.readouterr().out
    assert origins.count("accepted") == 16
    assert origins.count("bonus") == 4
