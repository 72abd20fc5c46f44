"""Turns: which call may use a runtime's models now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

from ..common.errors import SessionError
from ..llama.backend import require_own_process


class Turns:
    """Lets calls take turns: one lock for each block, one for each whole call, and the number of the latest call."""

    def __init__(self) -> None:
        #: Returns what answers with the models at present, such as an engine; None where nothing does.
        self.shared_by: Callable[[], object | None] = lambda: None
        self._whole_calls = threading.RLock()
        self._block: Any = threading.RLock()
        self._latest = 0

    def exclusive(self) -> AbstractContextManager[Any]:
        """Return the lock of one block, for a with statement: no other thread evaluates, or closes the models, inside it.

        It is the lock itself and no generator around it: C code enters and leaves it, so Ctrl-C never leaves it locked. For the same
        reason the checks below are plain functions, called inside it.
        """
        self._refuse_endless_waits()
        return cast(AbstractContextManager[Any], self._block)

    def whole_call(self) -> AbstractContextManager[Any]:
        """Return the lock of a whole reply."""
        self._refuse_endless_waits()  # before it waits for another thread, which waits for the block that is asking
        return cast(AbstractContextManager[Any], self._whole_calls)

    def begin(self) -> int:
        """Begin a turn, inside the lock of a block, and return its number; earlier streams are over. Raises as :meth:`require_unshared`."""
        self.require_unshared()
        self._latest += 1
        return self._latest

    def require_unshared(self) -> None:
        """Raise SessionError where something else answers with the models."""
        if self.shared_by() is not None:
            raise SessionError("this runtime's models answer for an engine; submit requests there, or close it first")

    def require_latest(self, turn: int) -> None:
        """Raise SessionError where a later turn has begun."""
        if turn != self._latest:
            raise SessionError(
                "this stream was ended by a later call on its runtime (or by closing it); "
                "read a stream to its end first, or load a second runtime"
            )

    def end_streams(self) -> None:
        """End all streams, inside the lock."""
        self._latest += 1

    def _refuse_endless_waits(self) -> None:
        """Refuse that a rule waits for itself, and a fork for threads that only the other process has. Raises SessionError."""
        require_own_process()
        if self._block._is_owned():  # by this thread
            raise SessionError("a rule may not call the runtime that is asking it; load a second one for that")
