"""A runtime for an event loop, or for a thread that must not wait: a thread of its own makes the replies.

    async for chunk in AsyncRuntime(runtime).stream("Once upon a time"):
        print(chunk.text, end="")

Chunks wake the loop, which never blocks. Without an event loop, :meth:`AsyncRuntime.start` returns a reply that any thread can read and
cancel, and calls back with each chunk.
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
from .settings import Settings, settings_with


class AsyncRuntime:
    """Makes the replies of one runtime one after the other, in the order of the calls. Use it as a context manager, or close it.

    While it works, use the runtime only through it; the caller closes the runtime. A fork of a process that has loaded models has none of
    llama.cpp's threads: start processes with "spawn", and load there.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._closed = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runtime")
        self._asked: set[PendingReply] = set()

    def start(
        self,
        prompt: Question,
        settings: Settings | None = None,
        *,
        on_chunk: Callable[[Chunk], None] | None = None,
        timeout_s: float | None = None,
        **overrides: Any,
    ) -> PendingReply:
        """Ask, and return at once.

        Args:
            prompt: a text or ids to continue, or a list of messages to answer.
            settings: how the reply is made; None for the defaults.
            on_chunk: called with each chunk, in the thread that makes it.
            timeout_s: seconds, waiting included.
            overrides: fields of :class:`~speccascade_local.Settings`, in place of those of ``settings``.

        Raises:
            SettingError: a wrong setting. A bad prompt is raised to the reader instead.
            SessionError: this object is closed.
        """
        settings, pending = settings_with(settings, overrides), PendingReply(timeout_s=timeout_s, on_chunk=on_chunk)
        if self._closed:
            raise SessionError("this AsyncRuntime is closed; make a new one from the same runtime")
        self._asked.add(pending)
        self._pool.submit(self._make, pending, prompt, settings)
        return pending

    async def stream(
        self, prompt: Question, settings: Settings | None = None, *, timeout_s: float | None = None, **overrides: Any
    ) -> AsyncIterator[Chunk]:
        """Yield chunk after chunk. Leaving the loop early, or cancelling the task, ends the decoding within one block."""
        pending = self.start(prompt, settings, timeout_s=timeout_s, **overrides)
        try:
            async for chunk in pending:
                yield chunk
        finally:
            pending.cancel()  # now, and not when the inner generator is collected

    async def generate(
        self, prompt: Question, settings: Settings | None = None, *, timeout_s: float | None = None, **overrides: Any
    ) -> Reply:
        """Return the whole reply."""
        pending = self.start(prompt, settings, timeout_s=timeout_s, **overrides)
        async for _ in pending:
            pass
        return pending.reply()

    def close(self) -> None:
        """Cancel all replies, and wait for the block that is being decoded. Harmless when repeated."""
        self._closed = True
        for pending in list(self._asked):
            pending.cancel()
        self._pool.shutdown(wait=True)

    async def aclose(self) -> None:
        """Close without blocking the loop."""
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
                pending.follow(self._runtime.stream(self._runtime.transcript_of(prompt).ids, settings))
        except BaseException as error:
            pending.end(error)
        finally:
            pending.end()
            self._asked.discard(pending)
