"""What a GGUF file tells of itself without being loaded: how much of it each token reads, and how much memory a text takes.

Knows nothing of machines.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ModelLoadError
from ..common.validation import short_repr
from .gguf_layout import TEXT, Layout, Tensor, layout_of, shards_of

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>[MG]i?B)", re.IGNORECASE)
_UNITS = {"mb": 1e6, "mib": 2**20, "gb": 1e9, "gib": 2**30}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.gguf)")
_BLOCK = re.compile(r"blk\.(\d+)\.")
#: What a header may say of an architecture, from and to; llama.cpp has room for 512 layers and 512 experts.
_RANGES = {
    "block_count": (1, 512),
    "context_length": (1, 2**31 - 1),
    "embedding_length": (1, 2**24),
    "attention.head_count": (0, 2**16),
    "attention.head_count_kv": (0, 2**16),
    "attention.key_length": (0, 2**20),
    "attention.value_length": (0, 2**20),
    "expert_count": (0, 2**16),
    "expert_used_count": (0, 2**16),
    "vocab_size": (0, 2**31 - 1),
}
_LONGEST_NAME = 100
_CACHE_BYTES = 2  # of each value in a cache: 16 bits, which is what contexts are made with


@dataclass(frozen=True)
class Header:
    """The facts of one file. Sizes in bytes.

    weights: all tensors. token_bytes: those that one token reads: a row of the embedding counts for nothing, and of experts (in a
    mixture of them) only those in use. cache_bytes: what each token of a context takes, which is too much for memories that do not
    grow with the text. quantization: that of most of the weights.
    """

    path: Path
    architecture: str
    quantization: str
    weights: int
    token_bytes: int
    cache_bytes: int
    n_vocab: int
    n_ctx_train: int


@dataclass(frozen=True)
class Layers:
    """Bytes of the weights before, in and behind the layers that repeat. output: the embedding's where it is the output too."""

    input: int
    blocks: tuple[int, ...]
    output: int


def layers_of(path: Path) -> Layers:
    """Of all files that a model is divided into. Raises ModelLoadError and OSError."""
    blocks: Counter[int] = Counter()
    outside: Counter[str] = Counter()
    for tensor in (tensor for each in shards_of(path) for tensor in layout_of(each).tensors):
        found = _BLOCK.match(tensor.name)
        if found:
            blocks[int(found[1])] += tensor.size
        else:
            outside["input" if tensor.name.startswith("token_embd") else "output"] += tensor.size
            outside["own output"] += tensor.name == "output.weight"
    output = outside["output"] if outside["own output"] else outside["output"] + outside["input"]
    return Layers(outside["input"], tuple(size for _, size in sorted(blocks.items())), output)


def header_of_size(path: Path) -> Header | None:
    """What ``"4.9GB"`` in place of a file tells: as if each token read all of it; no cache and no vocabulary, which are not known."""
    found = None if path.exists() else _SIZE.fullmatch(str(path))
    if found is None:
        return None
    size = round(float(found["number"]) * _UNITS[found["unit"].lower()])
    return Header(path, "unknown", "unknown", size, size, 0, 0, n_ctx_train=sys.maxsize)


def read_header(path: Path) -> Header:
    """Of all files that a model is divided into. Raises ModelLoadError for what is no GGUF file, or lacks what every model has."""
    layouts = check_gguf(path)
    try:
        return _describe(path, layouts[0], [tensor for layout in layouts for tensor in layout.tensors])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelLoadError(f"{path}: its header cannot be read ({error!s:.200}); it may be damaged: fetch it again") from error


def _describe(path: Path, layout: Layout, tensors: Sequence[Tensor]) -> Header:
    def value(name: str, default: Any = None) -> Any:
        found = layout.numbers(name) if name in layout.lists else layout.values.get(name, default)
        if found is None:
            raise KeyError(f"{name} is missing")
        return found

    kind = value("general.architecture")
    layers, width = value(f"{kind}.block_count"), value(f"{kind}.embedding_length")
    heads = _per_layer(value(f"{kind}.attention.head_count", 0), layers)
    shared = _per_layer(value(f"{kind}.attention.head_count_kv", heads), layers)
    usual = width // max(*heads, 1)
    values = value(f"{kind}.attention.key_length", usual) + value(f"{kind}.attention.value_length", usual)
    sizes = {tensor.name: tensor.size for tensor in tensors}
    kinds: Counter[int] = Counter()
    for tensor in tensors:
        kinds[tensor.kind] += tensor.size
    experts, used = value(f"{kind}.expert_count", 0), value(f"{kind}.expert_used_count", 0)
    in_use = used / experts if experts and used else 1.0
    embedding = sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0  # else it is the output too
    routed = sum(size for name, size in sizes.items() if "_exps." in name)
    weights = sum(sizes.values())
    return Header(
        path=path,
        architecture=kind,
        quantization=_type_name(kinds.most_common(1)[0][0]) if kinds else "none",
        weights=weights,
        token_bytes=round(weights - embedding - routed * (1 - in_use)),
        cache_bytes=sum(shared) * values * _CACHE_BYTES,
        n_vocab=value(f"{kind}.vocab_size", 0) or layout.lists["tokenizer.ggml.tokens"].count,
        n_ctx_train=value(f"{kind}.context_length"),
    )


