"""Write a pair with the distributions of a small one at the cost of a large one: *cost-scaled demonstration models*.

    python scripts/measure/scale_pair.py OUT                          # the bundled pair: expert as 1 B (1.1 GB), drafter as 30 M (34 MB)
    python scripts/measure/scale_pair.py OUT --quantization Q4_K_M    # the same with another expert file
    python scripts/measure/scale_pair.py OUT --random 151936          # random weights and ids: what a large vocabulary costs

Speed depends on the shapes of the matrices, quality on what is in them. So a small model is set into the corner of a large one. Every
other weight of the large one is either multiplied by zero or multiplies zero. Hidden states are padded with zeros. Norm weights shrink by
sqrt(d/D) and rms epsilons by d/D, because a padded vector has the smaller mean square. Extra heads, feed-forward rows and layers do
their work, and zeros in the output projections drop it. The large model answers as the small one, and takes its own time.

The weights of a Q8_0 file are copied block by block, so nothing is rounded twice. Other quantizations round the small model's weights
again, which changes its distributions a little. At the end both files are loaded beside their originals, and the largest difference
of their logits is printed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from numpy.typing import NDArray

from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.models import catalog

Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]  # [rows, blocks of a row, BLOCK_BYTES]: Q8_0 as it is stored, a float16 scale and 32 int8 in each block

BLOCK = 32
BLOCK_BYTES = 34
NAME = "cost-scaled demonstration model"
QUANTIZATIONS = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}
#: Metadata that says how large a model is; everything else is copied.
SHAPE_KEYS = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
EPSILON_KEY = "attention.layer_norm_rms_epsilon"


@dataclass(frozen=True)
class Shape:
    """How large a Llama is."""

    width: int
    layers: int
    ffn: int


EXPERT = Shape(width=2048, layers=16, ffn=8192)
DRAFTER = Shape(width=576, layers=8, ffn=1536)


@dataclass(frozen=True)
class Small:
    """A small Llama: its metadata, its norms as floats and its matrices as Q8_0 blocks."""

    reader: GGUFReader
    shape: Shape
    heads: int
    kv_heads: int
    norms: dict[str, Floats]
    matrices: dict[str, Blocks]

    @property
    def head_dim(self) -> int:
        return self.shape.width // self.heads


def read(path: Path) -> Small:
    """Read a small model. Exits with the reason if it is none that can be scaled."""
    reader = GGUFReader(path)

    def value(key: str) -> int:
        return int(reader.fields[f"llama.{key}"].contents())

    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        sys.exit(f"{path}: architecture {architecture}; only llama can be scaled")
    norms, matrices = {}, {}
    for tensor in reader.tensors:
        if tensor.tensor_type == GGMLQuantizationType.Q8_0:
            matrices[tensor.name] = np.asarray(tensor.data).reshape(tensor.shape[1], -1, BLOCK_BYTES)
        elif tensor.tensor_type == GGMLQuantizationType.F32 and len(tensor.shape) == 1:
            norms[tensor.name] = np.asarray(tensor.data)
        else:
            sys.exit(f"{path}: tensor {tensor.name} is {tensor.tensor_type.name}; only Q8_0 matrices and F32 norms can be scaled")
    shape = Shape(value("embedding_length"), value("block_count"), value("feed_forward_length"))
    return Small(reader, shape, value("attention.head_count"), value("attention.head_count_kv"), norms, matrices)


# --------------------------------------------------------------------------- scaling


def scaled(small: Small, large: Shape, rng: np.random.Generator) -> Iterator[tuple[str, Floats | Blocks]]:
    """The tensors of the large model by name."""
    d, width = small.shape.width, large.width
    kv = width * small.kv_heads // small.heads
    rows = {
        "attn_q": width,
        "attn_k": kv,
        "attn_v": kv,
        "attn_output": width,
        "ffn_gate": large.ffn,
        "ffn_up": large.ffn,
        "ffn_down": width,
    }
    columns = {name: large.ffn if name == "ffn_down" else width for name in rows}
    shrink = np.float32(np.sqrt(d / width))

    def norm(name: str) -> Floats:
        padded = np.zeros(width, np.float32)
        if name in small.norms:
            padded[:d] = small.norms[name] * shrink
        return padded

    for name in ("token_embd.weight", "output.weight"):
        if name in small.matrices:
            yield name, padded(small.matrices[name], len(small.matrices[name]), width)
    yield "output_norm.weight", norm("output_norm.weight")
    for layer in range(large.layers):
        yield f"blk.{layer}.attn_norm.weight", norm(f"blk.{layer}.attn_norm.weight")
        yield f"blk.{layer}.ffn_norm.weight", norm(f"blk.{layer}.ffn_norm.weight")
        for part in rows:
            name = f"blk.{layer}.{part}.weight"
            core = small.matrices.get(name)
            if part in ("attn_output", "ffn_down"):  # what writes to the hidden state writes zeros outside the small model
                yield name, padded(core, rows[part], columns[part])
            else:
                yield name, padded(core, rows[part], columns[part], rng)


def padded(core: Blocks | None, rows: int, columns: int, rng: np.random.Generator | None = None) -> Blocks:
    """``core`` in the upper left corner of a larger matrix; the rest is random, or zero without ``rng``."""
    blocks = np.zeros((rows, columns // BLOCK, BLOCK_BYTES), np.uint8)
    if rng is not None:
        weights = rng.integers(0, 256, (rows, columns // BLOCK, BLOCK), np.uint8)
        blocks[..., 2:] = weights
        blocks[..., :2] = np.frombuffer(np.float16(1 / (74 * np.sqrt(columns))).tobytes(), np.uint8)  # 74: spread of the int8
    if core is not None:
        blocks[: core.shape[0], : core.shape[1]] = core
    return blocks


def write(small: Small, large: Shape, path: Path, rng: np.random.Generator) -> None:
    """Write the large model as Q8_0."""
    writer = GGUFWriter(path, "llama")
    for field in small.reader.fields.values():
        key = field.name.removeprefix("llama.")
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.name") or key in (*SHAPE_KEYS, EPSILON_KEY):
            continue
        writer.add_key_value(field.name, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None)
    writer.add_name(NAME)
    writer.add_embedding_length(large.width)
    writer.add_block_count(large.layers)
    writer.add_feed_forward_length(large.ffn)
    writer.add_head_count(large.width // small.head_dim)
    writer.add_head_count_kv(large.width * small.kv_heads // small.heads // small.head_dim)
    epsilon = small.reader.fields[f"llama.{EPSILON_KEY}"].contents()
    writer.add_layer_norm_rms_eps(epsilon * small.shape.width / large.width)
    for name, tensor in scaled(small, large, rng):
        if tensor.dtype == np.uint8:
            writer.add_tensor(name, tensor.reshape(len(tensor), -1), raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, quantization: str) -> None:
    """Rewrite a Q8_0 file in another quantization by llama.cpp's own tool."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTIZATIONS[quantization]
    params.allow_requantize = True
    params.nthread = os.cpu_count() or 1
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code != 0:
        sys.exit(f"{target}: llama_model_quantize returned {code}")


