"""Whether models fit what is free, layer by layer on a GPU, and what would fit where they do not.

All that decides is plain arithmetic over facts that are handed in; only :func:`free_memory` looks at the machine. Knows nothing of how
models are loaded.
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

#: Of a GPU's free memory: what its driver takes meanwhile, and what planning misses.
_SPARE = 0.05
_SMALLEST_CONTEXT, _STEP = 256, 256
_SHORTER = "q8_0"


@dataclass(frozen=True)
class MemoryNeed:
    """What one model takes at a context of so many tokens, in bytes by part, in this machine's own memory and on a GPU."""

    own: Mapping[str, int]
    gpu: Mapping[str, int]

    @property
    def own_bytes(self) -> int:
        """In this machine's own memory."""
        return sum(self.own.values())

    @property
    def gpu_bytes(self) -> int:
        """On a GPU."""
        return sum(self.gpu.values())

    def __str__(self) -> str:
        parts = [f"{part} {_gigabytes(size)}" for part, size in self.own.items() if size]
        parts += [f"{part} on the GPU {_gigabytes(size)}" for part, size in self.gpu.items() if size]
        return ", ".join(parts)


def memory_need(model: ModelPlan, n_ctx: int, layers: Layers | None = None, gpu_layers: int = 0, timelines: int = 1) -> MemoryNeed:
    """Of one model, from its rehearsal. layers: needed where ``gpu_layers`` are more than 0; -1 is all. timelines: of ``n_ctx`` each."""
    grows = timelines * n_ctx / model.n_ctx
    cache = round(model.cache * grows)
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
    gpu = {
        "weights": weights,
        "cache": round(cache * share),
        "recurrent state": round(recurrent * share),
        "computing": computing - host,
    }
    own = {
        "weights": max(layers.input, model.weights - weights),
        "cache": cache - gpu["cache"],
        "recurrent state": recurrent - gpu["recurrent state"],
        "computing": host,
    }
    return MemoryNeed(own | rest, gpu)


def layers_that_fit(model: ModelPlan, n_ctx: int, layers: Layers, free: int, timelines: int = 1) -> int:
    """How many of a model's layers fit so many bytes of a GPU: -1 for all, 0 for none. llama.cpp takes them from the output down."""
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
    """The placements with a number in place of every ``"auto"``, 0 where there is no GPU, and weights in another order not mapped.

    layers: needed only where there is a GPU.
    The models that draft go first: in a block each of their layers is read once per drafted token, the expert's once, so a byte of
    theirs on the GPU saves the most.
    """
    free = {device.name: device.free for device in devices if device.is_gpu}
    given = dict(placements)
    asked = sorted(models, key=lambda role: (given[role].gpu_layers == "auto", ("drafter", "expert").index(role)))
    for role in asked:
        where = _devices_of(given[role], devices)
        room = sum(free[name] for name in where)
        count = given[role].gpu_layers if where else 0
        if count == "auto":
            count = layers_that_fit(models[role], n_ctx, layers[role], room, timelines)
        given[role] = replace(given[role], gpu_layers=count, mapped=not models[role].reordered)
        taken = memory_need(models[role], n_ctx, layers.get(role), count, timelines).gpu_bytes
        for name in where:  # llama.cpp spreads over several by what is free on each
            free[name] -= round(taken * free[name] / room) if room else 0
    return given


def require_fit(
    needs: Mapping[str, MemoryNeed], placements: Mapping[str, Placement], n_ctx: int, own: int, devices: Sequence[Device]
) -> None:
    """own: bytes free in this machine's own memory. Raises ModelLoadError, which says what would fit, where the models do not."""
    wanted = sum(need.own_bytes for need in needs.values())
    if wanted > own:
        advice = _what_fits(list(needs.values()), placements, n_ctx, own)
        raise ModelLoadError(_short("memory", wanted, own, needs, n_ctx, advice))
    free = {device.name: device.free for device in devices if device.is_gpu}
    for names in {_devices_of(placements[role], devices) for role, need in needs.items() if need.gpu_bytes}:
        there = {role: need for role, need in needs.items() if need.gpu_bytes and _devices_of(placements[role], devices) == names}
        wanted, room = sum(need.gpu_bytes for need in there.values()), sum(free[name] for name in names)
        if wanted > room:
            advice = "as many layers as fit (--gpu-layers auto), or a smaller context (--ctx)"
            raise ModelLoadError(_short(f"memory on {' and '.join(names)}", wanted, room, there, n_ctx, advice))


def free_memory() -> int:
    """Bytes that this process may still take, a container's limit included."""
    return memory().available


def _what_fits(needs: Sequence[MemoryNeed], placements: Mapping[str, Placement], n_ctx: int, own: int) -> str:
    """In the options' words."""
    wanted = sum(need.own_bytes for need in needs)
    cache = sum(need.own["cache"] for need in needs)
    fixed = wanted - cache
    found = []
    largest = int(n_ctx * (own - fixed) / cache) // _STEP * _STEP if cache else 0
    if largest >= _SMALLEST_CONTEXT:
        found.append(f"a context of {largest} tokens (--ctx {largest})")
    now = max(CACHE_TYPES[placement.cache_type] for placement in placements.values())
    if now > CACHE_TYPES[_SHORTER] and fixed + cache * CACHE_TYPES[_SHORTER] / now <= own:
        found.append(f"a shorter cache (--cache-type {_SHORTER})")
    return " or ".join(found) or "smaller models, or the same ones with fewer bits per weight; even a small context does not help"


def _short(what: str, wanted: int, free: int, needs: Mapping[str, MemoryNeed], n_ctx: int, advice: str) -> str:
    listed = "; ".join(f"{role}: {need}" for role, need in needs.items())
    return (
        f"these models need {_gigabytes(wanted)} of {what} at a context of {n_ctx} tokens, and {_gigabytes(free)} are free ({listed}). "
        f"What would fit: {advice}"
    )


def _devices_of(placement: Placement, devices: Sequence[Device]) -> tuple[str, ...]:
    """The GPUs, and other machines, that its layers go to."""
    own = {device.name for device in devices if device.is_gpu and device.server is None and placement.device in (None, device.name)}
    return tuple(device.name for device in devices if device.name in own or device.server in placement.rpc)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
