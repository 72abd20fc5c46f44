"""A child process that answers one request at a time, within limits of time and memory, for work on untrusted input.

Templates and grammars come from downloads and requests, and no count of steps bounds their cost. A process that can be killed bounds it
on every system. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import psutil

from .errors import UnwantedError

#: While waiting for an answer, the interval between checks of the child's memory and of cancellation.
_CHECK_INTERVAL_S = 0.02


class ChildError(Exception):
    """The child did not answer. The message ends a sentence whose subject is the caller's, such as "needs more than 5 MB"."""


class LimitedChild:
    """A running program that answers requests, for one thread at a time. Raises ChildError where it cannot be started.

    ``memory_bytes`` limits its resident memory. After any exception of :meth:`ask` it cannot be used again, because a late answer would
    belong to no request.
    """

    def __init__(self, command: Sequence[str], memory_bytes: int) -> None:
        own_group: dict[str, Any] = {"start_new_session": True}  # keeps Ctrl-C in the terminal away from it
        if sys.platform == "win32":
            own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        try:
            self.process = _start(command, own_group)
        except OSError as error:
            raise ChildError(f"needs a process of its own, and {sys.executable or 'Python'} cannot be started: {error}") from error
        self._memory_bytes = memory_bytes
        self._owner = os.getpid()
        self._unanswered = False
        weakref.finalize(self, _end, self.process, self._owner)  # at the latest when Python ends
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        reading = self.process.stdout, weakref.ref(self.process), self._lines
        threading.Thread(target=_read, args=reading, name="reader of a child process", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether it can be asked: it runs, is a child of this process, and owes no answer."""
        return self._owner == os.getpid() and not self._unanswered and self.process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """Its resident memory now; 0 after it has ended."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def ask(self, request: Mapping[str, Any], seconds: float, unwanted: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Return the answer to a request. Raises ChildError where a limit is exceeded or the child ends.

        ``unwanted`` is called now and then; True stops the work and raises UnwantedError.
        """
        try:
            self._unanswered = True
            deadline = time.monotonic() + seconds
            with contextlib.suppress(BrokenPipeError):
                assert self.process.stdin is not None
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._answer(deadline, seconds, unwanted))
            self._unanswered = False
            return answer
        except BaseException:  # Ctrl-C too, which may even prevent the kill: then it owes an answer, and ends when it is dropped
            self.kill()
            raise

    def kill(self) -> None:
        """End it. Harmless when repeated, and in a fork."""
        _end(self.process, self._owner)

    def _answer(self, deadline: float, seconds: float, unwanted: Callable[[], bool]) -> str:
        while True:
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=_CHECK_INTERVAL_S)
                if line.endswith("\n"):
                    return line
                code = self.process.wait()
                # The program ends itself soon after its time limit; a slow caller may see that first.
                raise ChildError(_too_slow(seconds) if time.monotonic() >= deadline else f"brought down its process ({_ending(code)})")
            if time.monotonic() >= deadline:
                raise ChildError(_too_slow(seconds))
            if self.resident_bytes > self._memory_bytes:
                raise ChildError(f"needs more than {self._memory_bytes // 1_000_000} MB of memory")
            if unwanted():
                raise UnwantedError("the work was stopped because it was cancelled; ask again")


def _start(command: Sequence[str], options: Mapping[str, Any]) -> subprocess.Popen[str]:
    """Start it in a thread, so that no signal arrives between the new process and the object that waits for it. Raises OSError."""

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8", **options)

    with ThreadPoolExecutor(1, "starter of a child process") as starter:
        return starter.submit(start).result()


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if owner != os.getpid():
        return
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):  # unwritten data is lost
        assert process.stdin is not None
        process.stdin.close()


def _read(stdout: IO[str], process: weakref.ref[subprocess.Popen[str]], lines: queue.SimpleQueue[str]) -> None:
    """Put every line into the queue, and an empty one at the end. No signal arrives in this thread, so the process is always waited for."""
    with stdout:
        for line in stdout:
            lines.put(line)
    ended = process()
    if ended is not None:
        ended.wait()
    lines.put("")


def _too_slow(seconds: float) -> str:
    return f"does not finish within {seconds:g} seconds"


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
