"""The options for devices, GPU layers and caches, as placements by role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.errors import SettingError
from ..models.placement import CACHE_TYPES, Placement

#: Options under the headings of --help.
in_models = partial(typer.Option, rich_help_panel="Models")
in_memory = partial(typer.Option, rich_help_panel="Memory")


@dataclass(frozen=True)
class PlacementOptions:
    """How each model is loaded. None stands for the placement's own default."""

    gpu_layers: Annotated[
        str | None, in_memory(show_default="auto", help="Layers on the GPU: a number, -1 for all, auto for as many as fit.")
    ] = None
    drafter_gpu_layers: Annotated[str | None, in_memory(show_default="the same", help="Layers of the drafter on the GPU.")] = None
    expert_device: Annotated[
        str | None, in_memory(show_default="llama.cpp's choice", help="Device for the expert's layers, such as CUDA0.")
    ] = None
    drafter_device: Annotated[str | None, in_memory(show_default="llama.cpp's choice", help="Device for the drafter's layers.")] = None
    cache_type: Annotated[str | None, in_memory(show_default="f16", help=f"Type of the KV caches: {', '.join(CACHE_TYPES)}.")] = None
    drafter_cache_type: Annotated[str | None, in_memory(show_default="the same", help="Type of the drafter's KV cache.")] = None
    flash_attention: Annotated[str | None, in_memory(show_default="auto", help="on, off, or auto: on where it costs no accuracy.")] = None
    expert_lora: Annotated[list[str] | None, in_models(metavar="FILE[=SCALE]", help="LoRA adapter for the expert; may be repeated.")] = None
    drafter_lora: Annotated[list[str] | None, in_models(metavar="FILE[=SCALE]", help="LoRA adapter for the drafter; may be repeated.")] = (
        None
    )
    rpc: Annotated[list[str] | None, in_memory(metavar="HOST:PORT", help="Another machine for layers of the expert; may be repeated.")] = (
        None
    )
    exact: Annotated[
        bool, in_memory("--exact", help="Make strict at temperature 0 equal to the expert's own text; batches are slower.")
    ] = False
    check_memory: Annotated[
        bool, in_memory("--check-memory/--no-check-memory", help="Refuse to load what does not fit the free memory.")
    ] = True

    def placements(self) -> dict[str, Placement]:
        """Return how each model is loaded, by role. Raises SettingError."""
        flash = {"flash_attention": self.flash_attention}
        expert = {"gpu_layers": _layers(self.gpu_layers), "device": self.expert_device, "cache_type": self.cache_type, **flash}
        drafter = {
            "gpu_layers": _layers(self.drafter_gpu_layers) if self.drafter_gpu_layers is not None else expert["gpu_layers"],
            "device": self.drafter_device,
            "cache_type": self.drafter_cache_type or self.cache_type,
            **flash,
        }
        return {
            "drafter": _placement({**drafter, "lora": _adapters(self.drafter_lora)}),
            "expert": _placement({**expert, "lora": _adapters(self.expert_lora), "rpc": tuple(self.rpc or ()), "exact": self.exact}),
        }


def _placement(options: Mapping[str, Any]) -> Placement:
    """Return the placement, with defaults where an option is None. Raises SettingError."""
    return Placement(**{name: value for name, value in options.items() if value is not None})


def _layers(text: str | None) -> int | str | None:
    """Return 20 for ``"20"``; other texts stay, for Placement to check."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def _adapters(texts: list[str] | None) -> tuple[tuple[Path, float], ...]:
    """Return file and scale of each ``"style.gguf=0.5"``. Raises SettingError."""
    adapters = []
    for text in texts or ():
        path, _, scale = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            adapters.append((Path(path), float(scale)))
        except ValueError:
            raise SettingError(f"the adapter {text!r:.80} is not FILE or FILE=SCALE, such as style.gguf=0.5") from None
    return tuple(adapters)
