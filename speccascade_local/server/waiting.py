"""Who is answered next: a bounded queue that takes turns between conversations.

Each conversation is a line of its own, of which one job at a time is answered, in the order they came; conversations with somebody waiting
take turns. A job of no conversation is one of its own, so that without any the queue is first come, first served. Knows nothing of
models, threads of its own or protocols.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from ..errors import EngineBusyError, EngineError

#: How much of what earlier jobs took is left in the average after one more.
_FORGETTING = 0.8


class Waiting(Protocol):
    """What stands in the queue."""

    @property
    def line(self) -> Hashable:
        """Jobs of equal lines are answered one after the other."""


Item = TypeVar("Item", bound=Waiting)


class FairQueue(Generic[Item]):
    """bound: how many may wait. servers: how many are answered at once, for the estimate of when there is room again."""

    def __init__(self, bound: int, servers: int = 1) -> None:
        self._bound, self._servers = bound, servers
        self._lines: OrderedDict[Hashable, deque[Item]] = OrderedDict()  # in the order of their turns
        self._busy: set[Hashable] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._usual_s = 1.0

    def __len__(self) -> int:
        with self._changed:
            return self._length

    @property
    def _length(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, item: Item) -> None:
        """At the end of its line. Raises EngineBusyError where as many wait as may, EngineError when closed."""
        with self._changed:
            if self._closed:
                raise EngineError("the server is closing and takes no more requests; ask again when it is back")
            if self._length >= self._bound:
                retry = max(1, math.ceil(self._length / self._servers * self._usual_s))
                raise EngineBusyError(f"{self._length} requests are waiting, which is as many as may; try again in {retry} s", retry)
            self._lines.setdefault(item.line, deque()).append(item)
            self._changed.notify_all()

    def take(self) -> Item | None:
        """The next one, whose line is busy from now on; waits for one. None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next() is not None)
            line = self._next()
            if self._closed or line is None:
                return None
            item = self._lines[line].popleft()
            if self._lines[line]:
                self._lines.move_to_end(line)
            else:
                del self._lines[line]
            self._busy.add(line)
            return item

    def finished(self, item: Item, seconds: float) -> None:
        """What was taken has been answered, in so many seconds."""
        with self._changed:
            self._busy.discard(item.line)
            self._usual_s = _FORGETTING * self._usual_s + (1 - _FORGETTING) * seconds
            self._changed.notify_all()

    def withdraw(self, item: Item) -> bool:
        """Take it out; whether it was still waiting."""
        with self._changed:
            line = self._lines.get(item.line)
            if line is None or item not in line:
                return False
            line.remove(item)
            if not line:
                del self._lines[item.line]
            return True

    def close(self) -> list[Item]:
        """No more; returns who is left waiting."""
        with self._changed:
            self._closed = True
            left = [item for line in self._lines.values() for item in line]
            self._lines.clear()
            self._changed.notify_all()
            return left

    def _next(self) -> Hashable | None:
        return next((line for line in self._lines if line not in self._busy), None)
