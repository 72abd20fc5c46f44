"""The memory that models need, the layers that fit a GPU, and advice where something does not fit.

Everything is arithmetic on facts that are passed in; only :func:`free_memory` looks at the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..common.errors import ModelLoadError
from ..llama.devices import Device
from ..models.gguf_header import Layers
from ..models.placement import CACHE_TYPES, Placement
from .dry_run import ModelPlan
from .hardware import memory

#: The share of a GPU's free memory that is left for its driver and for what the plan misses.
_SPARE = 0.05
_MIN_CONTEXT, _CONTEXT_STEP = 256, 256
_SMALLER_CACHE = "q8_0"


@dataclass(frozen=True)
class MemoryNeed:
    """The memory that one model needs, in bytes by part: in this machine's own memory, and on a GPU."""

    own: Mapping[str, int]
    gpu: Mapping[str, int]

    @property
    def own_bytes(self) -> int:
        """The sum in this machine's own memory."""
        return sum(self.own.values())

    @property
    def gpu_bytes(self) -> int:
        """The sum on a GPU."""
        return sum(self.gpu.values())

    def __str__(self) -> str:
        parts = [f"{part} {_gigabytes(size)}" for part, size in self.own.items() if size]
        parts += [f"{part} on the GPU {_gigabytes(size)}" for part, size in self.gpu.items() if size]
        return ", ".join(parts)


def memory_need(model: ModelPlan, n_ctx: int, layers: Layers | None = None, gpu_layers: int = 0, timelines: int = 1) -> MemoryNeed:
    """Return the memory that one model needs, from its dry run.

    Args:
        model: The model's dry run.
        n_ctx: Tokens of each timeline's context.
        layers: The bytes of its layers; not needed where ``gpu_layers`` is 0.
        gpu_layers: How many layers lie on a GPU; -1 for all.
        timelines: How many texts the context holds at once.
    """
    cache = round(model.cache * timelines * n_ctx / model.n_ctx)
    host = sum(size for device, size in model.compute.items() if device.startswith("CPU") or device.endswith("_Host"))
    computing = sum(model.compute.values())
    recurrent = timelines * model.recurrent
    rest = {"copies of the state": timelines * model.copies, "logits": timelines * model.output, "vocabulary and plan": model.other}
    if layers is None or not gpu_layers:
        own = {"weights": model.weights, "cache": cache, "recurrent state": recurrent, "computing": computing}
        return MemoryNeed(own | rest, {})
    blocks = len(layers.blocks) if gpu_layers < 0 else min(gpu_layers - 1, len(layers.blocks))
    share = blocks / max(1, len(layers.blocks))
    weights = layers.output + sum(layers.blocks[len(layers.blocks) - blocks :])
    gpu = {"weights": weights, "cache": round(cache * share), "recurrent state": round(recurrent * share), "computing": computing - host}
    own = {
        "weights": max(layers.input, model.weights - weights),
        "cache": cache - gpu["cache"],
        "recurrent state": recurrent - gpu["recurrent state"],
        "computing": host,
    }
    return MemoryNeed(own | rest, gpu)


def layers_that_fit(model: ModelPlan, n_ctx: int, layers: Layers, free: int, timelines: int = 1) -> int:
    """Return how many layers fit ``free`` bytes of a GPU: -1 for all, 0 for none. llama.cpp takes them from the output down."""
    room = free * (1 - _SPARE)
    for count in range(len(layers.blocks) + 1, 0, -1):
        if memory_need(model, n_ctx, layers, count, timelines).gpu_bytes <= room:
            return -1 if count > len(layers.blocks) else count
    return 0


