"""The server with the page, in a thread of this process, with real replies of the bundled pair or scripted ones.

``python tests/support/page_server.py [PORT]`` serves the page for its development.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

import speccascade_local as sc
from speccascade_local.server.app import make_app
from speccascade_local.server.engine import Engine
from speccascade_local.server.http.listen import Server, address_of, bind
from speccascade_local.server.http.policy import Policy


class PageServer:
    """A running server at ``url``.

    Attributes:
        requests: The bodies of all chat requests.
        pairs: Listed instead of the real pairs.
        pause_s: Seconds before each part of a stream.
        scripted: Replies in place of the pair's: a list of events, or a status and an error message.
        left: Number of streams that the page ended.
    """

    def __init__(self, runtime: sc.Runtime, port: int = 0, policy: Policy | None = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.pairs: list[dict[str, Any]] = []
        self.pause_s = 0.0
        self.scripted: list[Any] = []
        self.left = 0
        self._runtime, self._policy = runtime, policy
        self._begin(port)

    def _begin(self, port: int) -> None:
        listening = bind("127.0.0.1", port)
        self.url, self._port = address_of(listening), listening.getsockname()[1]
        engine = Engine({"demo": self._runtime})
        self._app = make_app(engine, policy=self._policy)
        self._server = Server(self, engine)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def come_back(self) -> None:
        self._begin(self._port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request in place of the application, or pass it on."""
        if scope["path"] == "/api/pairs" and self.pairs:
            await self._replace_pairs(scope, receive, send)
        elif scope["path"] == "/v1/chat/completions":
            body = await Request(scope, receive).body()
            self.requests.append(json.loads(body))
            scripted = _response(self.scripted.pop(0)) if self.scripted else None
            await (scripted or self._app)(scope, self._record(body, receive), self._delay(send))
        else:
            await self._app(scope, receive, send)

    async def _replace_pairs(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: list[bytes] = []

        async def keep(message: Message) -> None:
            parts.append(message.get("body", b""))

        await self._app(scope, receive, keep)
        await JSONResponse(json.loads(b"".join(parts)) | {"pairs": self.pairs})(scope, receive, send)

    def _record(self, body: bytes, receive: Receive) -> Receive:
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_recorded() -> Message:
            message = whole.pop() if whole else await receive()
            self.left += message["type"] == "http.disconnect"
            return message

        return receive_recorded

    def _delay(self, send: Send) -> Send:
        async def send_late(message: Message) -> None:
            await asyncio.sleep(self.pause_s)
            await send(message)

        return send_late


def _response(scripted: Any) -> Response:
    if isinstance(scripted, tuple):
        status, text = scripted
        error = {"message": text, "type": "any", "param": None, "code": None}
        return JSONResponse({"error": error}, status, headers={"Retry-After": "3"})

    def lines() -> Iterator[str]:
        yield ": a comment\r\n\r\n"
        yield from (f"data: {json.dumps(event)}\r\n\r\n" for event in scripted)
        yield "data: [DONE]\r\n\r\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


if __name__ == "__main__":
    with sc.load() as loaded:
        served = PageServer(loaded, int(sys.argv[1]) if len(sys.argv) > 1 else 0)
        print(served.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            served.close()
