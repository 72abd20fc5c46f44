"""Who may ask, and how much at once: checked before a request reaches any route.

A page of any website can make its visitor's browser send requests to this machine, and by DNS rebinding read the answers: so the Host that
a request names must be one of this server's, and an Origin the server's own, or one that was allowed. Other programs send no Origin. An
API key is compared in constant time. Bodies and headers are bounded. Knows nothing of routes, but which of them need no key.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..endpoints import is_loopback
from ..errors import CatalogError, SettingError
from .refusals import RefusedError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
ENVIRONMENT_KEY = "SPECCASCADE_API_KEY"
SHORTEST_KEY = 16
#: Bytes of a body; a request's line and headers; how many headers; seconds for a whole body.
MAX_BODY, MAX_HEAD, MAX_HEADERS, BODY_WITHIN_S = 4_000_000, 16_384, 64, 30.0
#: What anybody may see who reaches the port: that it lives, and a page without anything in it.
OPEN_PATHS, OPEN_FOLDER = ("/", "/health"), "/static/"


@dataclass(frozen=True)
class Policy:
    """Who may ask. host: what the server is bound to; names: further names it is reached by; origins: other sites whose pages may ask."""

    host: str = "127.0.0.1"
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.api_key is None:
            raise SettingError(
                f"--host {self.host} lets other machines in, and there is no API key; give one with --api-key-file or ${ENVIRONMENT_KEY}, "
                "or stay on 127.0.0.1"
            )
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}":
                raise SettingError(
                    f"--allow-origin {origin!r:.80} is not an origin, such as https://chat.example.org or http://localhost:3000"
                )

    def knows(self, host: str) -> bool:
        """Whether a Host header, with its port or without, names this server."""
        name = _name_of(host)
        if name in (*LOOPBACK_NAMES, self.host.lower(), *map(str.lower, self.names)):
            return True
        return not is_loopback(self.host) and _is_address(name)  # an address cannot be rebound, and there a key is needed

    def admits(self, key: str | None) -> bool:
        """Whether this is the key; in the same time for every wrong one."""
        if self.api_key is None:
            return True
        given, right = (hashlib.sha256(each.encode(errors="surrogateescape")).digest() for each in (key or "", self.api_key))
        return hmac.compare_digest(given, right)


def api_key(file: Path | None) -> str | None:
    """From a file, or from the environment; None where neither is named. Raises CatalogError and SettingError."""
    if file is not None:
        try:
            key, origin = file.read_text(encoding="utf-8-sig").strip(), f"--api-key-file {file}"
        except (OSError, UnicodeDecodeError) as error:
            raise CatalogError(f"--api-key-file {file}: cannot be read ({error}); check its name and permissions") from None
    elif ENVIRONMENT_KEY in os.environ:
        key, origin = os.environ[ENVIRONMENT_KEY].strip(), f"${ENVIRONMENT_KEY}"
    else:
        return None
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingError(
            f"{origin} holds a key of {len(key)} characters; it must be at least {SHORTEST_KEY} of ASCII without blanks, such as what "
            "this prints: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return key


class Guard:
    """The checks as ASGI middleware, in front of all routes."""

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
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._policy.knows(hosts[0]):
            named = f"{hosts[0]!r:.80}" if hosts else "nobody"
            raise RefusedError(
                403,
                f"the request is for host {named}, which is not this server; use its address, or start it with --allow-host",
                code="host_not_allowed",
            )
        self._check_origin(headers.get("origin"), hosts[0])
        if scope["method"] == "POST":
            _check_body_headers(headers)
        if not _is_open(scope["path"]):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if not self._policy.admits(key.strip() if scheme.lower() == "bearer" else None):
                raise RefusedError(
                    401,
                    "a valid API key is needed; send it as Authorization: Bearer KEY",
                    kind="authentication_error",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _check_origin(self, origin: str | None, host: str) -> None:
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin is None or origin in self._policy.origins or origin.lower() in own:
            return
        raise RefusedError(
            403, f"pages of {origin!r:.80} may not ask this server; start it with --allow-origin to let them", code="origin_not_allowed"
        )


def _check_body_headers(headers: Headers) -> None:
    """Raises RefusedError. What a browser sends without asking first is never JSON by its type."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, f"the content type is {kind!r:.60}; it must be application/json", code="unsupported_media_type")
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


def _name_of(host: str) -> str:
    """``localhost:8080`` -> ``localhost``, ``[::1]:8080`` -> ``::1``."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def origins_of(given: Sequence[str] | None) -> tuple[str, ...]:
    """As they were named, without a slash at the end."""
    return tuple(each.rstrip("/") for each in given or ())
