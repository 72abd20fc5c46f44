"""A port, and what listens there until Ctrl-C or SIGTERM: uvicorn, with limits, closing the engine within seconds.

Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import SettingError
from .engine import Engine
from .security import MAX_HEAD

MAX_CONNECTIONS = 512
#: Seconds for a connection's first request line and headers, between two requests, and for what runs when the server is to end.
HEAD_WITHIN_S, BETWEEN_S, END_WITHIN_S = 20.0, 30, 4


class Impatient(H11Protocol):
    """A connection on which no request comes is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_WITHIN_S, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's, which closes the engine as soon as it is told to end, and then returns instead of dying by the signal."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        limits = {"limit_concurrency": MAX_CONNECTIONS, "timeout_keep_alive": BETWEEN_S, "h11_max_incomplete_event_size": MAX_HEAD}
        super().__init__(
            uvicorn.Config(
                app,
                http=Impatient,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=END_WITHIN_S,
                **limits,  # type: ignore[arg-type]
            )
        )
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers that run may finish, for a while; then they are cancelled, and their clients told."""
        closing = asyncio.ensure_future(asyncio.to_thread(self._engine.close, END_WITHIN_S))
        await super().shutdown(sockets)
        await closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the server; a second Ctrl-C does not wait for anybody."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, before anything heavy is done. Raises SettingError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise SettingError(
            f"--host {host!r:.80}: no such address ({error.strerror or error}); use 127.0.0.1, or an address of this machine"
        ) from None
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen()  # so that a second server is refused now, and not when both have loaded
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingError(f"port {port} of {host} is in use by another program; choose another with --port, or 0 for any") from None
        raise SettingError(f"--host {host} --port {port}: {(error.strerror or str(error)).lower()}; choose another") from None
    return found


def address_of(listening: socket.socket) -> str:
    """``http://127.0.0.1:8080``."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
