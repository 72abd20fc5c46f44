"""Ends a process that was asked to end and does not, whatever still runs in it: rules of the user's own, models, other threads.

Only for a process that is the server and nothing else. Knows nothing of HTTP.
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

#: Seconds for the log line, which a pipe that is full would never take.
_TO_TELL_S = 0.2
#: So many threads are named.
_NAMED = 8


class Watchdog:
    """Started once, it ends the process within_s seconds later with exit code 1, having logged which threads still ran."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """From now on; harmless when repeated. The process may end earlier by itself, and nothing else stops it."""
        with contextlib.suppress(RuntimeError):  # it runs already
            self._thread.start()

    def _watch(self) -> None:
        time.sleep(self._within_s)
        telling = threading.Thread(target=self._tell, name="watchdog's log", daemon=True)
        telling.start()
        telling.join(_TO_TELL_S)
        end_process(1)

    def _tell(self) -> None:
        running = ", ".join(list(_running())[:_NAMED]) or "the main thread alone"
        log.error("the server did not end within %g s; it is ended while these still run: %s", self._within_s, running)
        sys.stdout.flush()


def end_process(status: int) -> None:
    """End this process and its children at once, without waiting for any thread."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(status)


def _running() -> Iterator[str]:
    """``answers of demo (in defer, slow_rule.py:5)`` for each thread but the main one and the watchdog's."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread is not threading.main_thread() and not thread.name.startswith("watchdog") and frame is not None:
            code = frame.f_code
            yield f"{thread.name} (in {code.co_name}, {os.path.basename(code.co_filename)}:{frame.f_lineno})"
