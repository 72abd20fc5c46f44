"""The bundled pair, loaded and asked in a child process, so that a build that crashes is found out without crashing.

Knows nothing of other pairs.
"""

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
#: On a busy machine, in seconds.
TIMEOUT_S = 120.0
#: Windows' exit codes of processes that crash.
_WINDOWS = {0xC000001D: "SIGILL", 0xC0000005: "SIGSEGV", 0xC0000409: "SIGABRT"}


@dataclass(frozen=True)
class Trial:
    """works: the pair was loaded and gave the answer that it gives everywhere. seconds: for all of it. reason: why not, in words.

    crash: the signal that ended the child, if one did.
    """

    works: bool
    seconds: float
    answer: str = ""
    reason: str = ""
    crash: str = ""


def try_bundled_pair(words: Sequence[str] = tuple(command("trial")), *, patience: float = TIMEOUT_S) -> Trial:
    """Try it now."""
    start = time.perf_counter()
    try:
        done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=patience, cwd=PACKAGE.parent)
    except subprocess.TimeoutExpired:
        return Trial(False, time.perf_counter() - start, reason=f"no answer within {patience:g} s")
    seconds = time.perf_counter() - start
    said = done.stderr.decode(errors="replace").strip().splitlines()
    last_words = said[-1] if said else "it said nothing"
    crash = _signal(done.returncode)
    if crash:
        return Trial(False, seconds, reason=f"the process was ended by {crash}: {last_words}", crash=crash)
    try:
        found = json.loads(done.stdout)
        answer = str(found["answer"])
    except (ValueError, KeyError, TypeError):
        return Trial(False, seconds, reason=f"the process ended with exit code {done.returncode}: {last_words}")
    if found.get("error"):
        return Trial(False, seconds, reason=str(found["error"]))
    if EXPECTED not in answer:
        return Trial(
            False, seconds, answer, reason=f"the bundled pair, asked {QUESTION!r}, says {answer!r:.80}, which is not what it learnt"
        )
    return Trial(True, seconds, answer)


def _signal(code: int) -> str:
    if code < 0:
        return signal.Signals(-code).name
    return _WINDOWS.get(code & 0xFFFFFFFF, "")
