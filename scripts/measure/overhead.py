"""Measure how long the loop takes beside its two models: every rule, at temperature 0 and 1, with fidelity recorded.

    python scripts/measure/overhead.py [--json]                                    # milliseconds of a block
    python scripts/measure/overhead.py --pair FOLDER [--block-size auto] [--json]  # share of the time of real models, and memory

Without a pair, toy sessions return prepared rows of a real vocabulary's width, and their own time is not counted. The rows resemble a
model's: a broad bulk, a few favourites, the best with a probability of 0.2 to 0.95, and a drafter that nearly agrees. A rule that goes
token by token has blocks of one token; fly, which needs longer blocks, has blocks of 8.

With a pair, such as scripts/measure/scale_pair.py writes, all time outside llama_decode is the loop's. Memory is what the process holds
beside mapped files (Linux only): before models are loaded, after one answer, and after all rules.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import resource
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import llama_cpp
import numpy as np
from rich.console import Console
from rich.table import Table

import speccascade_local as sc
from speccascade_local.decoding.fidelity import Recording
from speccascade_local.decoding.generation import Generation
from speccascade_local.decoding.loop import Block, BlockLoop
from speccascade_local.decoding.stats import Stats
from speccascade_local.decoding.token_loop import token_cascade
from speccascade_local.rules.lossy_acceptance import Fly
from speccascade_local.rules.position_rules import Never
from speccascade_local.rules.registry import examples, parse
from speccascade_local.rules.routes import Route, Signals, TokenCascade
from speccascade_local.tokens.sampler import Sampler

#: Different rows of each model; the text comes by them again and again.
POOL = 24
WARM_UP = 3
PROMPT = "Who is Mozart?"


class Toy:
    """A session that answers with prepared rows, by the length of the text, and takes the time that this takes."""

    def __init__(self, rows: np.ndarray, n_ctx: int) -> None:
        self.rows, self.n_vocab, self.n_ctx = rows, rows.shape[1], n_ctx
        self.tokens: list[int] = []
        self.seconds = 0.0
        self._buffer = np.empty((64, self.n_vocab), np.float32)

    def extend(self, tokens: list[int], keep: int) -> np.ndarray:
        before = time.perf_counter()
        self.tokens += tokens
        for i in range(keep):
            self._buffer[i] = self.rows[(len(self.tokens) - keep + i) % POOL]
        found = self._buffer[:keep]
        self.seconds += time.perf_counter() - before
        return found

    def roll_back(self, length: int) -> None:
        del self.tokens[length:]


def never_ends(_token: int) -> bool:
    return False


def prepared_rows(n_vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the drafter and of the expert. [POOL, n_vocab] float32"""
    rng = np.random.default_rng(0)
    expert = 2 * rng.normal(size=(POOL, n_vocab))
    for row, best in zip(expert, rng.permutation(np.linspace(0.2, 0.95, POOL))):
        bulk = np.log(np.exp(row).sum())
        favourites = rng.choice(n_vocab, size=4, replace=False)
        shares = np.array([best, *(1 - best) * np.array([0.4, 0.2, 0.1])])  # the bulk has the other 0.3 of what the best one leaves
        row[favourites] = bulk + np.log(shares / (0.3 * (1 - best)))
    drafter = expert + 0.5 * rng.normal(size=expert.shape)
    return drafter.astype(np.float32), expert.astype(np.float32)


