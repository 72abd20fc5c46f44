"""Models of llama.cpp's architectures, tiny or of many layers, with random weights of a size that lets every part of them matter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np

MADE_OF: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
N_VOCAB = 128


def write_architecture(path: Path, name: str, *, off: float = 0.0, times: int = 1) -> Path:
    """Write one of those in tiny_architectures.json; token ids only.

    off: how far its weights are from those of the one with 0, from 0 to 1. times: how often its few layers are repeated.
    """
    made_of, rng, other = MADE_OF[name], np.random.default_rng(0), np.random.default_rng(1)
    layers = next(value for key, (_, value) in made_of["keys"].items() if key.endswith(".block_count"))
    writer = gguf.GGUFWriter(path, made_of["architecture"])
    for key, (kinds, value) in made_of["keys"].items():
        kind, *of = (gguf.GGUFValueType[each] for each in kinds)
        by_layer = isinstance(value, list) and len(value) == layers
        writer.add_key_value(key, value * times if by_layer or key.endswith(".block_count") else value, kind, *of)
    writer.add_tokenizer_model("no_vocab")
    for tensor, shape in made_of["tensors"].items():
        for again in range(times if tensor.startswith("blk.") else 1):
            values = np.float32(1 - off) * weights(tensor, shape, rng) + np.float32(off) * weights(tensor, shape, other)
            writer.add_tensor(re.sub(r"\d+", lambda at, add=again * layers: str(int(at[0]) + add), tensor, count=1), values)
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
