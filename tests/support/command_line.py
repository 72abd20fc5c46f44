"""Run the command as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "speccascade_local"]

QUESTION = "Who is Ada Lovelace?"
TIMEOUT_S = 120


def speccascade(*arguments: str, stdin: bytes = b"", cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Run a verb in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, env=os.environ | environment, timeout=120)


def output_of(*arguments, cwd: Path | None = None, **environment: str) -> str:
    """Run a verb that must succeed without a word on stderr, and return its stdout."""
    done = speccascade(*arguments, cwd=cwd, **environment)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()
