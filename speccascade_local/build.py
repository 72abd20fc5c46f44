"""What llama.cpp says of the way it was built: instruction sets, and what it can put layers on.

Knows nothing of what this machine could do with another build.
"""

from __future__ import annotations

from dataclasses import dataclass

import llama_cpp

from . import ggml, rpc
from .backend import extra_buffers_are_safe, system_info
from .devices import has_gpu


@dataclass(frozen=True)
class Build:
    """features: instruction sets and parts that are in it. gpu: whether it found a graphics card. repacking: whether weights may be."""

    commit: str | None
    features: tuple[str, ...]
    gpu: bool
    rpc: bool
    mmap: bool
    repacking: bool


def built() -> Build:
    """What llama.cpp says of itself."""
    info = system_info()
    pairs = (part.split(" : ")[-1].split(" = ") for part in info.split("|"))
    features = tuple(pair[0].strip() for pair in pairs if len(pair) == 2 and pair[1].strip() != "0")
    return Build(
        commit=ggml.commit(),
        features=features,
        gpu=has_gpu(),
        rpc=rpc.supported(),
        mmap=bool(llama_cpp.llama_supports_mmap()),
        repacking=extra_buffers_are_safe(info),
    )
