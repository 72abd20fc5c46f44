"""A reply that another thread makes: a thread or an event loop reads it, and any thread cancels it.

The maker puts chunks in, and asks between blocks whether to stop. It never waits for a slow reader: the chunks stay until the object is
freed, and each reading begins with the first.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial

from ..common.errors import EngineTimeoutError, SessionError
from .reply import Chunk, Reply


class PendingReply:
    """A reply in progress. Iterate over it, with ``for`` in a thread or ``async for`` in an event loop, for the chunks as they come.

    An iteration ends after the last chunk, raises what went wrong, and simply ends after :meth:`cancel`. The reply fails with
    EngineTimeoutError ``timeout_s`` seconds from now. The thread that makes it calls ``on_chunk`` with each chunk.
    """

    def __init__(self, *, timeout_s: float | None = None, on_chunk: Callable[[Chunk], None] | None = None) -> None:
        self.timeout_s = timeout_s
        self.error: BaseException | None = None
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._on_chunk = on_chunk
        self._chunks: list[Chunk] = []
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._ended = self._cancelled = False

    # ------------------------------------------------------------------ for readers

    @property
    def done(self) -> bool:
        """Whether no more chunks come, and no thread works on it."""
        return self._ended

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """End it: readers at once, the decoding within one block. Any thread may call it; harmless when repeated or late."""
        if not self._is_whole:
            self._cancelled = True
            self._notify()

    def __iter__(self) -> Iterator[Chunk]:
        read = 0
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._has_news, read), self._seconds_left())
            self.expire()
            fresh = self._chunks[read:]
            yield from fresh
            read += len(fresh)
            if self._is_over(read):
                return

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield the chunks without blocking the loop. A reader that leaves early cancels the reply."""
        loop, woken, read = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, so it has no reader
                loop.call_soon_threadsafe(woken.set)

        self._listeners.append(wake)
        try:
            while True:
                woken.clear()
                if not self._has_news(read):
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(woken.wait(), self._seconds_left())
                self.expire()
                for chunk in self._chunks[read:]:
                    read += 1
                    yield chunk
                if self._is_over(read):
                    return
        finally:
            self._listeners.remove(wake)
            self.cancel()

    def reply(self) -> Reply:
        """Wait for the whole reply. Raises what went wrong, and SessionError where it was cancelled before the first chunk."""
        if not list(self):
            raise SessionError("the reply was cancelled before its first chunk")
        return self.reply_so_far

    @property
    def reply_so_far(self) -> Reply:
        """The chunks so far, at least one, as a reply."""
        return Reply.of(list(self._chunks))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until no thread works on it, and return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout_s)

    # ------------------------------------------------------------------ for the maker

    @property
    def should_stop(self) -> bool:
        """Whether no more of it is wanted; asked between blocks."""
        self.expire()
        return self._cancelled or self._ended

    def put(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        if self._on_chunk is not None:
            self._on_chunk(chunk)
        self._notify()

    def follow(self, chunks: Iterator[Chunk | None]) -> None:
        """Add chunk after chunk until the last one, or until no more are wanted; None is a block that shows nothing."""
        while not self.should_stop:
            chunk = next(chunks)
            if chunk is not None:
                self.put(chunk)
                if chunk.finish_reason is not None:
                    return

    def end(self, error: BaseException | None = None) -> None:
        """End it. The first error counts."""
        self.error = self.error or error
        self._ended = True
        self._notify()

    def expire(self) -> None:
        """Fail if its time is over."""
        if self._deadline is not None and time.monotonic() >= self._deadline and not self._cancelled:
            why = f"no whole answer within {self.timeout_s:g} s, waiting included; allow more time or ask for fewer tokens"
            self.stop_for(EngineTimeoutError(why))

    def stop_for(self, error: BaseException) -> None:
        """Cancel it with an error for its readers."""
        if not self._is_whole:
            self.error = self.error or error
            self.cancel()

    @property
    def _is_whole(self) -> bool:
        """Whether nothing is left to cancel."""
        return self._ended or (bool(self._chunks) and self._chunks[-1].finish_reason is not None)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for listener in list(self._listeners):
            listener()

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None or self._cancelled else max(0.0, self._deadline - time.monotonic())

    def _has_news(self, read: int) -> bool:
        return len(self._chunks) > read or self._ended or self._cancelled

    def _is_over(self, read: int) -> bool:
        """Return whether a reader of ``read`` chunks is at the end. Raises what went wrong."""
        if not (self._ended or self._cancelled) or len(self._chunks) > read:
            return False
        if self.error is not None:
            raise self.error
        return True
