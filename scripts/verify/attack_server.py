#!/usr/bin/env python3
"""Send requests that are meant to stop a server, one kind after the other, and report what other clients and the operator notice.

    python scripts/verify/attack_server.py [--only NAME] [--write docs/results/attacks.txt]

Each attack gets a new server of the bundled pair. While it runs, another client asks for /health and for plain answers; the slowest of
each is shown. Then follows the memory of the server and its processes 10 s later, compared with before. A second server gets SIGTERM
during the same attack. Exits with 1 where a bar is missed or an answer is a server error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

import speccascade_local as sc

#: Bars: seconds for another client's /health and plain answer, and for SIGTERM; MB that stay.
HEALTH_S, ANSWER_S, END_S, MEMORY_MB = 1.0, 2.0, 5.0, 100.0
SETTLE_S = 10.0
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]
Body = dict[str, Any]


def chain(length: int) -> str:
    """Rules of a grammar that each ask for the next."""
    rules = [f"r{n} ::= r{n - 1}" for n in range(length - 1, 0, -1)]
    return "\n".join([f"root ::= r{length - 1}", *rules, 'r0 ::= "a"'])


def referring(length: int) -> Body:
    """Schemas that each refer to the next."""
    links = {str(n): {"type": "array", "items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(length)}
    return {"$ref": "#/$defs/0", "$defs": links | {str(length): {"type": "null"}}}


def schema(value: Any) -> Body:
    """A chat under a schema."""
    return {"messages": QUESTION, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def multiples(*numbers: int) -> Body:
    return {"allOf": [{"type": "integer", "multipleOf": number} for number in numbers]}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


#: By name: where it is sent, what, and how many at once.
ATTACKS: dict[str, tuple[str, Callable[[], Body | bytes], int]] = {
    "rules of a grammar, each asking for the next": (TEXT, lambda: {"prompt": "Who", "grammar": chain(5500)}, 4),
    "references of a schema, each to the next": (CHAT, lambda: schema(referring(20_000)), 4),
    "multiples of a large prime": (TEXT, lambda: {"prompt": "Who", "json_schema": {"type": "integer", "multipleOf": 999_983}}, 6),
    "multiples of a prime that passes": (TEXT, lambda: {"prompt": "Who", "json_schema": {"type": "integer", "multipleOf": 99_991}}, 6),
    "multiples of four primes": (TEXT, lambda: {"prompt": "Who", "json_schema": multiples(9973, 9967, 9949, 9941)}, 6),
    "199 patterns at once": (
        CHAT,
        lambda: schema({"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{n}}}$"} for n in range(199)]}),
        6,
    ),
    "patterns that grow late": (TEXT, lambda: {"prompt": "Who", "grammar": 'root ::= "a"{8} ([ab]* "a" [ab]{60} "c")'}, 6),
    "a literal of 99 kB": (TEXT, lambda: {"prompt": "Who", "grammar": f'root ::= "{"ab" * 49_000}"'}, 6),
    "an enum of 150,000 texts": (CHAT, lambda: schema({"enum": [f"v{n}" for n in range(150_000)]}), 4),
    "a constant of 3 MB": (CHAT, lambda: schema({"const": "x" * 3_000_000}), 4),
    "a million texts for a prompt": (TEXT, lambda: {"prompt": ["a"] * 999_001}, 2),
    "a million wrong ids": (TEXT, lambda: {"prompt": [-1] * 1_300_000}, 2),
    "a million wrong ids to detokenize": ("/detokenize", lambda: {"tokens": [-1] * 900_001}, 2),
    "1,900 messages of 1,001 wrong parts": (
        CHAT,
        lambda: {"messages": [{"role": "user", "content": [1] * 1001} for _ in range(1900)]},
        2,
    ),
    "a tool with a schema 900 deep": (
        CHAT,
        lambda: {"messages": QUESTION, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": deep(900)}}}]},
        2,
    ),
    "4 MB of brackets": (CHAT, lambda: b"[" * 3_999_000, 2),
    "4 MB of keys": (CHAT, lambda: {"messages": QUESTION, **{f"k{n}": n for n in range(250_000)}}, 2),
    "4 MB of biases": (CHAT, lambda: {"messages": QUESTION, "logit_bias": {str(n): 1 for n in range(250_000)}}, 2),
}


@dataclass
class Seen:
    """What an attack brought. answers: status and message. worst_s: of another client. kept_mb, end_s: see the module."""

    answers: Counter[str] = field(default_factory=Counter)
    health_s: float = 0.0
    plain_s: float = 0.0
    kept_mb: float = 0.0
    end_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Note which bars are missed."""
        bars = {"health": (self.health_s, HEALTH_S), "answer": (self.plain_s, ANSWER_S), "memory": (self.kept_mb, MEMORY_MB)}
        bars["SIGTERM"] = (self.end_s, END_S)
        self.faults += [f"{name} {value:.1f}, bar {bar:g}" for name, (value, bar) in bars.items() if value > bar]
        self.faults += [answer for answer in self.answers if answer.startswith(("500", "502", "RemoteProtocolError", "ConnectError"))]


class Server:
    """A server in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "speccascade_local", "serve", "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)", self.process.stdout.readline())
        assert found, "the server did not start"
        self.url, self.port = found[0], int(found[2])

    def memory_mb(self) -> float:
        """Of it and its processes; 0 when it is gone."""
        total = 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += each.memory_info().rss
        return total / 1e6

    def end(self) -> float:
        """Ask it to end; the seconds that it took, at most 60."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        seconds = time.monotonic() - begun
        self.process.kill()
        self.process.wait()
        return seconds


