"""The guard in front of all routes: who may ask (server/http/policy.py), how much, and the headers that protect every response.

A page of any website can make its visitor's browser send requests to this machine, and with DNS rebinding read the responses. So a
request's Host must be one of this server's, and its Origin the server's own or an allowed one. Other programs send no Origin.
"""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import RefusedError
from .policy import Policy

#: Maximum bytes of a body, bytes of a request's line and headers, number of headers, and seconds for a whole body.
MAX_BODY, MAX_HEAD, MAX_HEADERS, BODY_WITHIN_S = 4_000_000, 16_384, 64, 30.0
#: Open without a key: whether the server is alive, and the page, which holds no data.
OPEN_PATHS, OPEN_FOLDER = ("/", "/health", "/v1/health"), "/static/"
#: Headers that may occur only once, because clients and proxies disagree which of two counts.
_ONCE = ("host", "origin", "authorization", "content-type", "content-encoding")
#: Headers of every response: load nothing from elsewhere, show it in no other page, guess no type, send no referrer.
RESPONSE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ProtectedResponses:
    """ASGI middleware that puts :data:`RESPONSE_HEADERS` on every response, and keeps JSON out of HTTP caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(RESPONSE_HEADERS)
                if headers.get("content-type", "").startswith("application/json"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_protected if scope["type"] == "http" else send)


class Guard:
    """ASGI middleware that checks every request.

    It adds whose KV caches a request may use (``state.owner``), and with whom it takes turns (``state.client``).
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_head(scope, headers)
            receive = await _read(receive) if scope["method"] in ("POST", "PUT", "PATCH") else receive
        except RefusedError as refusal:
            await refusal.response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_head(self, scope: Scope, headers: Headers) -> None:
        """Raise RefusedError for a head that is not allowed."""
        if len(scope["headers"]) > MAX_HEADERS:
            raise RefusedError(431, f"the request has {len(scope['headers'])} headers; at most {MAX_HEADERS} are allowed")
        twice = next((name for name in _ONCE if len(headers.getlist(name)) > 1), None)
        if twice is not None:
            raise RefusedError(400, f"the request has more than one {twice} header; send it once", code="invalid_value")
        host = headers.get("host", "")
        if not self._policy.is_own_host(host):
            raise RefusedError(
                403,
                f"the request is for host {host!r:.80}, which is not this server; use its address, or start it with --allow-host NAME, "
                "such as --allow-host host.docker.internal",
                code="host_not_allowed",
            )
        self._check_origin(headers.get("origin"), host)
        if scope["method"] == "POST":
            _check_body_headers(headers)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        number = self._policy.key_number(key.strip() if scheme.lower() == "bearer" else None)
        address = (scope.get("client") or ("",))[0]
        scope.setdefault("state", {}).update(owner=partial(self._policy.owner, number), client=self._policy.client(number, address))
        if self._policy.api_keys and number is None and not _is_open(scope["path"]):
            raise RefusedError(
                401,
                "a valid API key is needed; send it as Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_origin(self, origin: str | None, host: str) -> None:
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin is None or self._policy.allows_origin(origin) or origin.lower() in own:
            return
        raise RefusedError(
            403,
            f"pages of {origin!r:.80} may not ask this server; to let them, start it with --allow-origin and this origin",
            code="origin_not_allowed",
        )


def _check_body_headers(headers: Headers) -> None:
    """Raise RefusedError for a body that is not plain JSON, the type that browsers send only after a preflight request."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, f"the content type is {kind!r:.60}; it must be application/json", code="unsupported_media_type")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedError(415, f"the content encoding is {encoding!r:.60}; send the body as it is", code="unsupported_media_type")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MAX_BODY:
        raise _too_large()


async def _read(receive: Receive) -> Receive:
    """Read the whole body, and return a function that reads it again. Raises RefusedError."""
    try:
        body = await asyncio.wait_for(_body(receive), BODY_WITHIN_S)
    except asyncio.TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {BODY_WITHIN_S:g} s", code="timeout") from None
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return whole.pop() if whole else await receive()

    return receive_again


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise _too_large()
        if not message.get("more_body", False):  # the end, or the client disconnected
            return bytes(body)


def _too_large() -> RefusedError:
    return RefusedError(413, f"the body is larger than {MAX_BODY:,} bytes, the maximum; send less", code="request_too_large")


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
