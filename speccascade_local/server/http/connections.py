"""Connections over uvicorn's HTTP/1.1 protocol: how long each waits for its client, and who gives way where there are too many.

A connection awaits its client between two requests, until a request has come whole, and while its answer is not read. Only such a one is
closed, so that a client which waits for its answer gets it. Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import RefusedError
from .policy import peer_of
from .security import ANSWER_HEADERS, MAX_HEAD

#: Connections in all; of one client, those that await it.
MAX_CONNECTIONS, MAX_PER_PEER = 512, 128
#: Seconds for a request's line and headers from their first byte, between two requests, and for reading the last of an answer.
HEAD_WITHIN_S, BETWEEN_S, UNREAD_WITHIN_S = 20.0, 30, 60.0
#: Seconds after which a client that has sent its last byte is first looked for again, and the most between two looks.
_LOOK_AFTER_S, _LOOK_WITHIN_S = 0.2, 10.0


class Connection(H11Protocol):
    """One client's connection. A head that does not come, and an answer that is not read, close it."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.since = self.loop.time()
        self.peer = ""
        self._head_timer: asyncio.TimerHandle | None = None
        self._half_closed = False

    @property
    def awaits_client(self) -> bool:
        """Whether it is the client's turn: to send a request or the rest of it, or to read."""
        return not self._is_answering or self.conn.their_state is h11.SEND_BODY or self.flow.write_paused

    def abort(self) -> None:
        """Close it at once."""
        self.connections.discard(self)
        self.transport.abort()

    # ------------------------------------------------------------------ what asyncio and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; of too many connections another one gives way."""
        super().connection_made(transport)
        self.peer = peer_of(self.client[0] if self.client else "")
        others = [each for each in cast("set[Connection]", self.connections) if each is not self]
        if make_room([each for each in others if each.peer == self.peer and each.awaits_client], MAX_PER_PEER):
            make_room(others, MAX_CONNECTIONS)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        """More of a request, or of several."""
        super().data_received(data)
        self._time_head()

    def on_response_complete(self) -> None:
        """An answer was written; the next request may have come before."""
        self.since = self.loop.time()
        super().on_response_complete()
        if self._half_closed and not self._is_answering:
            self.transport.close()
        self._time_head()
        self._drop_unread()

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come."""
        super().timeout_keep_alive_handler()
        self._drop_unread()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more: it has gone, or only shut its side and reads on. Returns whether the connection stays open.

        Both look the same until something is sent. So an interim answer is, which every client of HTTP/1.1 passes over, and the machine of
        one that has gone answers with a reset, which ends the next writing.
        """
        whole = self._is_answering and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        if not self._half_closed and whole and not self.cycle.response_started and self.conn.their_http_version == b"1.1":
            self._half_closed = True
            self._look_for_client(_LOOK_AFTER_S)
        return self._half_closed

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._stop_timing()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered with the error object too, and closed."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun, and this one would stand in its middle
            self.abort()
            return
        refusal = RefusedError(400, f"{msg} It must be HTTP/1.1 with a head of at most {MAX_HEAD:,} bytes.", code="invalid_http").response
        headers = [*refusal.raw_headers, *((name.lower().encode(), value.encode()) for name, value in ANSWER_HEADERS.items())]
        head = h11.Response(status_code=400, headers=[*headers, (b"connection", b"close")], reason=b"Bad Request")
        for event in (head, h11.Data(data=bytes(refusal.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._drop_unread()

    # ------------------------------------------------------------------ how

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _time_head(self) -> None:
        """From connecting, or from its first byte, a request has so long to show its whole head; the rest of a refused body, too."""
        begun = self.cycle is None or self.conn.their_state is not h11.IDLE or bool(self.conn.trailing_data[0])
        if self._is_answering or not begun:
            self._stop_timing()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self.abort)

    def _stop_timing(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drop_unread(self) -> None:
        """A connection that is closed once its answer is read is not kept for ever."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.loop.call_later(UNREAD_WITHIN_S, self.transport.abort)

    def _look_for_client(self, after_s: float) -> None:
        """Write an interim answer now and then, until the answer itself begins."""
        if self.transport.is_closing() or self.cycle.response_started:
            return
        self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b"")
        self.loop.call_later(after_s, self._look_for_client, min(2 * after_s, _LOOK_WITHIN_S))


def make_room(connections: Collection[Connection], most: int) -> bool:
    """Whether one more fits beside these; where they are ``most``, the one that has awaited its client the longest is closed for it."""
    if len(connections) < most:
        return True
    waiting = [each for each in connections if each.awaits_client]
    if not waiting:
        return False
    min(waiting, key=lambda each: each.since).abort()
    return True
