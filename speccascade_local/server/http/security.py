"""The guard in front of all routes: who may ask (server/http/policy.py), how much at once, and the headers that protect every answer.

A page of any website can make its visitor's browser send requests to this machine, and by DNS rebinding read the answers: so the Host that
a request names must be one of this server's, and an Origin the server's own, or one that was allowed. Other programs send no Origin.
Bodies and headers are bounded. Knows nothing of routes, but which of them need no key.
"""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import RefusedError
from .policy import Policy

#: Bytes of a body; a request's line and headers; how many headers; seconds for a whole body.
MAX_BODY, MAX_HEAD, MAX_HEADERS, BODY_WITHIN_S = 4_000_000, 16_384, 64, 30.0
#: What anybody may see who reaches the port: that it lives, and a page without anything in it.
OPEN_PATHS, OPEN_FOLDER = ("/", "/health", "/v1/health"), "/static/"
#: Of these a request has one at most; which of two counts would be anybody's guess.
_ONCE = ("host", "origin", "authorization", "content-type", "content-encoding")
#: Of every answer: nothing is loaded from elsewhere, shown in another page, taken for another type, or sent on to other sites.
ANSWER_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ProtectedAnswers:
    """ASGI middleware that puts :data:`ANSWER_HEADERS` on every answer, and keeps JSON out of caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and add headers on the way back."""

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(ANSWER_HEADERS)
                if headers.get("content-type", "").startswith("application/json"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, protected if scope["type"] == "http" else send)


class Guard:
    """The checks as ASGI middleware, in front of all routes.

    Requests that pass know whose caches they may find (``state.owner``), and with whom they take turns (``state.client``).
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_head(scope, headers)
            bounded = await _read(receive) if scope["method"] in ("POST", "PUT", "PATCH") else receive
        except RefusedError as refusal:
            await refusal.response(scope, receive, send)
            return
        await self._app(scope, bounded, send)

    def _check_head(self, scope: Scope, headers: Headers) -> None:
        """Raises RefusedError."""
        if len(scope["headers"]) > MAX_HEADERS:
            raise RefusedError(431, f"the request has {len(scope['headers'])} headers; {MAX_HEADERS} are allowed")
        twice = next((name for name in _ONCE if len(headers.getlist(name)) > 1), None)
        if twice is not None:
            raise RefusedError(400, f"the request has more than one {twice} header; send it once", code="invalid_value")
        host = headers.get("host", "")
        if not self._policy.knows(host):
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
        if origin is None or self._policy.lets_ask(origin) or origin.lower() in own:
            return
        raise RefusedError(
            403,
            f"pages of {origin!r:.80} may not ask this server; to let them, start it with --allow-origin and this origin",
            code="origin_not_allowed",
        )


def _check_body_headers(headers: Headers) -> None:
    """Raises RefusedError. What a browser sends without asking first is never JSON by its type."""
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
    """The whole body, as far as it is allowed; and a way to read it once more. Raises RefusedError."""
    try:
        body = await asyncio.wait_for(_body(receive), BODY_WITHIN_S)
    except asyncio.TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {BODY_WITHIN_S:g} s", code="timeout") from None
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise _too_large()
        if not message.get("more_body", False):  # the end, or nobody is there any more
            return bytes(body)


def _too_large() -> RefusedError:
    return RefusedError(413, f"the body is larger than {MAX_BODY:,} bytes, which is what is read; send less", code="request_too_large")


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
