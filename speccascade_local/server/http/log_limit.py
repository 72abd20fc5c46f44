"""A filter for loggers that clients can make write: a few records of each kind per minute, and the number of the others."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence

#: Records of one kind that are written, and seconds after which counting starts again.
MOST, PER_S = 5, 60.0
#: Useless advice that uvicorn logs for every request to upgrade the protocol.
_USELESS = "No supported WebSocket library detected"


class LogLimit(logging.Filter):
    """Passes :data:`MOST` records of each kind in :data:`PER_S` seconds; the next one after that says how many were dropped.

    A kind is a message without its arguments. Works from any thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, tuple[float, int]] = {}  # by kind: since when, and how many
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = str(record.msg), time.monotonic()
        if kind.startswith(_USELESS):
            return False
        with self._lock:
            start, count = self._counts.get(kind, (now, 0))
            if now - start >= PER_S:
                if count > MOST:
                    record.msg = f"{kind.rstrip()} ({count - MOST} more of these were not logged)"
                start, count = now, 0
            self._counts[kind] = start, count + 1
            return count < MOST


@contextlib.contextmanager
def limit_logs(names: Sequence[str]) -> Iterator[None]:
    """Put a :class:`LogLimit` on these loggers for the block."""
    limit, loggers = LogLimit(), [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(limit)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(limit)
