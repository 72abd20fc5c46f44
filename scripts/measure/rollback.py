"""Measure what rollback costs an expert that judges drafts of 5 tokens and keeps any number of them, for each kind of rollback.

    python scripts/measure/rollback.py [--layers 40] [--blocks 150]     # JSON lines

Models have random weights, about 100 MB each. A timeline that rolls back after each block, in each way, and one that only reads on take
turns with the same blocks, so that other load falls on all alike; times are medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from speccascade_local.bench.rows import commit
from speccascade_local.llama.backend import llama_cpp_version
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.parameters import SNAPSHOTS
from speccascade_local.llama.session import LlamaSession
from speccascade_local.machine.hardware import cpu_name

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))

from tiny_architectures import write_architecture

NAMES = ("llama-dense", "lfm2-dense", "qwen35-dense", "falcon-h1-dense", "mamba2-dense")
BLOCK, PROMPT = 5, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--blocks", type=int, default=150)
    given = parser.parse_args()
    setting = {"machine": cpu_name(), "llama_cpp_python": llama_cpp_version(), "commit": commit(), "block_size": BLOCK, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            model = LlamaModel(write_architecture(Path(folder, f"{name}.gguf"), name, times=given.layers // 2))
            for row in rows(model, given.blocks):
                print(json.dumps({"model": name, "megabytes": model.n_bytes // 10**6, **row, **setting}), flush=True)
            model.close()


def rows(model: LlamaModel, count: int) -> list[dict[str, object]]:
    """One for each way. Ratios are to reading the same 6 tokens without ever going back."""
    made = {context.rollback.name: context for context in (fresh(model, SNAPSHOTS), fresh(model, 0))}
    sessions = {name: LlamaSession(context) for name, context in made.items()}
    onward = LlamaSession(fresh(model, 0))
    rng = np.random.default_rng(0)
    text = rng.integers(0, model.n_vocab, PROMPT).tolist()
    for session in (onward, *sessions.values()):
        session.extend(text[:-1], 1)
    before = {name: replace(session.rollbacks) for name, session in sessions.items()}
    taken: dict[str, list[float]] = {name: [] for name in ("onward", *sessions)}
    for _ in range(count):
        draft = rng.integers(0, model.n_vocab, BLOCK).tolist()
        if len(onward.tokens) > len(text) + BLOCK:
            onward.roll_back(0)
            onward.extend(text[:-1], 1)
        taken["onward"].append(timed(onward, [text[-1], *draft]))
        for name, session in sessions.items():
            session.roll_back(min(len(session.tokens), len(text) - 1))
            taken[name].append(timed(session, text[len(session.tokens) :] + draft))
        text += [*draft[: rng.integers(0, BLOCK + 1)], 1]
    found = []
    for name, session in sessions.items():
        now, then = session.rollbacks, before[name]
        seconds = median(taken[name])
        found.append(
            {
                "rollback": name,
                "ms_per_block": round(1000 * seconds, 2),
                "ratio": round(seconds / median(taken["onward"]), 2),
                "copying_ms_per_block": round(1000 * (now.seconds - then.seconds) / count, 3),
                "copies_per_block": round((now.saved - then.saved) / count, 2),
                "replayed_per_block": round((now.replayed - then.replayed) / count, 2),
            }
        )
    for session in (onward, *sessions.values()):
        session.context.close()
    return found


def fresh(model: LlamaModel, n_snapshots: int) -> LlamaContext:
    return LlamaContext(model, n_ctx=2048, n_threads=1, n_snapshots=n_snapshots)


def timed(session: LlamaSession, tokens: list[int]) -> float:
    """Seconds to read them for the rows of the last 6."""
    started = time.perf_counter()
    session.extend(tokens, BLOCK + 1)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
