"""A process that fails to load pairs in ten ways, three times each. It prints the later errors, and by how many bytes it grew then.

python failing_loads.py FOLDER   writes its models there, of 8 MB each
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import psutil
from gguf_files import adapter, shaped_model

import speccascade_local as sc
from speccascade_local.llama.model import LlamaModel
from speccascade_local.models.placement import Placement

SHAPE = {"width": 512, "layers": 3, "ffn": 512, "vocab": 1000}


def main(folder: Path) -> None:
    good = shaped_model(folder / "good.gguf", **SHAPE)
    other = shaped_model(folder / "other.gguf", **{**SHAPE, "vocab": 1500})
    cut = folder / "cut.gguf"
    cut.write_bytes(good.read_bytes()[:-1])
    odd = folder / "odd.gguf"
    odd.write_bytes(good.read_bytes().replace(b"blk.2.attn_q.weight", b"blk.2.attn_x.weight"))
    wrong = Placement(lora=((adapter(folder / "lora.gguf"), 1.0),))

    def interrupted(role: str, fraction: float) -> None:
        if role == "expert" and fraction > 0.5:
            raise KeyboardInterrupt

    def no_context() -> None:
        real = llama_cpp.llama_init_from_model
        llama_cpp.llama_init_from_model = lambda model, params: None
        try:
            sc.load(drafter=good, expert=good)
        finally:
            llama_cpp.llama_init_from_model = real

    ways: list[Callable[[], object]] = [
        lambda: sc.load(drafter=good, expert=folder / "absent.gguf"),
        lambda: sc.load(drafter=good, expert=cut),
        lambda: LlamaModel(odd),
        lambda: sc.load(drafter=good, expert=other),
        lambda: sc.load(drafter=good, expert=good, n_ctx=10**6),
        lambda: LlamaModel(good, placement=wrong),
        lambda: sc.load(drafter=good, expert=good, on_progress=interrupted),
        no_context,
        lambda: sc.load(drafter=good, expert=good, rule="nosuch"),
        lambda: sc.load(drafter=good, expert=good, placement=Placement(device="XPU0")),
    ]
    for way in ways:
        failure(way)
    grown = -resident()
    for way in ways * 2:
        print(failure(way))
    print(grown + resident())


def failure(way: Callable[[], object]) -> str:
    try:
        way()
    except (sc.SpeccascadeError, KeyboardInterrupt) as error:
        return type(error).__name__
    raise AssertionError("it loaded")


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