def ask(server: Server, path: str, content: bytes, seconds: float) -> str:
    """The status and the beginning of the message of one request."""
    headers = {"content-type": "application/json"}
    try:
        answer = httpx.post(server.url + path, content=content, headers=headers, timeout=seconds)
    except httpx.HTTPError as error:
        return type(error).__name__
    said = ""
    if answer.status_code >= 400:
        with contextlib.suppress(ValueError, AttributeError):  # else it is no error object
            said = answer.json()["error"]["message"]
    return f"{answer.status_code} {said:.110}".strip()


@contextlib.contextmanager
def another_client(server: Server, seen: Seen) -> Iterator[None]:
    """Ask for /health and for plain answers from another client within the block, and record the slowest of each."""
    done = threading.Event()
    plain = json.dumps({"model": "demo", "messages": QUESTION, "max_tokens": 8, "temperature": 0}).encode()

    def watch(name: str, request: Callable[[], str], pause_s: float) -> None:
        while not done.is_set():
            begun = time.monotonic()
            answer = request()
            setattr(seen, name, max(getattr(seen, name), time.monotonic() - begun))
            if answer != "200" and not done.is_set():
                seen.faults.append(f"another client got {answer}")
                return
            done.wait(pause_s)

    def health() -> str:
        try:
            return str(httpx.get(f"{server.url}/health", timeout=60).status_code)
        except httpx.HTTPError as error:
            return type(error).__name__

    watchers = [
        threading.Thread(target=watch, args=("health_s", health, 0.05)),
        threading.Thread(target=watch, args=("plain_s", lambda: ask(server, CHAT, plain, 60), 0.1)),
    ]
    for watcher in watchers:
        watcher.start()
    try:
        yield
    finally:
        done.set()
        for watcher in watchers:
            watcher.join()


def attacked(path: str, content: bytes, at_once: int) -> Seen:
    """Run one attack: check its answers, another client while it runs, memory afterwards, and SIGTERM during it."""
    seen, server = Seen(), Server()
    plain = json.dumps({"model": "demo", "messages": QUESTION, "max_tokens": 8}).encode()
    ask(server, CHAT, plain, 60)
    before = server.memory_mb()
    with another_client(server, seen), ThreadPoolExecutor(at_once) as pool:
        for answer in pool.map(lambda _: ask(server, path, content, 120), range(at_once)):
            seen.answers[answer] += 1
    time.sleep(SETTLE_S)
    seen.kept_mb = server.memory_mb() - before
    server.end()
    server = Server()
    with ThreadPoolExecutor(at_once) as pool:
        asked = [pool.submit(ask, server, path, content, 30) for _ in range(at_once)]
        time.sleep(1.0)
        seen.end_s = server.end()
        for each in asked:
            each.result()
    seen.judge()
    return seen


def half_sent(at_once: int = 511) -> Seen:
    """Connections that ask once and then send one byte of the next request."""
    seen, server = Seen(), Server()
    ask(server, CHAT, json.dumps({"model": "demo", "messages": QUESTION, "max_tokens": 8}).encode(), 60)
    before, held = server.memory_mb(), []
    with another_client(server, seen):
        for _ in range(at_once):
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                connection.recv(4096)
                connection.sendall(b"G")
                held.append(connection)
        time.sleep(SETTLE_S)
    seen.answers[f"{len(held)} connections held"] = 1
    seen.kept_mb = server.memory_mb() - before
    seen.end_s = server.end()
    for connection in held:
        connection.close()
    seen.judge()
    return seen


def main() -> int:
    """1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="attacks with this in their name")
    parser.add_argument("--write", type=Path, help="a file for what is shown")
    options = parser.parse_args()
    lines = [
        f"# python scripts/verify/attack_server.py    speccascade-local {sc.__version__}, {platform.machine()}, {os.cpu_count()} cores",
        f"# bars: health {HEALTH_S:g} s, plain answer {ANSWER_S:g} s, memory {MEMORY_MB:g} MB, SIGTERM {END_S:g} s",
        f"{'attack':46} {'health':>7} {'plain':>7} {'memory':>8} {'SIGTERM':>8}  answers",
    ]
    print("\n".join(lines), flush=True)
    failed = False
    names = [*ATTACKS, "half-sent second requests"]
    for name in names:
        if options.only and options.only not in name:
            continue
        if name in ATTACKS:
            path, body, at_once = ATTACKS[name]
            made = body()
            if not isinstance(made, bytes):
                made = json.dumps({"model": "demo", "max_tokens": 8} | made, separators=(",", ":")).encode()
            seen = attacked(path, made, at_once)
        else:
            seen = half_sent()
        answers = "; ".join(f"{count} x {answer}" for answer, count in seen.answers.items())
        line = f"{name:46} {seen.health_s:5.2f} s {seen.plain_s:5.2f} s {seen.kept_mb:+5.0f} MB {seen.end_s:6.2f} s  {answers}"
        for fault in seen.faults:
            line += f"\n    MISSED: {fault}"
        failed |= bool(seen.faults)
        print(line, flush=True)
        lines.append(line)
    if options.write:
        options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
