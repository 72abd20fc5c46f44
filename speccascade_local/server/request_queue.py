"""Who is answered next: a bounded queue that takes turns between conversations, and the slots that answer.

Each conversation is a line. Of a line one job at a time is answered, in the order of arrival; lines take turns. A job without a
conversation is a line of its own, so that such jobs are first come, first served. Clients take turns too, and none can fill the queue.
A job that must be prepared first keeps its place while others pass it.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

from ..common.errors import EngineBusyError, EngineError
from ..runtime.answer import LoadedPair
from ..runtime.shared_batches import Participant
from ..tokens.prompt import shared_prefix_length

#: Weight of earlier jobs in the average of seconds per job.
_DECAY = 0.8
#: Maximum number of clients whose turns are kept, the latest ones.
_MAX_CLIENTS = 1024


class Waiting(Protocol):
    """What waits in the queue."""

    @property
    def line(self) -> Hashable:
        """Items of equal lines are answered one after the other."""

    @property
    def client(self) -> Hashable:
        """Who asks; None if clients cannot be distinguished."""

    @property
    def ready(self) -> bool:
        """Whether it can be answered now; otherwise it must be prepared first."""

    @property
    def heavy(self) -> bool:
        """Whether answering may take longer than its length suggests."""


Item = TypeVar("Item", bound=Waiting)


class FairQueue(Generic[Item]):
    """A queue that is fair to conversations and clients.

    Heavy items leave one of several servers to others. So does each client, which also takes at most half of the queue. Only as many items
    are prepared in advance as can be answered soon, because a prepared one takes memory. At most ``bound`` items wait, and ``servers`` are
    answered at once.
    """

    def __init__(self, bound: int, servers: int = 1) -> None:
        self._bound, self._servers = bound, servers
        self._lines: OrderedDict[Hashable, deque[Item]] = OrderedDict()  # in the order of their turns
        self._running: list[Item] = []
        self._prepared: list[Item] = []  # in preparation, or prepared and waiting
        self._clients: OrderedDict[Hashable, None] = OrderedDict()  # in the order of their latest turns
        self._changed = threading.Condition()
        self._closed = False
        self._average_s = 1.0

    def __len__(self) -> int:
        with self._changed:
            return self._length

    @property
    def _length(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, item: Item) -> None:
        """Append an item to its line. Raises EngineBusyError if the queue is full, EngineError if it is closed."""
        with self._changed:
            if self._closed:
                raise EngineError("the server is closing and takes no more requests; ask again when it is back")
            own = sum(each.client == item.client for line in self._lines.values() for each in line)
            if self._length >= self._bound or (item.client is not None and own >= max(1, self._bound // 2)):
                retry = max(1, math.ceil(self._length / self._servers * self._average_s))
                of = "" if self._length >= self._bound else " of one client"
                raise EngineBusyError(
                    f"{own if of else self._length} requests{of} are waiting, which is the maximum; try again in {retry} s", retry
                )
            self._lines.setdefault(item.line, deque()).append(item)
            self._changed.notify_all()

    def take(self) -> Item | None:
        """Wait for the next item that is ready, and return it. Its line is busy until :meth:`finish`. None if closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next_line() is not None)
            line = self._next_line()
            if self._closed or line is None:
                return None
            item = self._lines[line].popleft()
            if self._lines[line]:
                self._lines.move_to_end(line)
            else:
                del self._lines[line]
            self._release(item)
            self._running.append(item)
            self._clients[item.client] = None
            self._clients.move_to_end(item.client)
            if len(self._clients) > _MAX_CLIENTS:
                self._clients.popitem(last=False)
            return item

    def take_unready(self) -> Item | None:
        """Wait for the next item to prepare, and return it. It keeps its place until :meth:`finish_preparing`. None if closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next_unready() is not None)
            item = self._next_unready()
            if self._closed or item is None:
                return None
            self._prepared.append(item)
            return item

    def finish_preparing(self, item: Item) -> None:
        """Note that an item is ready, or was withdrawn because it cannot be."""
        with self._changed:
            if item not in self._lines.get(item.line, ()):
                self._release(item)
            self._changed.notify_all()

    def finish(self, item: Item, seconds: float) -> None:
        """Note that an item was answered, and how long that took."""
        with self._changed:
            self._running.remove(item)
            self._average_s = _DECAY * self._average_s + (1 - _DECAY) * seconds
            self._changed.notify_all()

    def withdraw(self, item: Item) -> bool:
        """Take an item out of the queue. Return whether it was still waiting."""
        with self._changed:
            line = self._lines.get(item.line)
            if line is None or item not in line:
                return False
            line.remove(item)
            if not line:
                del self._lines[item.line]
            if item.ready:  # otherwise finish_preparing releases it
                self._release(item)
            self._changed.notify_all()
            return True

    def close(self) -> list[Item]:
        """Refuse new items, and return those that were waiting."""
        with self._changed:
            self._closed = True
            waiting = [item for line in self._lines.values() for item in line]
            self._lines.clear()
            self._changed.notify_all()
            return waiting

    def _next_line(self) -> Hashable | None:
        """Return the first line that may go, of the client whose latest turn is the longest ago."""
        turns = {client: turn for turn, client in enumerate(self._clients, start=1)}
        lines = [line for line, items in self._lines.items() if self._may_go(line, items[0])]
        return min(lines, key=lambda line: turns.get(self._lines[line][0].client, 0), default=None)

    def _may_go(self, line: Hashable, item: Item) -> bool:
        limit = max(1, self._servers - 1)
        is_greedy = item.client is not None and sum(each.client == item.client for each in self._running) >= limit
        is_too_heavy = item.heavy and sum(each.heavy for each in self._running) >= limit
        return item.ready and not is_greedy and not is_too_heavy and all(each.line != line for each in self._running)

    def _next_unready(self) -> Item | None:
        if len(self._prepared) > self._servers:
            return None
        heads = (items[0] for items in self._lines.values())
        return next((item for item in heads if not item.ready and item not in self._prepared), None)

    def _release(self, item: Item) -> None:
        if item in self._prepared:
            self._prepared.remove(item)
            self._changed.notify_all()


class Slot(NamedTuple):
    """A place to answer in: its participant of the common batches, and its timelines of both models."""

    participant: Participant
    pair: LoadedPair


class Slots:
    """The free slots of one pair. The caller takes at most as many as there are."""

    def __init__(self, pairs: Mapping[Participant, LoadedPair]) -> None:
        self._free = [Slot(participant, pair) for participant, pair in pairs.items()]  # the least recently used first
        self._owners: dict[Participant, Hashable] = dict.fromkeys(pairs)
        self._lock = threading.Lock()

    def take(self, ids: list[int], owner: Hashable = None) -> Slot:
        """Take the owner's slot that shares the longest prefix with these ids, or the least recently used one."""
        with self._lock:
            best = max(self._free, key=lambda slot: self._shared_tokens(slot, ids, owner))
            self._free.remove(best)
            return best

    def hand_over(self, slot: Slot, owner: Hashable) -> None:
        """Roll back what a taken slot holds of another owner's text. Raises SessionError."""
        if self._owners[slot.participant] != owner:
            for session in slot.pair.sessions:
                session.roll_back(0)
            self._owners[slot.participant] = owner

    def _shared_tokens(self, slot: Slot, ids: list[int], owner: Hashable) -> int:
        if self._owners[slot.participant] != owner:
            return 0
        return sum(shared_prefix_length(session.tokens, ids[:-1]) for session in slot.pair.sessions)

    def give_back(self, slot: Slot) -> None:
        """Free a slot, as the most recently used one."""
        with self._lock:
            self._free.append(slot)
