"""A pool of processes that compile grammars over one vocabulary and compute their masks; programs/grammar.py is the program."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..common.child_process import standalone
from ..common.limited_child import LimitedChild

#: The most resident memory of a process, with its vocabulary.
MEMORY_BYTES = 768_000_000
#: The time in which a new process must read its vocabulary: enough for a large one on a busy machine.
START_S = 60.0
#: How many processes wait for the next grammar, and how long. Each holds the vocabulary, 30 to 100 MB. A process that has grown by more
#: than IDLE_GROWTH bytes is ended instead.
IDLE_PROCESSES, IDLE_S, IDLE_GROWTH = 4, 3.0, 32_000_000


class MatcherPool:
    """Processes that know one vocabulary and serve one grammar at a time. Thread-safe.

    ``tokens``: the bytes of each id; those of control tokens follow 0xff, a byte that no text has. ``ends``: the ids that end a text.
    """

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        joined = base64.b64encode(b"".join(tokens)).decode()
        self._vocabulary = {"lengths": [len(token) for token in tokens], "bytes": joined, "ends": list(ends)}
        self._idle: deque[tuple[LimitedChild, float]] = deque()  # each with the time of its return
        self._fresh_bytes = 0  # the memory of a new process
        self._watching = False
        self._lock = threading.RLock()  # the garbage collector may call give_back anywhere, even within itself

    def take(self, unwanted: Callable[[], bool]) -> LimitedChild:
        """Return an idle process, or a new one. Raises ChildError and UnwantedError."""
        while True:
            try:
                child, _ = self._idle.pop()
            except IndexError:
                break
            if child.alive:
                return child
        child = LimitedChild(standalone("grammar"), MEMORY_BYTES)
        child.ask(self._vocabulary, START_S, unwanted)
        self._fresh_bytes = child.resident_bytes
        return child

    def give_back(self, child: LimitedChild) -> None:
        """Keep a process for the next grammar, or end it."""
        growth = child.resident_bytes - self._fresh_bytes
        if not child.alive or len(self._idle) >= IDLE_PROCESSES or growth > IDLE_GROWTH:
            child.kill()
            return
        with self._lock:
            self._idle.append((child, time.monotonic()))
            if not self._watching:
                self._watch()

    def _watch(self) -> None:
        """Check after a while, in a thread, which processes have waited too long."""
        watcher = threading.Timer(IDLE_S, self._end_idle)
        watcher.daemon = self._watching = True
        watcher.start()

    def _end_idle(self) -> None:
        with self._lock:
            old = [each for each in self._idle if time.monotonic() - each[1] >= IDLE_S]
            for each in old:
                with contextlib.suppress(ValueError):  # it was taken just now
                    self._idle.remove(each)
                    each[0].kill()
            self._watching = False
            if self._idle:
                self._watch()
