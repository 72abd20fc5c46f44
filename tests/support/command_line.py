"""The command, run as its users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "speccascade_local"]

QUESTION = "Who is Ada Lovelace?"


def speccascade(*arguments: str, stdin: bytes | None = None, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin if stdin is not None else b"",
        capture_output=True,
        cwd=cwd,
        env=os.environ | environment,
        timeout=120,
    )


def output_of(*arguments, cwd: Path | None = None, **environment: str) -> str:
    """What a verb that succeeds writes to stdout."""
    done = speccascade(*arguments, cwd=cwd, **environment)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()
