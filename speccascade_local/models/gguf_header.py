"""What the header of a GGUF file says about a model: its size, what each token reads, and how much memory its context takes."""

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
from .gguf_layout import TENSOR_TYPES, TEXT, Layout, Tensor, layout_of, shard_paths

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>[MG]i?B)", re.IGNORECASE)
_UNITS = {"mb": 1e6, "mib": 2**20, "gb": 1e9, "gib": 2**30}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.gguf)")
_BLOCK = re.compile(r"blk\.(\d+)\.")
#: The range of each number about an architecture. llama.cpp has room for 512 layers and 512 experts.
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
_MAX_NAME = 100
_CACHE_BYTES = 2  # of one value in a KV cache of type f16, the default


@dataclass(frozen=True)
class Header:
    """The facts about one model; sizes are in bytes."""

    path: Path  # the file, or the first of its shards
    architecture: str  # llama.cpp's name of it
    quantization: str  # the type of most of the weights
    weights: int  # the size of all tensors
    token_bytes: int  # what one token reads: all weights but the input embedding and the experts of a mixture that are not used
    cache_bytes: int  # What each token of a context takes. It is too much for memories that do not grow with the text.
    n_vocab: int  # the number of token ids
    n_ctx_train: int  # the context in tokens that the model was trained for


@dataclass(frozen=True)
class Layers:
    """Bytes of the weights before, in and after the repeated layers. A tied embedding counts as input and as output."""

    input: int
    blocks: tuple[int, ...]
    output: int


def layers_of(path: Path) -> Layers:
    """Return the sizes of a model's layers, from all its shards. Raises ModelLoadError and OSError."""
    blocks: Counter[int] = Counter()
    outside: Counter[str] = Counter()
    for tensor in (tensor for each in shard_paths(path) for tensor in layout_of(each).tensors):
        block = _BLOCK.match(tensor.name)
        if block:
            blocks[int(block[1])] += tensor.size
        else:
            outside["input" if tensor.name.startswith("token_embd") else "output"] += tensor.size
            outside["own output"] += tensor.name == "output.weight"
    output = outside["output"] if outside["own output"] else outside["output"] + outside["input"]
    return Layers(outside["input"], tuple(size for _, size in sorted(blocks.items())), output)


def header_of_size(path: Path) -> Header | None:
    """Return the header of an imagined model of a size such as ``"4.9GB"``, or None for anything else and for a file of that name.

    Each of its tokens reads all of it. It has no cache and no vocabulary, because these are not known.
    """
    match = None if path.exists() else _SIZE.fullmatch(str(path))
    if match is None:
        return None
    size = round(float(match["number"]) * _UNITS[match["unit"].lower()])
    return Header(path, "unknown", "unknown", size, size, 0, 0, n_ctx_train=sys.maxsize)


def read_header(path: Path) -> Header:
    """Return the facts about a model, from all its shards. Raises ModelLoadError if it is not GGUF or lacks what every model has."""
    layouts = check_gguf(path)
    try:
        return _describe(path, layouts[0], [tensor for layout in layouts for tensor in layout.tensors])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelLoadError(f"{path}: its header cannot be read ({error!s:.200}); it may be damaged: fetch it again") from error


def _describe(path: Path, layout: Layout, tensors: Sequence[Tensor]) -> Header:
    def value(name: str, default: Any = None) -> Any:
        entry = layout.numbers(name) if name in layout.lists else layout.values.get(name, default)
        if entry is None:
            raise KeyError(f"{name} is missing")
        return entry

    architecture = value("general.architecture")
    layers, width = value(f"{architecture}.block_count"), value(f"{architecture}.embedding_length")
    heads = _per_layer(value(f"{architecture}.attention.head_count", 0), layers)
    kv_heads = _per_layer(value(f"{architecture}.attention.head_count_kv", heads), layers)
    head_width = width // max(*heads, 1)
    kv_width = value(f"{architecture}.attention.key_length", head_width) + value(f"{architecture}.attention.value_length", head_width)
    sizes = {tensor.name: tensor.size for tensor in tensors}
    kinds: Counter[int] = Counter()
    for tensor in tensors:
        kinds[tensor.kind] += tensor.size
    experts, used = value(f"{architecture}.expert_count", 0), value(f"{architecture}.expert_used_count", 0)
    used_part = used / experts if experts and used else 1.0
    embedding = sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0  # otherwise it is the output too
    routed = sum(size for name, size in sizes.items() if "_exps." in name)
    weights = sum(sizes.values())
    return Header(
        path=path,
        architecture=architecture,
        quantization=TENSOR_TYPES[kinds.most_common(1)[0][0]][0] if kinds else "none",
        weights=weights,
        token_bytes=round(weights - embedding - routed * (1 - used_part)),
        cache_bytes=sum(kv_heads) * kv_width * _CACHE_BYTES,
        n_vocab=value(f"{architecture}.vocab_size", 0) or layout.lists["tokenizer.ggml.tokens"].count,
        n_ctx_train=value(f"{architecture}.context_length"),
    )