def measured(spec: str, temperature: float, rows: tuple[np.ndarray, np.ndarray], block_size: int, blocks: int) -> dict[str, Any]:
    """What one method takes; times in milliseconds."""
    method, stats = parse(spec), Stats()
    if isinstance(method, Fly):
        block_size = 8
    drafter, expert = (Toy(each, n_ctx=10**6) for each in rows)
    generation = Generation([1, 2, 3, 4], Sampler(temperature), np.random.default_rng(1), never_ends)
    shared = {"max_tokens": 10**6, "stops": never_ends, "stats": stats, "recording": Recording()}
    found: Iterator[Block]
    if isinstance(method, TokenCascade):
        found = token_cascade(generation, drafter, expert, rule=method, **shared)
    else:
        rule = Never() if isinstance(method, Route) else method
        found = BlockLoop(generation, drafter, expert, rule=rule, block_size=block_size, **shared).decode()
    overheads, faults = [], []
    for _ in range(WARM_UP + blocks):
        before, inside = time.perf_counter(), drafter.seconds + expert.seconds
        faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = next(found)
        if isinstance(method, Route):  # what a whole answer is judged by
            Signals.of(block.verdict.token_ids, block.draft.rows)
        overheads.append(1e3 * (time.perf_counter() - before - (drafter.seconds + expert.seconds - inside)))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before)
    overheads, faults = sorted(overheads[WARM_UP:]), faults[WARM_UP:]
    return {
        "method": spec,
        "temperature": temperature,
        "ms_per_block": mean(overheads),
        "ms_median": overheads[len(overheads) // 2],
        "tokens_per_block": stats.tokens / stats.blocks,
        "page_faults_per_block": mean(faults),
    }


class InsideLlama:
    """Seconds since it was made in which llama_decode ran; once where two models ran at the same time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock, self._running, self._since = threading.Lock(), 0, 0.0
        self._decode = llama_cpp.llama_decode
        llama_cpp.llama_decode = self

    def __call__(self, *given: object) -> int:
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._since = time.perf_counter()
        code: int = self._decode(*given)
        with self._lock:
            self._running -= 1
            if not self._running:
                self.seconds += time.perf_counter() - self._since
        return code


def held_mb() -> float | None:
    """Return the memory of this process that no file backs."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) / 1000 if found else None


class Buffers(logging.Handler):
    """What llama.cpp says, while it loads, that it takes for caches, computing and rows, mapped weights apart. MB by kind."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.mb: dict[str, float] = defaultdict(float)
        log = logging.getLogger("speccascade_local.llama.backend")
        log.addHandler(self)
        log.setLevel(logging.DEBUG)
        log.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"(\S+)\s+(KV|compute|output|model) buffer size\s*=\s*([\d.]+) MiB", record.getMessage())
        if found and not found[1].endswith("Mapped"):
            self.mb[found[2]] += float(found[3]) * 2**20 / 1e6


def measured_on_pair(folder: Path, cases: list[tuple[str, float]], block_size: int | str, tokens: int) -> dict[str, Any]:
    """Shares in percent: of the whole time, what was not spent in llama_decode."""
    inside, memory, buffers = InsideLlama(), [held_mb()], Buffers()
    results: list[dict[str, Any]] = []
    with sc.load(drafter=folder / "drafter.gguf", expert=folder / "expert.gguf", profile=block_size == "auto") as runtime:
        prompt = runtime.chat_ids([{"role": "user", "content": PROMPT}]) if runtime.has_chat_template else list(range(1, 13))
        runtime.generate(prompt, block_size=2, max_tokens=tokens)
        memory.append(held_mb())
        for spec, temperature in cases:
            length = 8 if isinstance(parse(spec), Fly) and block_size != "auto" else block_size
            runtime.reset()
            before, models = time.perf_counter(), inside.seconds
            reply = runtime.generate(prompt, rule=spec, temperature=temperature, block_size=length, max_tokens=tokens, seed=1)
            wall = time.perf_counter() - before
            models = inside.seconds - models
            shown = {"method": spec, "temperature": temperature, "tokens": len(reply.tokens), "wall_s": wall}
            results.append({**shown, "overhead_percent": 100 * (wall - models) / wall})
        memory.append(held_mb())
        shape = {"n_vocab": runtime.n_vocab, "n_ctx": runtime.n_ctx}
        return {**shape, "memory_mb": memory, "llama_cpp_mb": dict(buffers.mb), "results": results}


def show_pair(found: dict[str, Any], block_size: int | str) -> None:
    table = Table(title=f"Time outside the models, {found['n_vocab']} ids, blocks of {block_size}")
    for heading in ("method", "temperature", "tokens", "seconds", "outside, %"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for each in found["results"]:
        figures = f"{each['tokens']}", f"{each['wall_s']:.2f}", f"{each['overhead_percent']:.2f}"
        table.add_row(each["method"], f"{each['temperature']:g}", *figures)
    console = Console()
    console.print(table)
    if None not in found["memory_mb"]:
        before, first, last = found["memory_mb"]
        sizes = ", ".join(f"{kind} {mb:.0f}" for kind, mb in found["llama_cpp_mb"].items())
        console.print(f"MB beside mapped files: {before:.0f} before loading, {first:.0f} after the first answer, {last:.0f} at the end")
        console.print(f"of these llama.cpp says it holds: {sizes}; beyond that {last - before - sum(found['llama_cpp_mb'].values()):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, help="folder with drafter.gguf and expert.gguf; without one no models are needed")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer of a pair")
    parser.add_argument("--n-vocab", type=int, default=151_936, help="without a pair")
    parser.add_argument("--block-size", type=lambda text: int(text) if text.isdecimal() else text, default=5)
    parser.add_argument("--blocks", type=int, default=40, help="how many are timed without a pair, for each method and temperature")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("methods", nargs="*", help="as on the command line of speccascade; all, if none is named")
    chosen = parser.parse_args()
    cases = [(spec, temperature) for spec in chosen.methods or examples() for temperature in (0.0, 1.0)]
    cases = [(spec, temperature) for spec, temperature in cases if not (isinstance(parse(spec), Fly) and temperature)]
    if chosen.pair:
        shown = measured_on_pair(chosen.pair, cases, chosen.block_size, chosen.tokens)
        print(json.dumps({"block_size": chosen.block_size, **shown}, indent=1)) if chosen.json else show_pair(shown, chosen.block_size)
        return
    rows = prepared_rows(chosen.n_vocab)
    results = [measured(*case, rows, chosen.block_size, chosen.blocks) for case in cases]
    if chosen.json:
        settings = {"n_vocab": chosen.n_vocab, "block_size": chosen.block_size, "blocks": chosen.blocks}
        print(json.dumps({**settings, "results": results}, indent=1))
        return
    table = Table(title=f"Time beside the models, {chosen.n_vocab} ids, blocks of {chosen.block_size}")
    for heading in ("method", "temperature", "ms/block, mean", "median", "tokens/block", "page faults/block"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for each in results:
        table.add_row(
            str(each["method"]),
            f"{each['temperature']:g}",
            *(f"{each[key]:.2f}" for key in ("ms_per_block", "ms_median", "tokens_per_block")),
            f"{each['page_faults_per_block']:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
