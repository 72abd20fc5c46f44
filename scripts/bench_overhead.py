"""How long the loop takes beside its two models: every method, at temperature 0 and 1, with the account of fidelity.

    python scripts/bench_overhead.py [--json]

No models are needed: toy sessions return prepared rows of a real vocabulary's width, and the time that they take is not counted. The
rows are such as models give: a broad bulk, a few favourites, the best of them with a probability of 0.2 to 0.95, and a drafter that says
nearly the same. A method that goes token by token has blocks of one token, and fly, which needs longer blocks, has blocks of 8.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from statistics import mean

import numpy as np
from rich.console import Console
from rich.table import Table

from speccascade_local.acceptance import Fly
from speccascade_local.account import Wanted
from speccascade_local.cascade import Block, decode
from speccascade_local.methods import examples, parse
from speccascade_local.routing import Route, Signals, TokenCascade, token_cascade
from speccascade_local.rules import Never
from speccascade_local.sampling import Sampler
from speccascade_local.shaping import Shaper
from speccascade_local.stats import Stats

#: Different rows of each model; the text comes by them again and again.
POOL = 24
WARM_UP = 3


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

    def rewind(self, length: int) -> None:
        del self.tokens[length:]


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


def measured(spec: str, temperature: float, rows: tuple[np.ndarray, np.ndarray], block_size: int, blocks: int) -> dict[str, object]:
    """What one method takes; times in milliseconds."""
    method, stats = parse(spec), Stats()
    if isinstance(method, Fly):
        block_size = 8
    prompt = [1, 2, 3, 4]
    drafter, expert = (Toy(each, n_ctx=10**6) for each in rows)
    shared = {"sampler": Sampler(temperature), "rng": np.random.default_rng(1), "max_tokens": 10**6, "stats": stats, "wanted": Wanted()}
    found: Iterator[Block]
    if isinstance(method, TokenCascade):
        shaper = Shaper(expert.n_vocab)
        found = token_cascade(prompt, drafter, expert, rule=method, stops=lambda _: False, shaper=shaper, **shared)
    else:
        rule = Never() if isinstance(method, Route) else method
        ends = {"is_end": lambda _: False, "stops": lambda _: False}
        found = decode(prompt, drafter, expert, rule=rule, block_size=block_size, **ends, **shared)
    overheads, faults = [], []
    for _ in range(WARM_UP + blocks):
        before, inside = time.perf_counter(), drafter.seconds + expert.seconds
        faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = next(found)
        if isinstance(method, Route):  # what a whole answer is judged by
            Signals.of(list(block.verdict.token_ids), block.draft.rows.logits)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-vocab", type=int, default=151_936)
    parser.add_argument("--block-size", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=40, help="how many are timed, for each method and temperature")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("methods", nargs="*", help="as on the command line of speccascade; all, if none is named")
    chosen = parser.parse_args()
    rows = prepared_rows(chosen.n_vocab)
    cases = [(spec, temperature) for spec in chosen.methods or examples() for temperature in (0.0, 1.0)]
    cases = [(spec, temperature) for spec, temperature in cases if not (isinstance(parse(spec), Fly) and temperature)]
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
