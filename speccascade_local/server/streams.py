"""Server-sent events, and clients that disconnect."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import refusal_of

#: Seconds that a client may leave an event unread before its stream ends; decoding never waits for a client.
READ_WITHIN_S = 60.0
Result = TypeVar("Result")
Events = AsyncGenerator[Mapping[str, Any], None]


class ClientGoneError(Exception):
    """The client disconnected before its response was complete."""


async def run_while_connected(receive: Receive, coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Return the coroutine's result. If the client disconnects first, cancel it and raise ClientGoneError."""
    work, watch = asyncio.ensure_future(coroutine), asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGoneError
        return await work
    finally:
        for task in (work, watch):
            task.cancel()
        with contextlib.suppress(BaseException):
            await work


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends ``data: {...}`` for each event and ``data: [DONE]`` at the end.

    The first event exists before the response begins, so that earlier errors have a status. A later error becomes the last event. The
    events are closed if the client disconnects or does not read.
    """

    media_type = "text/event-stream"

    def __init__(self, first: Mapping[str, Any], events: Events) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events = first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGoneError):
                await run_while_connected(receive, self._send_all(send))
        finally:
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
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