# --------------------------------------------------------------------------- a random pair


def random_small(path: Path, ids: int, noise: float, seed: int = 1) -> None:
    """A small model with random weights and no text. With noise its logits wander from those of the same seed without."""
    d, layers, heads, ffn = 64, 2, 2, 160
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(d)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(d // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(ids)
    writer.add_tokenizer_model("no_vocab")
    shapes = {"token_embd.weight": (ids, d), "output.weight": (ids, d)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{part}.weight": (d, d) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {
            f"blk.{layer}.ffn_gate.weight": (ffn, d),
            f"blk.{layer}.ffn_up.weight": (ffn, d),
            f"blk.{layer}.ffn_down.weight": (d, ffn),
        }
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(d, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(d, np.float32))
    for name, shape in shapes.items():
        weights = rng.normal(size=shape)
        if name != "token_embd.weight":
            weights += noise * other.normal(size=shape)
        # 4.5: logits of this spread make rows of 150,000 ids about as sure of their best token as a language model is.
        scale = 4.5 if name == "output.weight" else 1.0
        data = gguf.quants.quantize((weights * scale / np.sqrt(shape[1])).astype(np.float32), GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --------------------------------------------------------------------------- the check, and the command


def largest_difference(small: Path, large: Path, tokens: int = 48) -> tuple[float, float]:
    """Both models read the same ids: the largest difference of their logits, and the spread (max - min) of the small one's."""
    rows = []
    for path in (small, large):
        model = LlamaModel(path)
        session = LlamaSession(LlamaContext(model, n_ctx=256))
        ids = np.random.default_rng(3).integers(3, model.n_vocab, tokens).tolist()
        rows.append(session.extend(ids, keep=tokens).copy())
        session.context.close()
        model.close()
    return float(np.abs(rows[0] - rows[1]).max()), float(np.ptp(rows[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write expert.gguf and drafter.gguf to")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="Q8_0", help="of the expert (the drafter stays Q8_0)")
    parser.add_argument("--random", type=int, metavar="IDS", help="random weights over IDS ids, in place of the bundled pair")
    parser.add_argument("--hopeless", action="store_true", help="a drafter with random weights, whose drafts are all rejected")
    for name, default in (("expert", EXPERT), ("drafter", DRAFTER)):
        for part in ("width", "layers", "ffn"):
            parser.add_argument(
                f"--{name}-{part}", type=int, default=getattr(default, part), metavar="N", help=f"default {getattr(default, part)}"
            )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bundled = catalog.bundled_pair()
    for name, default in (("expert", EXPERT), ("drafter", DRAFTER)):
        source = getattr(bundled, name)
        if options.random:
            source = options.out / f"{name}-small.gguf"
            random_small(source, options.random, noise=0.15 if name == "drafter" else 0.0)
        small = read(source)
        parts = {part: getattr(options, f"{name}_{part}") for part in ("width", "layers", "ffn")}
        large = replace(default, **parts)
        if large.width % (small.head_dim * small.heads // small.kv_heads) or large.width % BLOCK or large.ffn % BLOCK:
            multiples = f"the width must be a multiple of {small.head_dim * small.heads // small.kv_heads}, and both of {BLOCK}"
            sys.exit(f"--{name}-width {large.width}, --{name}-ffn {large.ffn}: {multiples}")
        if large.width < small.shape.width or large.layers < small.shape.layers or large.ffn < small.shape.ffn:
            sys.exit(f"{large} is smaller than {source}, which is {small.shape}")
        target = options.out / f"{name}.gguf"
        if name == "drafter" and options.hopeless:
            small = replace(small, matrices={key: shuffled(blocks) for key, blocks in small.matrices.items()})
        write(small, large, target, np.random.default_rng(0))
        if name == "expert" and options.quantization != "Q8_0":
            plain = target.rename(options.out / "expert-q8_0.gguf")
            quantize(plain, target, options.quantization)
            plain.unlink()
        report = f"{target}: {target.stat().st_size / 1e6:,.0f} MB"
        if name == "drafter" and options.hopeless:
            print(f"{report}, its weights shuffled")
        else:
            difference, spread = largest_difference(source, target)
            print(f"{report}; largest difference of a logit {difference:.3g}, of {spread:.3g} between the largest and the smallest")


def shuffled(blocks: Blocks) -> Blocks:
    """The rows of a matrix in another order."""
    mixed: Blocks = np.random.default_rng(9).permutation(blocks)
    return mixed


if __name__ == "__main__":
    main()
