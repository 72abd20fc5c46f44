"""Where a model is loaded and in what form: layers on a GPU, its device, the type of its KV cache, adapters, other machines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import TypeAdapter

from ..common.endpoints import parse_endpoints
from ..common.errors import SettingError
from ..common.validation import whole_number
from .gguf_layout import TENSOR_TYPES

CacheType = Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
_BYTES = {name.lower(): block_bytes / block_values for name, block_values, block_bytes in TENSOR_TYPES.values()}
#: The types of a KV cache, with the bytes of one value.
CACHE_TYPES: dict[str, float] = {name: _BYTES[name] for name in get_args(CacheType)}
#: Types whose values share a scale, which costs some precision.
QUANTIZED = frozenset(name for name in CACHE_TYPES if name.startswith("q"))
FLASH_ATTENTION = ("auto", "on", "off")
#: Tokens of the context where none is given and both models were trained for at least this many.
DEFAULT_CONTEXT = 4096
_MAX_LAYERS = 2**31 - 1


@dataclass(frozen=True)
class Placement:
    """How one model is loaded. Raises SettingError if a value is not allowed, or if two of them do not go together.

    Args:
        gpu_layers: The number of layers on the GPU; -1 for all, ``"auto"`` for as many as fit. Without a GPU it has no effect.
        device: llama.cpp's name of the device that takes them; None for its own choice.
        cache_type: The type of the KV cache, one of ``CACHE_TYPES``.
        flash_attention: ``"auto"`` turns it on where a GPU does the work, or a quantized cache needs it.
        lora: LoRA adapters, each with its scale.
        rpc: Other machines that hold layers, ``"host:port"`` each.
        mapped: Use the pages of the mapped file as the weights. False where weights are repacked, to avoid a second copy.
        exact: Never repack weights, and compute every row as for a single token, whatever else the batch holds (llama/exactness.py).
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
            whole_number("gpu_layers (--gpu-layers)", self.gpu_layers, -1, _MAX_LAYERS, " (-1: all), or 'auto'")
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
                raise SettingError(f"the scale of the adapter {path} is {scale}; it must be a finite number, usually 1")

    @property
    def wants_flash_attention(self) -> bool | None:
        """Whether to turn flash attention on; None for llama.cpp's own choice on a GPU, off elsewhere."""
        if self.flash_attention == "auto":
            return True if self.cache_type in QUANTIZED or self.exact else None
        return self.flash_attention == "on"

    def as_dict(self) -> dict[str, object]:
        """Return the fields as plain values for JSON, which :meth:`from_dict` reads."""
        return cast(dict[str, object], _adapter().dump_python(self, mode="json"))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Placement:
        """Return the placement that :meth:`as_dict` describes."""
        return _adapter().validate_python(fields)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Placement]:
    return TypeAdapter(Placement)