def _check_numbers(path: Path, layout: Layout) -> None:
    """Refuse numbers that would make whoever believes them count or reserve without end. Raises ModelLoadError and OSError."""
    kind = layout.values.get("general.architecture", "")
    if not isinstance(kind, str) or len(kind) > _LONGEST_NAME:
        raise _wrong(path, f"general.architecture is {short_repr(kind)}; it must be a short name")
    for name, (low, high) in _RANGES.items():
        key = f"{kind}.{name}"
        if key not in layout.values:
            continue
        if (place := layout.lists.get(key)) and (place.kind == TEXT or place.count > _RANGES["block_count"][1]):
            raise _wrong(path, f"{key} is a list of {place.count}; allowed is one number for each layer")
        values = layout.numbers(key) if key in layout.lists else [layout.values[key]]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise _wrong(path, f"{key} is {short_repr(value)}; allowed are whole numbers from {low} to {high}")


def _wrong(path: Path, reason: str) -> ModelLoadError:
    return ModelLoadError(f"{path}: its header cannot be true: {reason}; the file is damaged or of ill will: fetch it again elsewhere")


def _type_name(kind: int) -> str:
    from gguf import GGMLQuantizationType  # slow to import, and needed by few verbs

    return str(GGMLQuantizationType(kind).name)


def _per_layer(counts: int | list[int], layers: int) -> list[int]:
    """One number for all layers, or one for each."""
    return counts if isinstance(counts, list) else [counts] * layers


def check_gguf(path: Path) -> list[Layout]:
    """Refuse early, with a better reason than llama.cpp gives, what cannot be a GGUF file; else the layouts of all files that the model is
    divided into. Raises ModelLoadError.
    """
    try:
        if os.path.exists(path) and not (path.is_file() or path.is_dir()):
            raise ModelLoadError(f"{path}: neither a file nor a folder; name a .gguf file")  # a pipe would be waited for
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        hint = _not_here(str(path)) or "check the path, or run 'speccascade models' to see what is present"
        raise ModelLoadError(f"{path}: no such file; {hint}") from None
    except IsADirectoryError:
        raise ModelLoadError(f"{path}: a folder; name the .gguf file itself") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelLoadError(f"{path}: cannot be read ({reason}); check its name and permissions") from error
    if not magic:
        raise ModelLoadError(f"{path}: an empty file; fetch it again")
    if magic != b"GGUF":
        raise ModelLoadError(
            f"{path}: not a GGUF file: it begins with {magic!r}, not b'GGUF'; "
            "models in other formats must be converted first (llama.cpp's convert_hf_to_gguf.py)"
        )
    return [_check_layout(each) for each in shards_of(path)]


def check_model(path: Path) -> None:
    """Refuse what :func:`check_gguf` refuses, and files of GGUF form that are no whole model. Raises ModelLoadError."""
    first = check_gguf(path)[0].values
    if first.get("general.type") == "adapter":
        raise ModelLoadError(
            f"{path}: a LoRA adapter and not a model; name the model that it was made for, and the adapter by --expert-lora, "
            "--drafter-lora, or lora: in models.yaml"
        )
    if path != shards_of(path)[0] or first.get("split.no"):
        name = shards_of(path)[0].name if path != shards_of(path)[0] else "the first"
        raise ModelLoadError(f"{path}: one of the files that a model is divided into, and not the first; name {name}")


def _not_here(name: str) -> str:
    """What to do about a name that is no file's, where it looks like something else."""
    if name.startswith(("http:", "https:")):
        return "nothing is downloaded; fetch it first and name the file"
    if _REPOSITORY.fullmatch(name):
        return (
            "if it is a repository on the Hugging Face hub: only files in GGUF form can be used; write the repository as hub: and such a "
            "file of it as file: into models.yaml, and fetch it with 'speccascade pull'"
        )
    return ""


def _check_layout(path: Path) -> Layout:
    try:
        layout = layout_of(path)
        _check_numbers(path, layout)
        return layout
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: no such file, and the model is divided into several; fetch this one too") from None
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from error
