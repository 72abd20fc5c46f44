"""Tiny models of llama.cpp's architectures, with random weights of a size that lets every part of them matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

MADE_OF: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
N_VOCAB = 128


def write_architecture(path: Path, name: str, *, off: float = 0.0) -> Path:
    """Write one of those in architectures.json; token ids only. off: how far its weights are from those of the one with 0, from 0 to 1."""
    made_of, rng, other = MADE_OF[name], np.random.default_rng(0), np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, made_of["architecture"])
    for key, (kinds, value) in made_of["keys"].items():
        kind, *of = (gguf.GGUFValueType[each] for each in kinds)
        writer.add_key_value(key, value, kind, *of)
    writer.add_tokenizer_model("no_vocab")
    for tensor, shape in made_of["tensors"].items():
        writer.add_tensor(tensor, np.float32(1 - off) * weights(tensor, shape, rng) + np.float32(off) * weights(tensor, shape, other))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(name: str, shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """shape: as the file has it, the dimension that is summed over first."""
    values = rng.normal(size=shape[::-1])
    if name.endswith("ssm_a"):  # a decay
        values = -np.abs(values) / 4 - 0.05
    elif name.endswith("ssm_d") or "norm" in name:
        values = 1 + values / 10
    elif name.endswith("bias") or len(shape) == 1:
        values = values / 10
    else:
        values = values / np.sqrt(shape[0])
    return (values * (2 if name == "output.weight" else 1)).astype(np.float32)
