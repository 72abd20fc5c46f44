"""Requests with large bodies: read them one at a time, in one thread, and give their memory back afterwards.

Several at once would multiply the peak, and each thread keeps what it has freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: Bytes from which a body is large.
LARGE = 65_536
#: Seconds between attempts to give memory back, and their number after the latest large request, whose reply may take a while.
TIDY_AFTER_S, TIDY_TIMES = 4.0, 6
Result = TypeVar("Result")


class LargeRequests:
    """The thread that reads large bodies, for one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "large requests")
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what the work returns, after all earlier work."""
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
    """Free what only cycles hold, such as exceptions and their frames, and give free memory back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has the function and needs it
        ctypes.CDLL(None).malloc_trim(0)
