"""Requests with large bodies: read one at a time, in one thread, and their memory given back afterwards.

Several at once would multiply their peak, and each thread keeps what it has freed. Knows nothing of what bodies hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: Bytes of a body from which on it is large.
LARGE = 65_536
#: Seconds between two looks for memory to give back, and how many follow the last large request, whose answer may take a while.
TIDY_AFTER_S, TIDY_TIMES = 4.0, 6
Made = TypeVar("Made")


class LargeRequests:
    """A thread for them. For one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "large requests")
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0

    async def run(self, work: Callable[[], Made]) -> Made:
        """What the work returns, once those before it are done."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        finally:
            self._left = TIDY_TIMES
            if self._timer is None:
                self._timer = loop.call_later(TIDY_AFTER_S, self._tidy, loop)

    def _tidy(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left -= 1
        self._timer = loop.call_later(TIDY_AFTER_S, self._tidy, loop) if self._left else None
        self._thread.submit(give_back_memory)


def give_back_memory() -> None:
    """Free what only cycles hold, such as errors and the frames that they name, and give free memory back to the system."""
    gc.collect()
    with contextlib.suppress(
        OSError, AttributeError, TypeError
    ):  # other systems' C libraries have no such function, and give it back anyway
        ctypes.CDLL(None).malloc_trim(0)
