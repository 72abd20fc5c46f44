"""Where replies are made, and which of these places already holds the most of a prompt.

Each place keeps what its models have read, until another text needs it: so the memory for earlier conversations is that of the places, and
no more. Knows nothing of queues or of who asks.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
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
        self._lock = threading.Lock()

    def take(self, ids: list[int]) -> Slot:
        """The free one that shares the longest beginning with these ids; of equals the one that was not used for the longest time."""
        with self._lock:
            best = max(self._free, key=lambda slot: sum(shared_length(session.tokens, ids[:-1]) for session in slot.pair.sessions))
            self._free.remove(best)
            return best

    def give_back(self, slot: Slot) -> None:
        """It is free again, and the most recently used."""
        with self._lock:
            self._free.append(slot)
