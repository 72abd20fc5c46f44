"""A stand-in for the server behind the page: the bundled pair's real answers, streamed in the server's shapes, or what a test puts in.

One answer at a time, over the standard library's HTTP server. ``python tests/page_server.py [PORT]`` serves the page to look at it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import speccascade_local as sc
from speccascade_local import methods
from speccascade_local.errors import SpeccascadeError
from speccascade_local.reply import Chunk, Token
from speccascade_local.runtime import Runtime

PAGE = Path(sc.__file__).parent / "server" / "page"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-ancestors 'none'"


class PageServer:
    """Serves the page and answers its requests until it is closed. ``url`` is where."""

    def __init__(self, runtime: Runtime, port: int = 0) -> None:
        self.runtime = runtime
        self.requests: list[dict[str, Any]] = []  # the bodies that came
        self.pairs = [{"name": "demo", "rule": "token_v3:0.8", "drafter": "drafter.gguf", "expert": "expert.gguf"}]
        self.pause_s = 0.0  # before each block
        self.scripted: list[Any] = []  # answers in place of the pair's: a list of events, or a status with an error's sentence
        self.left = 0  # streams that the other side ended
        self._http = self._listen(port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def _listen(self, port: int) -> ThreadingHTTPServer:
        http = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"page_server": self}))
        http.daemon_threads = True
        Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return http

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def come_back(self) -> None:
        self._http = self._listen(self._http.server_port)

    def events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What is streamed for a request."""
        asked = body["speccascade"]
        settings = {"temperature": body["temperature"], "max_tokens": body["max_tokens"], "seed": body.get("seed", 7)}
        if asked["rule"] == "expert":
            settings |= {"rule": "strict", "block_size": 0}
        else:
            settings |= {"rule": asked["rule"], "block_size": asked.get("block_size", "auto")}
        settings |= {"logprobs": body.get("top_logprobs"), "model_logprobs": asked["model_logprobs"]}
        for chunk in self.runtime.stream(self.runtime.chat_ids(body["messages"]), **settings):
            yield event(chunk)


def event(chunk: Chunk) -> dict[str, Any]:
    """A chunk of the stream, as OpenAI has it, and what is ours beside it."""
    extra: dict[str, Any] = {"tokens": [told(token) for token in chunk.tokens]}
    if chunk.finish_reason:
        extra["stats"] = chunk.stats.counts() | chunk.stats.clocks()
    choice = {"index": 0, "delta": {"content": chunk.text}, "finish_reason": chunk.finish_reason}
    return {"object": "chat.completion.chunk", "choices": [choice], "speccascade": extra}


def told(token: Token) -> dict[str, Any]:
    """One token, as the page gets it."""
    names = ("dropped", "tv", "expert_logprob", "drafter_logprob")
    found = {"text": token.text, "origin": token.origin} | {name: getattr(token, name) for name in names}
    both = {"expert": token.expert_logprobs, "drafter": token.drafter_logprobs}
    return found | {"top": {role: [[c.text, c.logprob] for c in each.top] for role, each in both.items() if each}}


def rules() -> list[dict[str, Any]]:
    """The rules with the range of their first dial; null where a range has no end."""
    found = []
    for method in methods.RULES.values():
        name, dial = next(iter(method.dials.items()), (None, None))
        ends = {"low": dial.low, "high": dial.high} if dial else {}
        told = {key: None if abs(end) == float("inf") else end for key, end in ends.items()}
        found.append(
            {
                "name": method.name,
                "trade": method.trade,
                "example": method.example,
                "dial": dial and {"name": name, "whole": dial.whole, "allowed": dial.allowed()} | told,
            }
        )
    return found


class Handler(BaseHTTPRequestHandler):
    page_server: PageServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            self._send(200, b"{}", "application/json")
        elif path == "/api/pairs":
            self._send_json(200, {"pairs": self.page_server.pairs, "rules": rules()})
        elif path == "/" or (path.startswith("/static/") and (PAGE / path[8:]).parent == PAGE and (PAGE / path[8:]).is_file()):
            file = PAGE / (path[8:] or "index.html")
            self._send(200, file.read_bytes(), TYPES[file.suffix])
        else:
            self._send_json(404, {"error": {"message": f"nothing at {path}"}})

    def do_POST(self) -> None:
        server = self.page_server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append(body)
        scripted = server.scripted.pop(0) if server.scripted else None
        if isinstance(scripted, tuple):
            status, sentence = scripted
            self._send_json(status, {"error": {"message": sentence, "type": "any", "param": None, "code": None}}, {"Retry-After": "3"})
            return
        try:
            events = iter(scripted) if scripted is not None else server.events(body)
        except SpeccascadeError as error:
            self._send_json(400, {"error": {"message": str(error)}})
            return
        self._head(200, "text/event-stream", {})
        try:
            self.wfile.write(b": welcome\r\n\r\n")
            for each in events:
                time.sleep(server.pause_s)
                self.wfile.write(f"data: {json.dumps(each)}\r\n\r\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\r\n\r\n")
        except OSError:
            server.left += 1
        finally:
            self.close_connection = True

    def _send_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self._head(status, kind, {"Content-Length": str(len(content)), **(headers or {})})
        self.wfile.write(content)

    def _head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Security-Policy": POLICY, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


if __name__ == "__main__":
    with sc.load() as loaded:
        served = PageServer(loaded, int(sys.argv[1]) if len(sys.argv) > 1 else 0)
        print(served.url)
        try:
            time.sleep(1e9)
        except KeyboardInterrupt:
            served.close()
