"""Server-sent events, and clients that go away. Knows nothing of models and of what the events say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import refusal_of

#: So long a client may leave what was sent unread, until its answer is given up; the decoding waits for nobody.
READ_WITHIN_S = 60.0
Made = TypeVar("Made")
Events = AsyncGenerator[Mapping[str, Any], None]


class ClientGoneError(Exception):
    """Nobody is there any more whom an answer could reach."""


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, Made]) -> Made:
    """What the work makes; when the client goes away meanwhile the work is cancelled. Raises ClientGoneError."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return await working
    finally:
        for task in (working, watching):
            task.cancel()
        with contextlib.suppress(BaseException):
            await working


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """``data: {...}`` for each event, ``data: [DONE]`` at the end. first: the first event, made before, so that errors have a status.

    An error on the way becomes the last event. When the client goes away, or does not read, the events are closed.
    """

    media_type = "text/event-stream"

    def __init__(self, first: Mapping[str, Any], events: Events) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events = first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        try:
            with contextlib.suppress(ClientGoneError):
                await run_while_connected(receive, self._sent(send))
        finally:
            await self._events.aclose()

    async def _sent(self, send: Send) -> None:
        async def write(text: str, *, more: bool = True) -> None:
            await asyncio.wait_for(send({"type": "http.response.body", "body": text.encode(), "more_body": more}), READ_WITHIN_S)

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await write(_event(self._first))
            try:
                async for event in self._events:
                    await write(_event(event))
            except (asyncio.TimeoutError, OSError):
                raise
            except Exception as error:
                await write(_event(refusal_of(error).body), more=False)
            else:
                await write("data: [DONE]\n\n", more=False)
        except (asyncio.TimeoutError, OSError):
            raise ClientGoneError from None


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"
