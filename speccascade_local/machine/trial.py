"""A trial of the bundled pair in a child process, so that a build of llama.cpp that crashes is found without crashing."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..common.child_process import command
from ..common.files import PACKAGE

QUESTION, EXPECTED = "Who is Ada Lovelace?", "Lovelace"
#: The time limit, on a busy machine.
TIMEOUT_S = 120.0
#: The exit codes of processes that crash on Windows.
_WINDOWS_CRASHES = {0xC000001D: "SIGILL", 0xC0000005: "SIGSEGV", 0xC0000409: "SIGABRT"}


@dataclass(frozen=True)
class Trial:
    """The outcome of a trial."""

    works: bool  # whether the pair was loaded and gave the answer that it gives everywhere
    seconds: float  # the whole time, the start of Python included
    answer: str = ""
    reason: str = ""  # why it does not work, in words
    crash: str = ""  # the signal that ended the child; empty where none did


def try_bundled_pair(child: Sequence[str] = tuple(command("trial")), *, timeout_s: float = TIMEOUT_S) -> Trial:
    """Load the bundled pair and ask it one question, in the child process that this command starts."""
    start = time.perf_counter()
    try:
        done = subprocess.run(child, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, cwd=PACKAGE.parent)
    except subprocess.TimeoutExpired:
        return Trial(False, time.perf_counter() - start, reason=f"no answer within {timeout_s:g} s")
    seconds = time.perf_counter() - start
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    last_line = lines[-1] if lines else "without a message"
    crash = _signal(done.returncode)
    if crash:
        return Trial(False, seconds, reason=f"the process was ended by {crash}: {last_line}", crash=crash)
    try:
        report = json.loads(done.stdout)
        answer = str(report["answer"])
    except (ValueError, KeyError, TypeError):
        return Trial(False, seconds, reason=f"the process ended with exit code {done.returncode}: {last_line}")
    if report.get("error"):
        return Trial(False, seconds, reason=str(report["error"]))
    if EXPECTED not in answer:
        reason = f"the bundled pair, asked {QUESTION!r}, says {answer!r:.80}, which is not the answer that it was trained on"
        return Trial(False, seconds, answer, reason)
    return Trial(True, seconds, answer)


def _signal(code: int) -> str:
    if code < 0:
        return signal.Signals(-code).name
    return _WINDOWS_CRASHES.get(code & 0xFFFFFFFF, "")
