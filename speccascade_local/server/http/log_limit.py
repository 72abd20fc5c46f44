"""A filter for loggers on which strangers can write: some records of each kind per minute, and how many more there were."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence

#: Records of one kind that are written, and the seconds after which they are counted anew.
MOST, PER_S = 5, 60.0
#: Advice to install what is not wanted here: uvicorn writes it for every request that asks to speak another protocol.
_USELESS = "No supported WebSocket library detected"


class LogLimit(logging.Filter):
    """Lets :data:`MOST` records of each kind through in :data:`PER_S` seconds; the first one afterwards says how many there were besides.

    A kind is a message before its arguments are put in. May be used from any thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, int]] = {}  # since when, and how many
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        kind, now = str(record.msg), time.monotonic()
        if kind.startswith(_USELESS):
            return False
        with self._lock:
            begun, count = self._seen.get(kind, (now, 0))
            if now - begun >= PER_S:
                if count > MOST:
                    record.msg = f"{kind.rstrip()} ({count - MOST} more of these were not logged)"
                begun, count = now, 0
            self._seen[kind] = begun, count + 1
            return count < MOST


@contextlib.contextmanager
def limit_logs(names: Sequence[str]) -> Iterator[None]:
    """For the time of the block these loggers write no more than a :class:`LogLimit` lets through."""
    limit, loggers = LogLimit(), [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(limit)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(limit)
