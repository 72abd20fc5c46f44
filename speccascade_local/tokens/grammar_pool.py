"""Processes that compile grammars over one vocabulary and make their masks: taken for one grammar, given back for the next.

Knows nothing of grammars; programs/grammar.py is the program.
"""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..common.child_process import standalone
from ..common.limited_child import LimitedChild

#: The resident memory of a process at most, its vocabulary included.
MEMORY_BYTES = 768_000_000
#: For a large vocabulary to be read by a new process, on a busy machine.
START_S = 60.0
#: How many processes wait for the next grammar, and for how long. Each holds the vocabulary, 30 to 100 MB; one that has grown by more than
#: IDLE_GROWTH bytes since it started is ended instead.
IDLE_PROCESSES, IDLE_S, IDLE_GROWTH = 4, 3.0, 32_000_000


class MatcherPool:
    """Processes that know one vocabulary and serve one grammar at a time. May be used from any thread.

    tokens: what each id stands for, control tokens behind a byte that no text has (0xff). ends: the ids that end a text.
    """

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        self._vocabulary = {
            "lengths": [len(token) for token in tokens],
            "bytes": base64.b64encode(b"".join(tokens)).decode(),
            "ends": list(ends),
        }
        self._idle: deque[tuple[LimitedChild, float]] = deque()  # each since when
        self._fresh_bytes = 0  # what a process takes at its start
        self._watching = False
        self._lock = threading.RLock()  # giving back may happen anywhere, even within itself, where a grammar is collected

    def take(self, unwanted: Callable[[], bool]) -> LimitedChild:
        """A process that waits, or a new one. Raises ChildError and UnwantedError."""
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
        """It may serve the next grammar."""
        grown = child.resident_bytes - self._fresh_bytes
        if not child.alive or len(self._idle) >= IDLE_PROCESSES or grown > IDLE_GROWTH:
            child.kill()
            return
        with self._lock:
            self._idle.append((child, time.monotonic()))
            if not self._watching:
                self._watch()

    def _watch(self) -> None:
        """Look again after a while, in a thread, what has waited for too long by then."""
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