def _check_numbers(path: Path, layout: Layout) -> None:
    """Refuse numbers that would make their readers count or reserve memory without end. Raises ModelLoadError and OSError."""
    architecture = layout.values.get("general.architecture", "")
    if not isinstance(architecture, str) or len(architecture) > _MAX_NAME:
        raise _impossible(path, f"general.architecture is {short_repr(architecture)}; it must be a short name")
    for name, (low, high) in _RANGES.items():
        key = f"{architecture}.{name}"
        if key not in layout.values:
            continue
        if (place := layout.lists.get(key)) and (place.kind == TEXT or place.count > _RANGES["block_count"][1]):
            raise _impossible(path, f"{key} is a list of {place.count}; allowed is one number for each layer")
        values = layout.numbers(key) if key in layout.lists else [layout.values[key]]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise _impossible(path, f"{key} is {short_repr(value)}; allowed are whole numbers from {low} to {high}")


def _impossible(path: Path, reason: str) -> ModelLoadError:
    return ModelLoadError(f"{path}: its header cannot be true: {reason}; the file is damaged or malicious: fetch it again from elsewhere")


def _per_layer(counts: int | list[int], layers: int) -> list[int]:
    """Return a count for each layer, where the header has one number for all or a list."""
    return counts if isinstance(counts, list) else [counts] * layers


def check_gguf(path: Path) -> list[Layout]:
    """Return the layouts of all shards of a model. Raises ModelLoadError for what is not GGUF, with a better reason than llama.cpp's."""
    try:
        if os.path.exists(path) and not (path.is_file() or path.is_dir()):
            raise ModelLoadError(f"{path}: neither a file nor a folder; name a .gguf file")  # opening a pipe would wait
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        hint = _missing_file_hint(str(path)) or "check the path, or run 'speccascade models' to see what is present"
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
    return [_check_layout(each) for each in shard_paths(path)]


def check_model(path: Path) -> None:
    """Refuse what :func:`check_gguf` refuses, LoRA adapters, and shards but the first. Raises ModelLoadError."""
    values = check_gguf(path)[0].values
    if values.get("general.type") == "adapter":
        raise ModelLoadError(
            f"{path}: a LoRA adapter and not a model; name the model that it belongs to, and the adapter with --expert-lora, "
            "--drafter-lora, or lora: in models.yaml"
        )
    first = shard_paths(path)[0]
    if path != first or values.get("split.no"):
        name = first.name if path != first else "the first"
        raise ModelLoadError(f"{path}: a shard of a model, but not the first; name {name}")


def _missing_file_hint(name: str) -> str:
    """Return what to do about a name that looks like an address or a repository; "" for any other."""
    if name.startswith(("http:", "https:")):
        return "nothing is downloaded; fetch it first and name the file"
    if _REPOSITORY.fullmatch(name):
        return (
            "if it is a repository on the Hugging Face hub: only files in GGUF form can be used; write the repository as hub: and "
            "such a file as file: into models.yaml, and fetch it with 'speccascade pull'"
        )
    return ""


def _check_layout(path: Path) -> Layout:
    try:
        layout = layout_of(path)
        _check_numbers(path, layout)
        return layout
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: no such file, and the model has several shards; fetch this one too") from None
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from error
