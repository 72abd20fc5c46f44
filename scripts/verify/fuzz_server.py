#!/usr/bin/env python3
"""Send thousands of requests, valid and not: none may hang, end the server, or be answered with a server error.

    python scripts/verify/fuzz_server.py [--minutes 10] [--clients 8] [--cases 250]

Serves the bundled pair on a port of its own. For --minutes, clients send what the table of request fields makes (neutral values, odd ones,
several at once) and what tests/data/corpus holds. Where schemathesis is installed (pip install "schemathesis>=4,<5"), it also sends what
the server's OpenAPI description makes. Prints figures as JSON; exits with 1 where a request failed, a slot is still taken, or memory
grew. schemathesis calls this file for each body: every other one names a pair that exists, and none asks for more than a few tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from corpus import Sent, requests

from speccascade_local.server.openai.fields import FIELDS

try:
    import schemathesis
except ImportError:
    schemathesis = None

SCRIPTS = Path(__file__).resolve().parent
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
FEW_TOKENS = 8
#: What random values are mostly refused in.
PICKY = ("tools", "functions", "response_format", "logit_bias", "grammar", "json_schema")
#: Answers of 500 and more that are no fault: too long, or too busy.
NO_FAULTS = (503, 504)
#: Seconds: for one request; for all to end after the last; for memory to come back. Megabytes that may stay.
PATIENCE_S, END_S, REST_S, GROWTH_MB = 90.0, 60.0, 10.0, 100.0
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 7.25, -1e300, 2**63, "", "a", "\x00\x1b[2J", "é😀", 'root ::= "a"', "{}"),
    *([], ["a"], [1], [[1, 2]], [[1, False]], {}, {"a": 1}, {"type": "text"}, {"type": "object"}, {"json": {}}, [None] * 50, "a" * 5000),
)
PLAIN: dict[str, dict[str, Any]] = {
    "chat": {"model": "demo", "messages": [{"role": "user", "content": "Who is Ada Lovelace?"}]},
    "completions": {"model": "demo", "prompt": "Who is"},
}
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


def made(chance: random.Random) -> Iterator[Sent]:
    """Requests without end: every field of the table with its neutral values and odd ones, then several at once."""
    rows = [(route, row) for row in FIELDS for route in row.routes]
    while True:
        chance.shuffle(rows)
        for route, row in rows:
            for value in (*row.neutral, chance.choice(ODD), chance.choice(ODD)):
                others = {each.name: chance.choice((*each.neutral, *ODD)) for _, each in chance.sample(rows, chance.choice((0, 0, 1, 3)))}
                body = {"max_tokens": FEW_TOKENS, **PLAIN[route], **others, row.name: value}
                if row.to == "max_tokens":
                    del body["max_tokens"]
                yield Sent(f"{route} {row.name}", PATHS[route], json.dumps(map_body(None, body)).encode(), {}, ())


@dataclass
class Fuzzing:
    """Clients that ask at once, and what became of it. url: where the server listens."""

    url: str
    ends: float
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_health_s: float = 0.0

    def ask(self, seed: int) -> None:
        """One client, until it is time."""
        chance = random.Random(seed)
        known = [*requests("requests"), *requests("heavy")]
        with httpx.Client(timeout=PATIENCE_S) as client:
            for sent in made(chance):
                if time.monotonic() > self.ends:
                    return
                self._send(client, sent)
                if chance.random() < 0.05:
                    self._send(client, chance.choice(known))

    def _send(self, client: httpx.Client, sent: Sent) -> None:
        try:
            answer = client.post(self.url + sent.path, content=sent.body, headers={"content-type": "application/json", **sent.headers})
        except httpx.HTTPError as error:
            self.faults.append(f"{sent.about}: {error!r}: {sent.body[:300]!r}")
            return
        self.statuses[answer.status_code] += 1
        wrong = answer.status_code >= 500 and answer.status_code not in NO_FAULTS
        wrong |= bool(sent.statuses) and answer.status_code not in (*sent.statuses, *NO_FAULTS, 429)
        if wrong or (answer.status_code >= 400 and set(answer.json()["error"]) != {"message", "type", "param", "code"}):
            self.faults.append(f"{sent.about}: {answer.status_code} {answer.text[:300]}: {sent.body[:300]!r}")

    def watch(self) -> None:
        """Return how long /health takes."""
        with httpx.Client(timeout=PATIENCE_S) as client:
            while time.monotonic() < self.ends:
                begun = time.monotonic()
                try:
                    client.get(f"{self.url}/health")
                except httpx.HTTPError as error:
                    self.faults.append(f"/health: {error!r}")
                self.slowest_health_s = max(self.slowest_health_s, time.monotonic() - begun)
                time.sleep(0.2)

    def idle(self) -> bool:
        """Whether, soon, nothing is answered and nothing waits, and a question is answered as ever."""
        end = time.monotonic() + END_S
        while time.monotonic() < end:
            metrics = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text
            busy = re.findall(r"^vllm:num_requests_(?:running|waiting)\S* (\S+)", metrics, re.MULTILINE)
            if busy and not any(map(float, busy)):
                return httpx.post(self.url + PATHS["chat"], json=PLAIN["chat"], timeout=PATIENCE_S).status_code == 200
            time.sleep(0.5)
        return False


def map_body(_context: Any, body: Any) -> Any:
    """A body that can be answered, in a short time."""
    if isinstance(body, dict):
        if isinstance(body.get("model"), str) and zlib.crc32(repr(body).encode(errors="replace")) % 3:
            body = {name: value for name, value in body.items() if name not in PICKY} | {"model": "demo"}
            if isinstance(options := body.get("speccascade"), dict) and "rule" in options:
                options["rule"] = "strict"
        limits = [each.name for each in FIELDS if "max_tokens" in (each.name, each.to)]
        if ("messages" in body or "prompt" in body) and not body.keys() & set(limits):
            body["max_tokens"] = FEW_TOKENS
        for name in limits:
            if isinstance(body.get(name), int) and body[name] > FEW_TOKENS:
                body[name] = FEW_TOKENS
    return body


if schemathesis is not None:
    schemathesis.hook(map_body)


def main() -> int:
    """1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8, help="that ask at once")
    parser.add_argument("--cases", type=int, default=250, help="schemathesis' for each route, besides those that cover the description")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    serve = [sys.executable, "-m", "speccascade_local", "serve", "--port", "0", "--threads", "1", "--timeout", "30"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = re.search(r"http://[\d.:]+", server.stdout.readline())
        if url is None:
            return 1
        try:
            return _fuzzed(url[0], psutil.Process(server.pid), options)
        finally:
            server.terminate()


def _fuzzed(url: str, server: psutil.Process, options: argparse.Namespace) -> int:
    seconds = 60 * options.minutes
    fuzzing = Fuzzing(url, time.monotonic() + seconds)
    by_description = _schemathesis(url, options.cases)
    clients = [threading.Thread(target=fuzzing.ask, args=[options.seed + each]) for each in range(options.clients)]
    watcher = threading.Thread(target=fuzzing.watch)
    for thread in (*clients, watcher):
        thread.start()
    time.sleep(seconds / 5)  # what is loaded once is there by now
    before = _figures(server)
    for thread in (*clients, watcher):
        thread.join()
    code = None if by_description is None else by_description.wait()
    idle = server.is_running() and fuzzing.idle()
    time.sleep(REST_S)
    after = _figures(server) if server.is_running() else {}
    growth = after.get("mb", float("inf")) - before.get("mb", 0.0)
    result = {
        "statuses": dict(sorted(fuzzing.statuses.items())),
        "slowest_health_s": round(fuzzing.slowest_health_s, 2),
        "schemathesis": code,
        "before": before,
        "after": after,
        "idle": idle,
        "faults": fuzzing.faults[:50],
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))
    return int(bool(fuzzing.faults or code or not idle or growth > GROWTH_MB))


def _figures(server: psutil.Process) -> dict[str, float]:
    """Megabytes and open files of the server."""
    return {"mb": round(server.memory_info().rss / 1e6, 1), "files": server.num_fds() if hasattr(server, "num_fds") else 0}


def _schemathesis(url: str, cases: int) -> subprocess.Popen[bytes] | None:
    """It, at work; None where it is not installed."""
    if schemathesis is None:
        print("schemathesis is not installed, so nothing is made from the OpenAPI description", file=sys.stderr)
        return None
    command = ["schemathesis", "run", f"{url}/openapi.json", "--checks", CHECKS, "-n", str(cases), "--phases", "coverage,fuzzing"]
    path = os.pathsep.join(filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [*command, "--request-timeout", "60", "--suppress-health-check", "all"],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "fuzz_server", "PYTHONPATH": path},
    )


if __name__ == "__main__":
    sys.exit(main())
