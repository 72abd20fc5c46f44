"""A server on a free port, in a thread of this process, for tests that use it as programs do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

import speccascade_local as sc
from speccascade_local.server.app import make_app
from speccascade_local.server.engine import Engine
from speccascade_local.server.http.listen import Server, address_of, bind

QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]
PATIENCE_S = 60.0  # after that something hangs


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    port: int
    engine: Engine

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Post a JSON value, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        return httpx.post(self.url + path, content=content, headers=headers, timeout=PATIENCE_S, **options)

    def chat(self, **fields: Any) -> httpx.Response:
        """Ask a question at temperature 0."""
        return self.post("/v1/chat/completions", {"model": "demo", "messages": QUESTION, "temperature": 0, **fields})

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)


@contextmanager
def serving(pairs: Mapping[str, sc.Runtime] | None = None, *, slots: int = 2, queue: int = 64, **options: Any) -> Iterator[Served]:
    """Serve these pairs, or the bundled one, with these options of make_app, for the block."""
    listening = bind("127.0.0.1", 0)
    with ExitStack() as opened:
        pairs = pairs or {"demo": opened.enter_context(sc.load(n_threads=1, timelines=slots))}
        engine = opened.enter_context(Engine(pairs, slots=slots, queue=queue))
        server = Server(make_app(engine, **options), engine)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Served(address_of(listening), listening.getsockname()[1], engine)
        finally:
            server.should_exit = True
            thread.join()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Fail unless ``holds`` becomes true within a minute."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.01)


def events(text: str) -> list[dict[str, Any]]:
    """Return a stream's events without its end."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