def choose_layers(
    placements: Mapping[str, Placement],
    models: Mapping[str, ModelPlan],
    layers: Mapping[str, Layers],
    n_ctx: int,
    devices: Sequence[Device],
    timelines: int = 1,
) -> dict[str, Placement]:
    """Return the placements with a number in place of every ``"auto"``, and reordered weights not mapped from the file.

    The drafter goes first. In a block its layers are read once per drafted token, the expert's once, so a byte of the drafter on the GPU
    saves more.

    Args:
        placements: What the user asked for, by role.
        models: The dry runs by role.
        layers: The bytes of the layers by role; needed only where there is a GPU.
        n_ctx: Tokens of each timeline's context.
        devices: The devices of this machine and of its servers.
        timelines: How many texts a context holds at once.
    """
    free = {device.name: device.free for device in devices if device.is_gpu}
    chosen = dict(placements)
    for role in sorted(models, key=lambda role: (chosen[role].gpu_layers == "auto", role == "expert")):
        names = _gpus_of(chosen[role], devices)
        room = sum(free[name] for name in names)
        count = chosen[role].gpu_layers if names else 0
        if count == "auto":
            count = layers_that_fit(models[role], n_ctx, layers[role], room, timelines)
        chosen[role] = replace(chosen[role], gpu_layers=count, mapped=not models[role].reordered)
        need = memory_need(models[role], n_ctx, layers.get(role), count, timelines).gpu_bytes
        for name in names:  # llama.cpp spreads layers over several GPUs by what is free on each
            free[name] -= round(need * free[name] / room) if room else 0
    return chosen


def require_fit(
    needs: Mapping[str, MemoryNeed], placements: Mapping[str, Placement], n_ctx: int, free: int, devices: Sequence[Device]
) -> None:
    """Raise ModelLoadError where the models do not fit, with what would fit.

    ``free``: bytes of this machine's own memory. ``devices``: those of this machine and of its servers.
    """
    need = sum(each.own_bytes for each in needs.values())
    if need > free:
        advice = _what_fits(list(needs.values()), placements, n_ctx, free)
        raise ModelLoadError(_describe_lack("memory", need, free, needs, n_ctx, advice))
    gpu_free = {device.name: device.free for device in devices if device.is_gpu}
    gpus = {role: _gpus_of(placements[role], devices) for role, each in needs.items() if each.gpu_bytes}
    for names in set(gpus.values()):
        sharing = {role: needs[role] for role in gpus if gpus[role] == names}
        need, room = sum(each.gpu_bytes for each in sharing.values()), sum(gpu_free[name] for name in names)
        if need > room:
            advice = "as many layers as fit (--gpu-layers auto), or a smaller context (--ctx)"
            raise ModelLoadError(_describe_lack(f"memory on {' and '.join(names)}", need, room, sharing, n_ctx, advice))


def free_memory() -> int:
    """Return the bytes that this process may still take, within a container's limit."""
    return memory().available


def _what_fits(needs: Sequence[MemoryNeed], placements: Mapping[str, Placement], n_ctx: int, free: int) -> str:
    """Return what would fit ``free`` bytes, as options."""
    cache = sum(need.own["cache"] for need in needs)
    fixed = sum(need.own_bytes for need in needs) - cache
    options = []
    n_fitting = int(n_ctx * (free - fixed) / cache) // _CONTEXT_STEP * _CONTEXT_STEP if cache else 0
    if n_fitting >= _MIN_CONTEXT:
        options.append(f"a context of {n_fitting} tokens (--ctx {n_fitting})")
    bits = max(CACHE_TYPES[placement.cache_type] for placement in placements.values())
    if bits > CACHE_TYPES[_SMALLER_CACHE] and fixed + cache * CACHE_TYPES[_SMALLER_CACHE] / bits <= free:
        options.append(f"a smaller cache (--cache-type {_SMALLER_CACHE})")
    return " or ".join(options) or "smaller models, or the same ones with fewer bits per weight; even a small context does not help"


def _describe_lack(what: str, need: int, free: int, needs: Mapping[str, MemoryNeed], n_ctx: int, advice: str) -> str:
    parts = "; ".join(f"{role}: {each}" for role, each in needs.items())
    return (
        f"these models need {_gigabytes(need)} of {what} at a context of {n_ctx} tokens, and {_gigabytes(free)} are free ({parts}). "
        f"What would fit: {advice}"
    )


def _gpus_of(placement: Placement, devices: Sequence[Device]) -> tuple[str, ...]:
    """Return the GPUs of this machine, and the devices of servers, that a model's layers go to."""
    own = {device.name for device in devices if device.is_gpu and device.server is None and placement.device in (None, device.name)}
    return tuple(device.name for device in devices if device.name in own or device.server in placement.rpc)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
