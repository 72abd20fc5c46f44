"""uvicorn on a port until Ctrl-C or SIGTERM, with limits, closing the engine within seconds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from ...common.errors import SettingError
from ..engine import Engine
from ..errors import SERVER_ERROR, RefusedError
from .connections import BETWEEN_S, MAX_CONNECTIONS, Connection, make_room
from .log_limit import limit_logs
from .security import MAX_HEAD, ProtectedResponses
from .watchdog import Watchdog, end_process

log = logging.getLogger(__name__)

#: Seconds for running requests when the server ends, and seconds after that until its process is ended.
END_WITHIN_S, GRACE_S = 4, 0.5
#: Connections accepted before data of the others is read, so that many new ones do not displace each other unread.
_ACCEPTED_AT_ONCE = 32
#: Connections that may wait to be accepted.
_BACKLOG = 1024
#: Loggers that clients can make write.
_OPEN_LOGGERS = ("uvicorn.error", __name__)


class Server(uvicorn.Server):
    """uvicorn's server, which on a signal closes the engine and returns.

    With ``owns_process`` a signal ends the process within :data:`END_WITHIN_S` + :data:`GRACE_S`, whatever still runs in it.
    """

    def __init__(self, app: ASGIApp, engine: Engine, *, owns_process: bool = False) -> None:
        super().__init__(
            uvicorn.Config(
                self._admit,
                interface="asgi3",
                http=Connection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=END_WITHIN_S,
                timeout_keep_alive=BETWEEN_S,
                h11_max_incomplete_event_size=MAX_HEAD,
                backlog=_ACCEPTED_AT_ONCE,
            )
        )
        self._app, self._engine = app, engine
        self._watchdog = Watchdog(END_WITHIN_S + GRACE_S) if owns_process else None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with limit_logs(_OPEN_LOGGERS):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or []:
            each.listen(_BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running replies finish for a while, then cancel them with an error to their clients."""
        thread = ThreadPoolExecutor(1, "closing")  # because requests may occupy all threads of the loop
        closing = asyncio.get_running_loop().run_in_executor(thread, self._engine.close, END_WITHIN_S)
        await super().shutdown(sockets)
        await closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End the server on Ctrl-C and SIGTERM, and at once on a second Ctrl-C."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_repeated = self.should_exit
        super().handle_exit(sig, frame)
        if self._watchdog is None:
            return
        if is_repeated and sig == signal.SIGINT:
            end_process(128 + sig)
        self._watchdog.start()

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, or refuse if all connections are busy."""
        if make_room(cast("set[Connection]", self.server_state.connections), MAX_CONNECTIONS + 1):
            await self._app(scope, receive, send)
            return
        log.warning("too many requests at once; some are refused")
        refusal = RefusedError(
            503,
            f"{MAX_CONNECTIONS} requests are being answered, which is the maximum; try again in a second",
            kind=SERVER_ERROR,
            code="too_many_connections",
            headers={"Retry-After": "1", "Connection": "close"},
        )
        await ProtectedResponses(refusal.response)(scope, receive, send)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Raises SettingError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise SettingError(
            f"--host {host!r:.80}: unknown address ({error.strerror or error}); use 127.0.0.1 or an address of this machine"
        ) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()  # so that a second server is refused before it loads its models
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingError(f"port {port} of {host} is in use by another program; choose another with --port, or 0 for any") from None
        raise SettingError(f"--host {host} --port {port}: {(error.strerror or str(error)).lower()}; choose another") from None
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket, such as ``http://127.0.0.1:8080``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
