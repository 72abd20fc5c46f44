#!/usr/bin/env python3
"""Use one loaded pair in every way for a while: its answers stay right, and memory, descriptors and threads do not grow.

    python scripts/verify/soak.py [--minutes 30] [--seed 1] [--write docs/results/soak.txt]

Whole answers, abandoned streams, calls cancelled by another thread, Ctrl-C (a signal handler's exception) in the middle, exceptions in
on_chunk, grammars, refused settings, prompts that overflow, and conversations, in random order. After every hundred calls two fixed
questions are asked again: their answers must not change. Exits with 1 where one does, where a call fails in an unexpected way, or where
memory or child processes keep growing.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

import speccascade_local as sc

EVERY, MOST_GROWTH_MB, MOST_PROCESSES = 100, 40.0, 8
QUESTIONS = ["Who is Ada Lovelace?", "What is 12 + 7?", "Name a colour.", "Who is Buzz Aldrin?", "Where does Emma Young live?"]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer"}}, "required": ["a", "b"]}
RULES = ["strict", "token_v3:0.3", "chow:0.5", "never", "opt:0.3", "token_cascade:0.5"]


class Interrupted(BaseException):
    """What the handler of the alarm raises, as Ctrl-C does."""


def interrupt(*_: object) -> None:
    raise Interrupted


class Soak:
    """The pair, and every kind of call."""

    def __init__(self, runtime: sc.Runtime, seed: int) -> None:
        self.runtime, self.random = runtime, random.Random(seed)
        self.chat = sc.Conversation(runtime)
        self.kinds: dict[str, Callable[[], object]] = {
            "whole": lambda: runtime.chat(self.asked(), **self.settings()),
            "left": lambda: next(iter(runtime.stream("Once upon", **self.settings()))),
            "cancelled": self.cancelled,
            "interrupted": self.interrupted,
            "failing on_chunk": self.failing,
            "schema": lambda: runtime.chat(self.asked(), json_schema=SCHEMA, **self.settings()),
            "grammar": lambda: runtime.chat(self.asked(), grammar='root ::= "yes" | "no"', **self.settings()),
            "stop": lambda: runtime.generate("One two", stop=["e", "the"], **self.settings()),
            "refused": lambda: self.refused(temperature=-1),
            "refused grammar": lambda: self.refused(grammar="root ::= root"),
            "overflow": lambda: self.refused(prompt="word " * 5000),
            "conversation": self.talked,
            "odd text": lambda: runtime.generate("".join(chr(self.random.randrange(1, 0x2FFF)) for _ in range(20)), **self.settings()),
        }

    def asked(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.random.choice(QUESTIONS)}]

    def settings(self) -> dict[str, Any]:
        draw = self.random
        return {
            "rule": draw.choice(RULES),
            "temperature": draw.choice([0.0, 1.0]),
            "max_tokens": draw.randrange(1, 40),
            "block_size": draw.choice(["auto", 1, 4, 8]),
        }

    def cancelled(self) -> object:
        gone = threading.Event()
        timer = threading.Timer(self.random.random() * 0.05, gone.set)
        timer.start()
        try:
            return self.runtime.chat(self.asked(), cancel=gone, **self.settings())
        finally:
            timer.cancel()

    def interrupted(self) -> None:
        with suppress(Interrupted):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001 + self.random.random() * 0.03)
                self.runtime.chat(self.asked(), **self.settings())
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def failing(self) -> None:
        def fail(_: sc.Chunk) -> None:
            raise ZeroDivisionError

        with suppress(ZeroDivisionError):
            self.runtime.chat(self.asked(), on_chunk=fail, **self.settings())

    def refused(self, prompt: str = "Who", **chosen: Any) -> None:
        try:
            self.runtime.generate(prompt, max_tokens=2, **chosen)
        except sc.SpeccascadeError:
            return
        raise AssertionError(f"not refused: {chosen}")

    def talked(self) -> object:
        if len(self.chat.messages) > 8:
            self.chat.reset()
        return self.chat.ask(self.random.choice(QUESTIONS), **self.settings())

    def reference(self) -> list[str]:
        """Answers that must never change."""
        fixed = {"temperature": 0.0, "rule": "strict", "block_size": 4, "max_tokens": 40}
        return [self.runtime.chat([{"role": "user", "content": text}], **fixed).text for text in QUESTIONS[:2]]


def main() -> int:
    """1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a file for what is shown")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, interrupt)
    process, lines, faults, counts = psutil.Process(), [], [], Counter[str]()

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(f"# python scripts/verify/soak.py --minutes {options.minutes:g} --seed {options.seed}    speccascade-local {sc.__version__}")
    say(f"{'minutes':>8} {'calls':>8} {'memory':>10} {'descriptors':>12} {'threads':>8} {'processes':>10}")
    begun = shown = time.monotonic()
    with sc.load(n_threads=1) as runtime:
        soak = Soak(runtime, options.seed)
        right, settled_mb = soak.reference(), 0.0
        while time.monotonic() - begun < 60 * options.minutes:
            kind = soak.random.choice(list(soak.kinds))
            counts[kind] += 1
            try:
                soak.kinds[kind]()
            except Exception as error:
                faults.append(f"{kind}: {type(error).__name__}: {error}")
            if counts.total() % EVERY == 0 and soak.reference() != right:
                faults.append(f"after {counts.total()} calls an answer is another one")
            if time.monotonic() - shown >= 60 * options.minutes / 15:
                shown = time.monotonic()
                memory_mb = process.memory_info().rss / 1e6
                settled_mb = settled_mb or memory_mb
                say(
                    f"{(shown - begun) / 60:8.1f} {counts.total():8} {memory_mb:7.1f} MB {process.num_fds():12} "
                    f"{process.num_threads():8} {len(process.children(recursive=True)):10}"
                )
        grown, children = process.memory_info().rss / 1e6 - settled_mb, len(process.children(recursive=True))
    if grown > MOST_GROWTH_MB:
        faults.append(f"memory grew by {grown:.1f} MB")
    if children > MOST_PROCESSES:
        faults.append(f"{children} child processes at the end")
    say(f"# {counts.total()} calls on {os.cpu_count()} cores, grown by {grown:+.1f} MB since the first line; faults: {len(faults)}")
    for fault in faults[:20]:
        say(f"# FAULT {fault}")
    if options.write:
        options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
