"""What a GGUF file tells of itself without being loaded: how much of it each token reads, and how much memory a text takes.

Knows nothing of machines.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelLoadError
from .layout import Layout, Tensor, layout_of

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>[MG]i?B)", re.IGNORECASE)
_UNITS = {"mb": 1e6, "mib": 2**20, "gb": 1e9, "gib": 2**30}
_ALIGNMENT = 32  # where a file says nothing else
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


def of_size(path: Path) -> Header | None:
    """What ``"4.9GB"`` in place of a file tells: as if each token read all of it; no cache and no vocabulary, which are not known."""
    found = None if path.exists() else _SIZE.fullmatch(str(path))
    if found is None:
        return None
    size = round(float(found["number"]) * _UNITS[found["unit"].lower()])
    return Header(path, "unknown", "unknown", size, size, 0, 0, n_ctx_train=sys.maxsize)


def read_header(path: Path) -> Header:
    """Raises ModelLoadError for what is no GGUF file, or lacks what every model has."""
    check_gguf(path)
    layout = layout_of(path)
    try:
        found, needed = _described(path, layout), _reach(layout)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path}: its header cannot be read ({error}); it may be damaged: fetch it again") from error
    if (there := path.stat().st_size) < needed:
        raise ModelLoadError(f"{path}: its header tells of {needed} bytes, there are {there}: the file is cut off; fetch it again")
    return found


def _reach(layout: Layout) -> int:
    """How long the file must be: to the end of the tensor that lies last."""
    alignment = layout.values.get("general.alignment", _ALIGNMENT)
    begin: int = -(-layout.end // alignment) * alignment
    return begin + max((tensor.offset + _bytes(tensor) for tensor in layout.tensors), default=0)


def _described(path: Path, layout: Layout) -> Header:
    def value(name: str, default: Any = None) -> Any:
        if name in layout.lists:
            return layout.entries(name)
        found = layout.values.get(name, default)
        if found is None:
            raise KeyError(f"{name} is missing")
        return found

    kind = value("general.architecture")
    layers, width = value(f"{kind}.block_count"), value(f"{kind}.embedding_length")
    heads = _per_layer(value(f"{kind}.attention.head_count", 0), layers)
    shared = _per_layer(value(f"{kind}.attention.head_count_kv", heads), layers)
    usual = width // max(*heads, 1)
    values = value(f"{kind}.attention.key_length", usual) + value(f"{kind}.attention.value_length", usual)
    sizes = {tensor.name: _bytes(tensor) for tensor in layout.tensors}
    kinds: Counter[str] = Counter()
    for tensor in layout.tensors:
        kinds[_type_name(tensor)] += sizes[tensor.name]
    experts, used = value(f"{kind}.expert_count", 0), value(f"{kind}.expert_used_count", 0)
    in_use = used / experts if experts and used else 1.0
    embedding = sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0  # else it is the output too
    routed = sum(size for name, size in sizes.items() if "_exps." in name)
    weights = sum(sizes.values())
    return Header(
        path=path,
        architecture=kind,
        quantization=kinds.most_common(1)[0][0] if kinds else "none",
        weights=weights,
        token_bytes=round(weights - embedding - routed * (1 - in_use)),
        cache_bytes=sum(shared) * values * _CACHE_BYTES,
        n_vocab=value(f"{kind}.vocab_size", 0) or layout.lists["tokenizer.ggml.tokens"].count,
        n_ctx_train=value(f"{kind}.context_length"),
    )


def _bytes(tensor: Tensor) -> int:
    """What it takes in the file. Raises ValueError for a type that is not known."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # slow to import, and needed by few verbs

    values, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    return tensor.n_values // values * size


def _type_name(tensor: Tensor) -> str:
    from gguf import GGMLQuantizationType

    return str(GGMLQuantizationType(tensor.kind).name)


def _per_layer(counts: int | list[int], layers: int) -> list[int]:
    """One number for all layers, or one for each."""
    return counts if isinstance(counts, list) else [counts] * layers


def check_gguf(path: Path) -> None:
    """Refuse early, with a better reason than llama.cpp gives, what cannot be a GGUF file. Raises ModelLoadError."""
    try:
        if os.path.exists(path) and not (path.is_file() or path.is_dir()):
            raise ModelLoadError(f"{path}: neither a file nor a folder; name a .gguf file")  # a pipe would be waited for
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        away = "nothing is downloaded; fetch it first and name the file" if str(path).startswith(("http:", "https:")) else ""
        hint = away or "check the path, or run 'speccascade models' to see what is present"
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
