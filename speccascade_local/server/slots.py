"""Where replies are made, and which of these places already holds the most of a prompt.

Each place keeps what its models have read, until another text needs it: so the memory for earlier conversations is that of the places, and
no more. What one owner's text left there is of no use to another owner, so that no answer tells whether somebody else asked the same. Knows
nothing of queues, and of owners only whether two are equal.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from ..answering import LoadedPair
from ..gathering import Seat
from ..sequences import shared_length


class Slot(NamedTuple):
    """A place: its seat among those that read together, and its timelines."""

    seat: Seat
    pair: LoadedPair


class Slots:
    """As many as there are pairs; the caller sees to it that no more are taken."""

    def __init__(self, pairs: Mapping[Seat, LoadedPair]) -> None:
        self._free = [Slot(seat, pair) for seat, pair in pairs.items()]  # the least recently used first
        self._owners: dict[Seat, Hashable] = dict.fromkeys(pairs)
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
                session.rewind(0)
            self._owners[slot.seat] = owner

    def _shared(self, slot: Slot, ids: list[int], owner: Hashable) -> int:
        if self._owners[slot.seat] != owner:
            return 0
        return sum(shared_length(session.tokens, ids[:-1]) for session in slot.pair.sessions)

    def give_back(self, slot: Slot) -> None:
        """It is free again, and the most recently used."""
        with self._lock:
            self._free.append(slot)
