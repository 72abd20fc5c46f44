"""Connections over uvicorn's HTTP/1.1 protocol: how long each waits for its client, and which one is closed if there are too many.

A connection waits for its client between requests, until a request is complete, and while its response is unread. Only such a connection
is closed, so that a client that waits for a response gets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import RefusedError
from .policy import peer_of
from .security import MAX_HEAD, RESPONSE_HEADERS

#: Maximum number of connections; of one client, only those that wait for it count.
MAX_CONNECTIONS, MAX_PER_PEER = 512, 128
#: Seconds for a request's line and headers from their first byte, between two requests, and to read the end of a response.
HEAD_WITHIN_S, BETWEEN_S, UNREAD_WITHIN_S = 20.0, 30, 60.0
#: Seconds until a client that has sent its last byte is probed, and the longest interval between two probes.
_PROBE_AFTER_S, _MAX_PROBE_S = 0.2, 10.0


class Connection(H11Protocol):
    """One client's connection. It closes if a request's head does not arrive, or if a response is not read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.since = self.loop.time()
        self.peer = ""
        self._head_timer: asyncio.TimerHandle | None = None
        self._half_closed = False

    @property
    def awaits_client(self) -> bool:
        """Whether it is the client's turn: to send a request, the rest of one, or to read."""
        return not self._is_answering or self.conn.their_state is h11.SEND_BODY or self.flow.write_paused

    def abort(self) -> None:
        self.connections.discard(self)
        self.transport.abort()

    # ------------------------------------------------------------------ called by asyncio and uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = peer_of(self.client[0] if self.client else "")
        others = [each for each in cast("set[Connection]", self.connections) if each is not self]
        if make_room([each for each in others if each.peer == self.peer and each.awaits_client], MAX_PER_PEER):
            make_room(others, MAX_CONNECTIONS)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()
        if self._half_closed and not self._is_answering:
            self.transport.close()
        self._time_head()
        self._drop_unread()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._drop_unread()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether to keep the connection of a client that sends no more: it is gone, or only shut its side and still reads.

        Both look the same until something is sent. An interim response is skipped by every HTTP/1.1 client, and if the client is gone, its
        machine answers with a reset that ends the next write.
        """
        is_complete = self._is_answering and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        if not self._half_closed and is_complete and not self.cycle.response_started and self.conn.their_http_version == b"1.1":
            self._half_closed = True
            self._probe_client(_PROBE_AFTER_S)
        return self._half_closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timing()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with the error object too, and close the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # this response would land in the middle of another
            self.abort()
            return
        refusal = RefusedError(400, f"{msg} It must be HTTP/1.1 with a head of at most {MAX_HEAD:,} bytes.", code="invalid_http").response
        headers = [*refusal.raw_headers, *((name.lower().encode(), value.encode()) for name, value in RESPONSE_HEADERS.items())]
        head = h11.Response(status_code=400, headers=[*headers, (b"connection", b"close")], reason=b"Bad Request")
        for event in (head, h11.Data(data=bytes(refusal.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._drop_unread()

    # ------------------------------------------------------------------ timers

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _time_head(self) -> None:
        """Limit the time for a request's head, from connecting or from its first byte, and for the rest of a refused body."""
        has_begun = self.cycle is None or self.conn.their_state is not h11.IDLE or bool(self.conn.trailing_data[0])
        if self._is_answering or not has_begun:
            self._stop_timing()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self.abort)

    def _stop_timing(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drop_unread(self) -> None:
        """Limit how long a closing connection waits for its response to be read."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.loop.call_later(UNREAD_WITHIN_S, self.transport.abort)

    def _probe_client(self, interval_s: float) -> None:
        """Write an interim response now and then, until the response itself begins."""
        if self.transport.is_closing() or self.cycle.response_started:
            return
        self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b"")
        self.loop.call_later(interval_s, self._probe_client, min(2 * interval_s, _MAX_PROBE_S))


def make_room(connections: Collection[Connection], limit: int) -> bool:
    """Return whether one more fits. At the limit, close the connection that has waited the longest for its client."""
    if len(connections) < limit:
        return True
    waiting = [each for each in connections if each.awaits_client]
    if not waiting:
        return False
    min(waiting, key=lambda each: each.since).abort()
    return True
