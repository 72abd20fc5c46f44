"""The options that say where models are put and how their memory is held, as placements by role.

Knows nothing of which models, or of what is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.errors import SettingError
from ..models.placement import CACHE_TYPES, Placement


@dataclass(frozen=True)
class PlacementOptions:
    """How each model is loaded. What is not given is None, and the placement's own default."""

    gpu_layers: Annotated[
        str | None,
        typer.Option(show_default="auto", rich_help_panel="Memory", help="Layers on the GPU: a number, -1 for all, auto for what fits."),
    ] = None
    drafter_gpu_layers: Annotated[
        str | None, typer.Option(show_default="the same", rich_help_panel="Memory", help="Those of the models that draft.")
    ] = None
    expert_device: Annotated[
        str | None, typer.Option(show_default="llama.cpp's choice", rich_help_panel="Memory", help="Where the expert's layers go: CUDA0.")
    ] = None
    drafter_device: Annotated[
        str | None, typer.Option(show_default="llama.cpp's choice", rich_help_panel="Memory", help="Where those go that draft.")
    ] = None
    cache_type: Annotated[
        str | None, typer.Option(show_default="f16", rich_help_panel="Memory", help=f"Type of the caches: {', '.join(CACHE_TYPES)}.")
    ] = None
    drafter_cache_type: Annotated[
        str | None, typer.Option(show_default="the same", rich_help_panel="Memory", help="That of the models that draft.")
    ] = None
    flash_attention: Annotated[
        str | None, typer.Option(show_default="auto", rich_help_panel="Memory", help="on, off, or auto: where it costs no accuracy.")
    ] = None
    expert_lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[=SCALE]", rich_help_panel="Models", help="A LoRA on the expert; may be repeated.")
    ] = None
    drafter_lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[=SCALE]", rich_help_panel="Models", help="A LoRA on the drafter; may be repeated.")
    ] = None
    rpc: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", rich_help_panel="Memory", help="A machine that holds layers of the expert; may be repeated."),
    ] = None
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", rich_help_panel="Memory", help="strict at temperature 0 is the expert's own text to the last token; slower batches."
        ),
    ] = False
    check_memory: Annotated[
        bool, typer.Option("--check-memory/--no-check-memory", rich_help_panel="Memory", help="Refuse what does not fit what is free.")
    ] = True

    def placements(self) -> dict[str, Placement]:
        """How each model is loaded, by role. Raises SettingError."""
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


def _placement(given: Mapping[str, Any]) -> Placement:
    """With the defaults for what was not given. Raises SettingError."""
    return Placement(**{name: value for name, value in given.items() if value is not None})


def _layers(given: str | None) -> int | str | None:
    """``"20"`` -> 20. What is no number stays as it is, for Placement to judge."""
    try:
        return None if given is None else int(given)
    except ValueError:
        return given


def _adapters(given: list[str] | None) -> tuple[tuple[Path, float], ...]:
    """``["style.gguf=0.5"]`` -> that file, with that scale. Raises SettingError."""
    found = []
    for text in given or ():
        path, _, scale = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            found.append((Path(path), float(scale)))
        except ValueError:
            raise SettingError(f"the adapter {text!r:.80} is not FILE or FILE=SCALE, such as style.gguf=0.5") from None
    return tuple(found)
