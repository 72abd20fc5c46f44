"""Who is answered next: a bounded queue that takes turns between conversations.

Each conversation is a line of its own, of which one job at a time is answered, in the order they came; conversations with somebody waiting
take turns. A job of no conversation is one of its own, so that without any the queue is first come, first served. Clients take turns too,
and none takes all places, so that no client keeps another out. A job that has to be prepared first keeps its place meanwhile, and lets
others pass. Knows nothing of models, threads of its own or protocols.
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

#: How much of what earlier jobs took is left in the average after one more.
_FORGETTING = 0.8
#: How many clients' turns are remembered, the latest.
_REMEMBERED_CLIENTS = 1024


class Waiting(Protocol):
    """What stands in the queue."""

    @property
    def line(self) -> Hashable:
        """Jobs of equal lines are answered one after the other."""

    @property
    def client(self) -> Hashable:
        """Who asks, where clients can be told apart; None where they cannot."""

    @property
    def ready(self) -> bool:
        """Whether it can be answered now; else it has to be prepared."""

    @property
    def heavy(self) -> bool:
        """Whether answering it may take long in ways that its length does not show."""


Item = TypeVar("Item", bound=Waiting)


class FairQueue(Generic[Item]):
    """bound: how many may wait. servers: how many are answered at once; heavy jobs leave one of several servers to others, and so does each
    client, which also takes no more than half of the places to wait.

    Of jobs that have to be prepared no more are taken ahead than can be answered soon, because a prepared one takes memory.
    """

    def __init__(self, bound: int, servers: int = 1) -> None:
        self._bound, self._servers = bound, servers
        self._lines: OrderedDict[Hashable, deque[Item]] = OrderedDict()  # in the order of their turns
        self._running: list[Item] = []
        self._prepared: list[Item] = []  # those that are being prepared, or were and wait
        self._served: OrderedDict[Hashable, None] = OrderedDict()  # clients, the one whose turn was last at the end
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
            own = sum(each.client == item.client for line in self._lines.values() for each in line)
            if self._length >= self._bound or (item.client is not None and own >= max(1, self._bound // 2)):
                retry = max(1, math.ceil(self._length / self._servers * self._usual_s))
                of = "" if self._length >= self._bound else " of one client"
                raise EngineBusyError(
                    f"{own if of else self._length} requests{of} are waiting, which is as many as may; try again in {retry} s", retry
                )
            self._lines.setdefault(item.line, deque()).append(item)
            self._changed.notify_all()

    def take(self) -> Item | None:
        """The next one that is ready, whose line is busy from now on; waits for one. None when closed."""
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
            self._forget(item)
            self._running.append(item)
            self._served[item.client] = None
            self._served.move_to_end(item.client)
            if len(self._served) > _REMEMBERED_CLIENTS:
                self._served.popitem(last=False)
            return item

    def take_unready(self) -> Item | None:
        """The next one that has to be prepared, which keeps its place until :meth:`prepared`; waits for one. None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next_unready() is not None)
            item = self._next_unready()
            if self._closed or item is None:
                return None
            self._prepared.append(item)
            return item

    def prepared(self, item: Item) -> None:
        """It is ready, or was withdrawn because it cannot be."""
        with self._changed:
            if item not in self._lines.get(item.line, ()):
                self._forget(item)
            self._changed.notify_all()

    def finished(self, item: Item, seconds: float) -> None:
        """What was taken has been answered, in so many seconds."""
        with self._changed:
            self._running.remove(item)
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
            if item.ready:  # else whoever prepares it says when that is over
                self._forget(item)
            self._changed.notify_all()
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
        """Of the lines that may go, the first one of the client whose last turn is the longest ago."""
        turns = {client: turn for turn, client in enumerate(self._served, start=1)}
        able = [(turns.get(jobs[0].client, 0), line) for line, jobs in self._lines.items() if self._may_go(line, jobs[0])]
        return min(able, key=lambda each: each[0])[1] if able else None

    def _may_go(self, line: Hashable, item: Item) -> bool:
        most = max(1, self._servers - 1)
        is_greedy = item.client is not None and sum(each.client == item.client for each in self._running) >= most
        is_heavy = item.heavy and sum(each.heavy for each in self._running) >= most
        return item.ready and not is_greedy and not is_heavy and all(each.line != line for each in self._running)

    def _next_unready(self) -> Item | None:
        if len(self._prepared) > self._servers:
            return None
        heads = (jobs[0] for jobs in self._lines.values())
        return next((item for item in heads if not item.ready and item not in self._prepared), None)

    def _forget(self, item: Item) -> None:
        if item in self._prepared:
            self._prepared.remove(item)
            self._changed.notify_all()


class Slot(NamedTuple):
    """A place: its seat among those that read together, and its timelines."""

    seat: Participant
    pair: LoadedPair


class Slots:
    """As many as there are pairs; the caller sees to it that no more are taken."""

    def __init__(self, pairs: Mapping[Participant, LoadedPair]) -> None:
        self._free = [Slot(seat, pair) for seat, pair in pairs.items()]  # the least recently used first
        self._owners: dict[Participant, Hashable] = dict.fromkeys(pairs)
        self._lock = threading.Lock()

    def take(self, ids: list[int], owner: Hashable = None) -> Slot:
        """The owner's free one that shares the longest beginning with these ids; of equals the one not used for the longest time."""
        with self._lock:
            best = max(self._free, key=lambda slot: self._shared(slot, ids, owner))
            self._free.remove(best)
            return best

    def hand_over(self, slot: Slot, owner: Hashable) -> None:
        """Forget what another owner's text left in a slot that was taken. Raises SessionError."""
        if self._owners[slot.seat] != owner:
            for session in slot.pair.sessions:
                session.roll_back(0)
            self._owners[slot.seat] = owner

    def _shared(self, slot: Slot, ids: list[int], owner: Hashable) -> int:
        if self._owners[slot.seat] != owner:
            return 0
        return sum(shared_prefix_length(session.tokens, ids[:-1]) for session in slot.pair.sessions)

    def give_back(self, slot: Slot) -> None:
        """It is free again, and the most recently used."""
        with self._lock:
            self._free.append(slot)
