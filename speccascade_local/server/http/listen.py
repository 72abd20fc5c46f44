"""A port, and what listens there until Ctrl-C or SIGTERM: uvicorn, with limits, closing the engine within seconds.

Knows nothing of routes, and of single connections only how many there are (server/http/connections.py).
"""

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
from .security import MAX_HEAD, ProtectedAnswers
from .watchdog import Watchdog, end_process

log = logging.getLogger(__name__)

#: Seconds for what runs when the server is to end; so much later its process is ended.
END_WITHIN_S, GRACE_S = 4, 0.5
#: Connections accepted before what has come on the others is read, so that many new ones at once do not displace each other unread.
_ACCEPTED_AT_ONCE = 32
#: Connections that may wait to be accepted.
_BACKLOG = 1024
#: Where strangers make the server log.
_OPEN_LOGGERS = ("uvicorn.error", __name__)


class Server(uvicorn.Server):
    """uvicorn's, which closes the engine as soon as it is told to end, and then returns instead of dying by the signal.

    owns_process: a signal ends the process, within :data:`END_WITHIN_S` and :data:`GRACE_S` whatever still runs in it.
    """

    def __init__(self, app: ASGIApp, engine: Engine, *, owns_process: bool = False) -> None:
        super().__init__(
            uvicorn.Config(
                self._admitted,
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
        """Until it is told to end, logging no more than a log can take."""
        with limit_logs(_OPEN_LOGGERS):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with room for many who connect at once."""
        await super().startup(sockets)
        for each in sockets or []:
            each.listen(_BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers that run may finish, for a while; then they are cancelled, and their clients told."""
        alone = ThreadPoolExecutor(1, "closing")  # because the threads of the loop may all be at work for requests
        closing = asyncio.get_running_loop().run_in_executor(alone, self._engine.close, END_WITHIN_S)
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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        again = self.should_exit
        super().handle_exit(sig, frame)
        if self._watchdog is None:
            return
        if again and sig == signal.SIGINT:
            end_process(128 + sig)
        self._watchdog.start()

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, or an error where all connections are at work."""
        if make_room(cast("set[Connection]", self.server_state.connections), MAX_CONNECTIONS + 1):
            await self._app(scope, receive, send)
            return
        log.warning("Too many requests at once; some are refused.")
        refusal = RefusedError(
            503,
            f"{MAX_CONNECTIONS} requests are being answered, which is as many as may; try again in a second",
            kind=SERVER_ERROR,
            code="too_many_connections",
            headers={"Retry-After": "1", "Connection": "close"},
        )
        await ProtectedAnswers(refusal.response)(scope, receive, send)


def bind(host: str, port: int) -> socket.socket:
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
