"""A thread that ends the process if it does not end on request, whatever still runs in it: user rules, models, other threads.

Only for a process that is nothing but the server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

import psutil

log = logging.getLogger(__name__)

#: Seconds for the log line, because writing to a full pipe never returns.
_LOG_S = 0.2
#: Maximum number of threads in the log line.
_MAX_NAMES = 8


class Watchdog:
    """Ends the process ``within_s`` seconds after its start, with exit code 1, and logs which threads still run."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start it; repeated calls do nothing, and it cannot be stopped."""
        with contextlib.suppress(RuntimeError):  # it already runs
            self._thread.start()

    def _watch(self) -> None:
        time.sleep(self._within_s)
        logger = threading.Thread(target=self._log, name="watchdog's log", daemon=True)
        logger.start()
        logger.join(_LOG_S)
        end_process(1)

    def _log(self) -> None:
        names = ", ".join(list(_running_threads())[:_MAX_NAMES]) or "only the main thread"
        log.error("the server did not end within %g s; killing it while these still run: %s", self._within_s, names)
        sys.stdout.flush()


def end_process(status: int) -> None:
    """End this process and its children at once, without waiting for any thread."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(status)


def _running_threads() -> Iterator[str]:
    """Yield ``answers of demo (in defer, slow_rule.py:5)`` for each thread but the main one and the watchdog's."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread is not threading.main_thread() and not thread.name.startswith("watchdog") and frame is not None:
            code = frame.f_code
            yield f"{thread.name} (in {code.co_name}, {os.path.basename(code.co_filename)}:{frame.f_lineno})"
