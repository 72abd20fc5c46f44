"""Returns the commands that start the programs in ``programs/`` as child processes, also in a frozen application.

In an application built with PyInstaller, for example, ``sys.executable`` is the application itself, which has no ``-m``. There a child is
the application started with an argument of this module, and :func:`freeze_support` runs the program in its place.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Literal, get_args

from .files import PACKAGE

Program = Literal["chat_template", "dry_run", "grammar", "pattern_search", "rpc_server", "trial"]
_WORD = "--run-program-of-speccascade-local"
#: Gives a program this process's module search path, without the folder in which it starts.
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); del sys.argv[:2]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def is_frozen() -> bool:
    """Return whether this process is an application with Python inside."""
    return bool(getattr(sys, "frozen", False))


def command(program: Program) -> list[str]:
    """Return the command that starts a program, without its arguments; unless frozen, run it in the folder that holds this package."""
    return [sys.executable, _WORD, program] if is_frozen() else [sys.executable, "-m", _module(program)]


def standalone(program: Program) -> list[str]:
    """Return the command that starts, from any folder, a program that imports nothing from this package and so starts quickly."""
    if is_frozen():
        return command(program)
    path = (PACKAGE / "programs" / program).with_suffix(".py")
    return [sys.executable, "-I", "-c", _START, json.dumps([os.path.abspath(entry) for entry in sys.path]), str(path)]


def freeze_support() -> None:
    """Run a program of this package and exit, if this process is a frozen application started as a child.

    A frozen application calls it first in its main program, like ``multiprocessing.freeze_support``. Elsewhere it does nothing.
    """
    if not is_frozen() or sys.argv[1:2] != [_WORD]:
        return
    program = sys.argv[2] if len(sys.argv) > 2 else ""
    if program not in get_args(Program):
        sys.exit(f"error: {_WORD} {program}: unknown program; allowed are {', '.join(get_args(Program))}")
    del sys.argv[1:3]
    runpy.run_module(_module(program), run_name="__main__")
    sys.exit()


def _module(program: str) -> str:
    return f"{PACKAGE.name}.programs.{program}"
