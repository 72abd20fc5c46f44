"""What docs/architecture.md says is so: its names exist, its examples run, and each room has its place."""

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
ROOMS = PAGE[PAGE.index("## The rooms") : PAGE.index("## From the command line")]
PATH_OF_A_TOKEN = PAGE[PAGE.index("## From the command line") : PAGE.index("## What always holds")]


def names_in(module: str) -> set[str]:
    nodes = ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_each_room_has_one_line():
    rooms = [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert sorted(re.findall(r"^\| `(\w+)/` \|", ROOMS, re.MULTILINE)) == sorted(rooms)
    assert len(rooms) <= 12


@pytest.mark.parametrize("module", sorted(set(re.findall(r"`(\w+/[\w/]+\.py)`", PAGE))))
def test_each_file_that_is_named_is_there(module):
    assert (PACKAGE / module).exists() or (ROOT / module).exists()


@pytest.mark.parametrize(("module", "name"), re.findall(r"`([\w/]+\.py)`:\s+`(\w+)`", PAGE))
def test_what_is_named_is_there(module, name):
    assert name in names_in(module)


def test_the_loop_accepts_a_drafted_token_in_one_place():
    files = {
        path.relative_to(PACKAGE).as_posix()
        for path in (PACKAGE / "decoding").glob("*.py")
        if re.search(r'= .*"accepted"', path.read_text())
    }
    assert files == {"decoding/verify.py", "decoding/token_loop.py"}, "and token_loop.py, which has no drafts to verify"


def test_one_token_takes_at_most_eight_steps_and_ten_files():
    assert len(re.findall(r"^\d+\. ", PATH_OF_A_TOKEN, re.MULTILINE)) <= 8
    assert len(set(re.findall(r"`([\w/]+\.py)`", PATH_OF_A_TOKEN))) <= 10


def test_the_examples_are_short_and_run(capsys):
    assert all(sum(bool(line.strip()) for line in block.splitlines()) <= 15 for block in BLOCKS)
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
