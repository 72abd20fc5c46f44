#!/usr/bin/env python3
"""Put a server under load for a while, with patient, slow and leaving clients, and report texts, waits and memory.

    python scripts/verify/server_under_load.py [--slow 64] [--leaving 16] [--seconds 120] [--slots 4]

Serves the bundled pair in a process of its own, whose memory is watched. Slow clients read a line of their stream and then sleep; those
that leave close the connection in the middle. Every complete text is compared with the reply to the same request alone (temperature 0).
Exits with 1 where a text was wrong, a request hung, or an answer was a server error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

import speccascade_local as sc

QUESTIONS = Path(sc.__file__).parent / "demo" / "heldout.jsonl"
HANGS_AFTER_S = 60.0
PAUSE_S = 0.02


@dataclass
class Seen:
    """What clients saw, and the server's memory in bytes by seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    tokens: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)


def body(question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {
        "model": "demo",
        "messages": messages,
        "temperature": 0,
        "max_tokens": 64,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def asked(client: httpx.AsyncClient, question: str, seen: Seen, *, pause_s: float, leaves: bool) -> str | None:
    """The whole text of an answer; None where there is none, and ``seen`` says why."""
    text, begun = [], time.monotonic()
    async with client.stream("POST", "/v1/chat/completions", json=body(question)) as response:
        if response.status_code != 200:
            seen.outcomes[f"status {response.status_code}"] += 1
            await asyncio.sleep(float(response.headers.get("retry-after", "1")) * random.random())
            return None
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if not text:
                seen.first_s.append(time.monotonic() - begun)
            event = json.loads(line[6:])
            if "error" in event:
                seen.outcomes["error in a stream"] += 1
                return None
            for choice in event["choices"]:
                text.append(choice["delta"].get("content") or "")
            seen.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
            if leaves and random.random() < 0.3:
                seen.outcomes["left"] += 1
                return None
            if pause_s:
                await asyncio.sleep(pause_s)
    return "".join(text)


async def client_of(url: str, expected: dict[str, str], seen: Seen, end: float, *, pause_s: float, leaves: bool) -> None:
    """Asks until the end."""
    while time.monotonic() < end:
        question = random.choice(list(expected))
        async with httpx.AsyncClient(base_url=url, timeout=HANGS_AFTER_S) as client:
            try:
                text = await asyncio.wait_for(asked(client, question, seen, pause_s=pause_s, leaves=leaves), HANGS_AFTER_S)
            except (httpx.HTTPError, asyncio.TimeoutError) as error:
                seen.outcomes[f"failed: {type(error).__name__}"] += 1
                continue
        if text is not None:
            seen.outcomes["right" if text == expected[question] else "wrong"] += 1


async def watched(server: psutil.Process, seen: Seen, begun: float, end: float) -> None:
    while time.monotonic() < end:
        seen.memory.append((time.monotonic() - begun, server.memory_info().rss))
        await asyncio.sleep(0.5)


async def load(url: str, pid: int, options: argparse.Namespace) -> Seen:
    questions = [json.loads(line)["prompt"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[: options.questions]]
    quiet = Seen()
    async with httpx.AsyncClient(base_url=url, timeout=HANGS_AFTER_S) as client:
        expected = {question: str(await asked(client, question, quiet, pause_s=0, leaves=False)) for question in questions}
    seen, begun = Seen(), time.monotonic()
    end = begun + options.seconds
    slow = [client_of(url, expected, seen, end, pause_s=PAUSE_S, leaves=False) for _ in range(options.slow)]
    leaving = [client_of(url, expected, seen, end, pause_s=0, leaves=True) for _ in range(options.leaving)]
    await asyncio.gather(*slow, *leaving, watched(psutil.Process(pid), seen, begun, end))
    async with httpx.AsyncClient(base_url=url, timeout=HANGS_AFTER_S) as client:
        left = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    seen.outcomes["still running"] = int(sum(map(float, left)))
    return seen


def print_verdict(seen: Seen, seconds: float) -> bool:
    """Print it; whether all was well."""
    half = [(at, size) for at, size in seen.memory if at > seconds / 2]
    slope = np.polyfit(*zip(*half), 1)[0] * 60 / 1e6 if len(half) > 2 else float("nan")
    first = np.quantile(seen.first_s, [0.5, 0.95]) if seen.first_s else [float("nan")] * 2
    print("  ".join(f"{name}: {count}" for name, count in sorted(seen.outcomes.items())))
    rate, (begun, ended) = seen.tokens / seconds, (seen.memory[place][1] / 1e6 for place in (0, -1))
    print(f"time to first text: p50 {1e3 * first[0]:.0f} ms, p95 {1e3 * first[1]:.0f} ms; {rate:.0f} tokens/s of whole answers")
    print(f"memory: {begun:.0f} MB at first, {ended:.0f} MB at last, {slope:+.2f} MB a minute in the second half")
    bad = {"wrong", "still running", "error in a stream"} | {name for name in seen.outcomes if name.startswith(("failed", "status 5"))}
    return not any(seen.outcomes[name] for name in bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", type=int, default=64)
    parser.add_argument("--leaving", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--questions", type=int, default=24)
    options = parser.parse_args()
    serve = [sys.executable, "-m", "speccascade_local", "serve", "--port", "0", "--threads", "1", "--slots", str(options.slots)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = re.search(r"http://[\d.:]+", server.stdout.readline())
        if url is None:
            return 1
        try:
            seen = asyncio.run(load(url[0], server.pid, options))
        finally:
            server.terminate()
    return 0 if print_verdict(seen, options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
