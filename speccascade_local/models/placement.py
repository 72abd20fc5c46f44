"""Where a model is put and in what form it is held: layers on a GPU, its device, the type of its cache, adapters, other machines.

Checked when made. Knows nothing of llama.cpp, of files, or of what is free on this machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..common.endpoints import parse_endpoints
from ..common.errors import SettingError
from ..common.validation import whole_number

#: What a cache can be held in, with the bytes that one value takes there (a block's bytes over its values).
CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}
#: Those whose values share a scale, which costs some precision.
QUANTIZED = frozenset(name for name in CACHE_TYPES if name.startswith("q"))
FLASH_ATTENTION = ("auto", "on", "off")
_MOST_LAYERS = 2**31 - 1


@dataclass(frozen=True)
class Placement:
    """How one model is loaded.

    gpu_layers: so many layers on the GPU, -1 for all, ``"auto"`` for as many as fit; without a GPU it has no effect. device: llama.cpp's
    name of the one that takes them, None for its own choice. cache_type: one of ``CACHE_TYPES``. flash_attention: ``"auto"`` turns it on
    where a GPU does the work, or a quantized cache needs it. lora: adapters, each with its scale. rpc: other machines, ``"host:port"``.
    mapped: the file stays mapped and its pages are the weights; not so where these are kept in another order, or there would be two copies.
    exact: weights are never kept in another order, and every row is computed as it is for single tokens, whatever else the batch holds
    (llama/exactness.py).

    Raises SettingError.
    """

    gpu_layers: int | Literal["auto"] = "auto"
    device: str | None = None
    cache_type: str = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    lora: tuple[tuple[Path, float], ...] = ()
    rpc: tuple[str, ...] = ()
    mapped: bool = True
    exact: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.exact, bool):
            raise SettingError(f"exact is {self.exact!r:.40}; it must be True or False")
        if self.gpu_layers != "auto":
            whole_number("gpu_layers (--gpu-layers)", self.gpu_layers, -1, _MOST_LAYERS, " (-1: all), or 'auto'")
        if self.cache_type not in CACHE_TYPES:
            raise SettingError(f"cache_type (--cache-type) is {self.cache_type!r:.40}; it must be one of {', '.join(CACHE_TYPES)}")
        if self.flash_attention not in FLASH_ATTENTION:
            raise SettingError(f"flash_attention (--flash-attention) is {self.flash_attention!r:.40}; it must be auto, on or off")
        if self.flash_attention == "off" and self.cache_type in QUANTIZED:
            raise SettingError(f"a cache of type {self.cache_type} needs flash attention, which is off; choose f16, or leave it at auto")
        if self.flash_attention == "off" and self.exact:
            raise SettingError(
                "exact needs flash attention, which is off: without it rounding depends on how much the cache holds; leave it at auto"
            )
        parse_endpoints(self.rpc)
        for path, scale in self.lora:
            if not math.isfinite(scale):
                raise SettingError(f"the scale of the adapter {path} is {scale}; it must be a finite number, 1 as a rule")

    @property
    def wants_flash_attention(self) -> bool | None:
        """None: llama.cpp's own choice on a GPU, off elsewhere."""
        if self.flash_attention == "auto":
            return True if self.cache_type in QUANTIZED or self.exact else None
        return self.flash_attention == "on"

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON: what :meth:`from_dict` reads."""
        return {**vars(self), "lora": [[str(path), scale] for path, scale in self.lora], "rpc": list(self.rpc)}

    @classmethod
    def from_dict(cls, given: dict[str, object]) -> Placement:
        """What :meth:`as_dict` gave."""
        values: dict[str, object] = {**given}
        values["lora"] = tuple((Path(path), float(scale)) for path, scale in values.get("lora", ()))  # type: ignore[attr-defined]
        values["rpc"] = tuple(values.get("rpc", ()))  # type: ignore[arg-type]
        return cls(**values)  # type: ignore[arg-type]


#: The context that is made where none is asked for, if both models were trained for as much.
DEFAULT_CONTEXT = 4096
