"""A runtime for an event loop, and for a thread that wants to go on: replies are made by a thread of its own.

    async for chunk in AsyncRuntime(runtime).stream("Once upon a time"):
        print(chunk.text, end="")

The loop is never waited in: chunks wake it. Without an event loop, :meth:`AsyncRuntime.start` gives a reply that can be read and cancelled
from any thread, and calls back with each chunk. Knows nothing of how replies are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from ..common.errors import SessionError
from .pending_reply import PendingReply
from .reply import Chunk, Reply
from .runtime import Question, Runtime
from .settings import Settings


class AsyncRuntime:
    """Replies of one runtime, one after the other in the order they were asked for. Use it as a context manager, or close it.

    While it works nobody else should ask the runtime, which the caller closes. Forking a process that has loaded models leaves the child
    without llama.cpp's threads: start processes by "spawn", and load there.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._closed = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runtime")
        self._asked: set[PendingReply] = set()

    def start(
        self,
        prompt: Question,
        *,
        on_chunk: Callable[[Chunk], None] | None = None,
        timeout_s: float | None = None,
        **chosen: Any,
    ) -> PendingReply:
        """Ask, and return at once. A text or ids are continued, a list of messages is answered.

        on_chunk: called with each chunk, in the thread that makes it. timeout_s: waiting included. The other keywords are those of
        :class:`~speccascade_local.runtime.settings.Settings`, wrong ones of which are refused here (SettingError); a bad prompt is told to whoever
        reads. Raises SessionError when closed.
        """
        settings, pending = Settings(**chosen), PendingReply(timeout_s=timeout_s, on_chunk=on_chunk)
        if self._closed:
            raise SessionError("this AsyncRuntime is closed; make another one of the same runtime")
        self._asked.add(pending)
        self._pool.submit(self._make, pending, prompt, settings)
        return pending

    async def stream(self, prompt: Question, *, timeout_s: float | None = None, **chosen: Any) -> AsyncIterator[Chunk]:
        """Chunk by chunk. Leaving the loop early, or cancelling the task, ends the decoding within one block."""
        pending = self.start(prompt, timeout_s=timeout_s, **chosen)
        try:
            async for chunk in pending:
                yield chunk
        finally:
            pending.cancel()  # now, and not when the inner generator is collected

    async def generate(self, prompt: Question, *, timeout_s: float | None = None, **chosen: Any) -> Reply:
        """The whole reply."""
        pending = self.start(prompt, timeout_s=timeout_s, **chosen)
        async for _ in pending:
            pass
        return pending.reply()

    def close(self) -> None:
        """Cancel what was asked for, and wait for the block that is being made. Harmless when repeated."""
        self._closed = True
        for pending in list(self._asked):
            pending.cancel()
        self._pool.shutdown(wait=True)

    async def aclose(self) -> None:
        """Like :meth:`close`, without waiting in the loop."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> AsyncRuntime:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __enter__(self) -> AsyncRuntime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _make(self, pending: PendingReply, prompt: Question, settings: Settings) -> None:
        try:
            if not pending.should_stop:
                pending.follow(self._runtime.stream(self._runtime.transcript_of(prompt).ids, **vars(settings)))
        except BaseException as error:
            pending.end(error)
        finally:
            pending.end()
            self._asked.discard(pending)
