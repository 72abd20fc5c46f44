"""A reply that another thread makes: read from a thread or from an event loop, and cancelled from anywhere.

Whoever makes it puts chunks in and asks between blocks whether to stop. Nothing is lost and nobody waits for a slow reader: chunks are kept
until the object goes, and each reading begins with the first. Knows nothing of models, and of chunks only that they join to a reply.
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
    """Iterate over it, by ``for`` in a thread or by ``async for`` in an event loop, for the chunks as they come.

    timeout_s: seconds from now, after which it fails with EngineTimeoutError. on_chunk: called with each chunk by the thread that makes it.
    An iteration ends behind the last chunk, raises what went wrong, and after :meth:`cancel` simply ends.
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
        """Whether nothing will come any more, and nobody works on it."""
        return self._ended

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled it."""
        return self._cancelled

    def cancel(self) -> None:
        """End it: readers at once, the decoding within one block. Harmless when repeated, or too late; from any thread."""
        if not self._is_whole:
            self._cancelled = True
            self._tell()

    def __iter__(self) -> Iterator[Chunk]:
        read = 0
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._has_news, read), self._left_s())
            self.expire()
            fresh = self._chunks[read:]
            yield from fresh
            read += len(fresh)
            if self._is_over(read):
                return

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Like ``__iter__``; the loop is only ever woken, never waited in. A reader that goes away early cancels the reply."""
        loop, woken, read = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(woken.set)

        self._listeners.append(wake)
        try:
            while True:
                woken.clear()
                if not self._has_news(read):
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(woken.wait(), self._left_s())
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
        """Wait for all of it. Raises what went wrong, and SessionError where it was cancelled before anything came."""
        if not list(self):
            raise SessionError("the reply was cancelled before anything of it was made")
        return self.reply_so_far

    @property
    def reply_so_far(self) -> Reply:
        """What has come, which must be something."""
        return Reply.of(list(self._chunks))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nobody works on it any more; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout_s)

    # ------------------------------------------------------------------ for whoever makes it

    @property
    def should_stop(self) -> bool:
        """Whether nobody wants more of it: asked between blocks."""
        self.expire()
        return self._cancelled or self._ended

    def put(self, chunk: Chunk) -> None:
        """One chunk more."""
        self._chunks.append(chunk)
        if self._on_chunk is not None:
            self._on_chunk(chunk)
        self._tell()

    def follow(self, chunks: Iterator[Chunk | None]) -> None:
        """Put in chunk after chunk, None being a block that shows nothing, until the last one, or until nobody wants more."""
        while not self.should_stop:
            chunk = next(chunks)
            if chunk is not None:
                self.put(chunk)
                if chunk.finish_reason is not None:
                    return

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come. The first error counts."""
        self.error = self.error or error
        self._ended = True
        self._tell()

    def expire(self) -> None:
        """Fail if the time is over."""
        if self._deadline is not None and time.monotonic() >= self._deadline and not self._cancelled:
            why = f"no whole answer within {self.timeout_s:g} s, waiting included; allow more time or ask for fewer tokens"
            self.stop_for(EngineTimeoutError(why))

    def stop_for(self, error: BaseException) -> None:
        """Cancel it, and tell its readers why."""
        if not self._is_whole:
            self.error = self.error or error
            self.cancel()

    # ------------------------------------------------------------------ how

    @property
    def _is_whole(self) -> bool:
        """Whether there is nothing left to cancel."""
        return self._ended or (bool(self._chunks) and self._chunks[-1].finish_reason is not None)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for listener in list(self._listeners):
            listener()

    def _left_s(self) -> float | None:
        return None if self._deadline is None or self._cancelled else max(0.0, self._deadline - time.monotonic())

    def _has_news(self, read: int) -> bool:
        return len(self._chunks) > read or self._ended or self._cancelled

    def _is_over(self, read: int) -> bool:
        """Whether whoever has read so many chunks is at the end. Raises what went wrong."""
        if not (self._ended or self._cancelled) or len(self._chunks) > read:
            return False
        if self.error is not None:
            raise self.error
        return True
