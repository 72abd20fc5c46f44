"""The programs of this package that run as child processes of it: the commands that start them, in a frozen application too.

In an application made by PyInstaller or the like ``sys.executable`` is the application, which knows no ``-m``: started that way it would
open its window once more. There a child is the application with a word of ours behind it, and importing this package runs the program in
place of the application. Knows nothing of what the programs do.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Literal, get_args

Program = Literal["sandbox", "matcher", "rehearsing", "rpc_server", "doctor.trial", "bench.matching"]
_WORD = "--run-program-of-speccascade-local"
#: A program that finds the modules that this process finds, and none that lies in the folder where it is started.
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); del sys.argv[:2]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def is_frozen() -> bool:
    """Whether this process is an application with Python inside, as the tools that make such applications tell."""
    return bool(getattr(sys, "frozen", False))


def command(program: Program) -> list[str]:
    """What starts it, to be followed by its own arguments. Where it is no frozen application, in the folder where this package lies."""
    return [sys.executable, _WORD, program] if is_frozen() else [sys.executable, "-m", f"{__package__}.{program}"]


def standalone(program: Program) -> list[str]:
    """What starts a program that imports nothing of this package, so that it starts quickly, in whatever folder."""
    if is_frozen():
        return command(program)
    path = Path(__file__).parent.joinpath(*program.split(".")).with_suffix(".py")
    return [sys.executable, "-I", "-c", _START, json.dumps([os.path.abspath(entry) for entry in sys.path]), str(path)]


def run_if_asked() -> None:
    """In a frozen application that was started by such a command, run that program and end the process; else do nothing."""
    if not is_frozen() or sys.argv[1:2] != [_WORD]:
        return
    program = sys.argv[2] if len(sys.argv) > 2 else ""
    if program not in get_args(Program):
        sys.exit(f"error: {_WORD} {program}: no such program; there are {', '.join(get_args(Program))}")
    del sys.argv[1:3]
    runpy.run_module(f"{__package__}.{program}", run_name="__main__")
    sys.exit()
