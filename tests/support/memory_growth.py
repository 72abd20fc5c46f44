"""A process that prints, as JSON, how much it grew by loading a model and filling its context, and what was estimated.

python memory_growth.py MODEL N_CTX
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from gguf_files import textless_model

from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.machine.dry_run import dry_run_models
from speccascade_local.machine.memory import choose_layers, memory_need
from speccascade_local.models.placement import Placement


def fill_context(path: Path, n_ctx: int, placement: Placement | None = None) -> tuple[LlamaModel, LlamaContext]:
    model = LlamaModel(path, placement=placement)
    context = LlamaContext(model, n_ctx=n_ctx, n_threads=2)
    session = LlamaSession(context)
    while len(session.tokens) < n_ctx:
        n = min(512, n_ctx - len(session.tokens))
        session.extend([1] * n, min(65, n))
    return model, context


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    path, n_ctx = Path(sys.argv[1]), int(sys.argv[2])
    with TemporaryDirectory() as folder:  # the first use of llama.cpp takes memory with any model
        model, context = fill_context(textless_model(Path(folder) / "warm.gguf"), 64)
        context.close()
        model.close()
    models = dry_run_models({"expert": path}, n_ctx=n_ctx)
    need = memory_need(models["expert"], n_ctx)
    placement = choose_layers({"expert": Placement()}, models, {}, n_ctx, [])["expert"]
    before = resident()
    model, _context = fill_context(path, n_ctx, placement)
    print(json.dumps({"grown": resident() - before, "need": need.own_bytes, "parts": need.own, "of": model.description}))


if __name__ == "__main__":
    main()
