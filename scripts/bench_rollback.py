"""What a block costs with each way of going back: an expert judges drafts of 5 tokens, of which any number is kept.

    python scripts/bench_rollback.py [--layers 40] [--blocks 150]     # JSON lines

Models with random weights, about 100 MB each. For each the same blocks in both ways that it has, one after the other: as an expert, with
llama.cpp's snapshots where it keeps them, and without.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from tiny_architectures import write_architecture

from speccascade_local.backend import llama_cpp_version
from speccascade_local.bench.setup import commit
from speccascade_local.context import LlamaContext
from speccascade_local.machine import cpu_name
from speccascade_local.model import LlamaModel
from speccascade_local.parameters import SNAPSHOTS
from speccascade_local.session import LlamaSession

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
            for n_snapshots in (SNAPSHOTS, 0):
                print(
                    json.dumps({"model": name, **blocks(model, n_snapshots, given.blocks), "megabytes": model.n_bytes // 10**6, **setting})
                )
            model.close()


def blocks(model: LlamaModel, n_snapshots: int, count: int) -> dict[str, object]:
    """Means over all blocks."""
    context = LlamaContext(model, n_ctx=2048, n_threads=1, n_snapshots=n_snapshots)
    session, rng = LlamaSession(context), np.random.default_rng(0)
    text = rng.integers(0, model.n_vocab, PROMPT).tolist()
    session.extend(text[:-1], 1)
    spent = session.rollbacks
    saved, replayed, copying, started = spent.saved, spent.replayed, spent.seconds, time.perf_counter()
    for _ in range(count):
        session.rewind(min(len(session.tokens), len(text) - 1))
        draft = rng.integers(0, model.n_vocab, BLOCK).tolist()
        session.extend(text[len(session.tokens) :] + draft, BLOCK + 1)
        text += [*draft[: rng.integers(0, BLOCK + 1)], 1]
    seconds = time.perf_counter() - started
    found = {
        "rollback": context.rollback.name,
        "ms_per_block": round(1000 * seconds / count, 2),
        "copying_ms_per_block": round(1000 * (spent.seconds - copying) / count, 3),
        "copies_per_block": round((spent.saved - saved) / count, 2),
        "replayed_per_block": round((spent.replayed - replayed) / count, 2),
    }
    context.close()
    return found


if __name__ == "__main__":
    main()
