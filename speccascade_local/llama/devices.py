"""Devices that can hold and evaluate a model's layers, as this build of llama.cpp sees them: processors, graphics cards, servers."""

from __future__ import annotations

import ctypes
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import SettingError
from .backend import ggml_function, system_info

_POINTER, _NUMBER, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_KINDS = ("cpu", "gpu", "integrated gpu", "accelerator", "several")  # enum ggml_backend_dev_type


@dataclass(frozen=True)
class Device:
    """One device."""

    name: str  # as llama.cpp names it, such as ``CUDA0``
    description: str  # as its driver names it; of a server, its address
    kind: str  # ``cpu``, ``gpu``, ``integrated gpu``, ``accelerator`` (helps the CPU, holds nothing) or ``several``
    free: int  # bytes of free memory
    total: int  # bytes of all its memory
    handle: int = field(default=0, repr=False, compare=False)  # the ``ggml_backend_dev_t``

    @property
    def server(self) -> str | None:
        """The RPC server that it belongs to; None for a device of this machine."""
        return self.description if self.name.startswith("RPC") else None

    @property
    def is_gpu(self) -> bool:
        """Whether layers are faster there."""
        return self.kind.endswith("gpu")


def devices() -> tuple[Device, ...]:
    """Return the devices of this machine, in llama.cpp's order."""
    return tuple(describe(handle) for handle in _handles())


def has_gpu() -> bool:
    """Return whether this machine has a GPU, without asking for its free memory."""
    return any(_kind(handle).endswith("gpu") for handle in _handles())


def describe(handle: int) -> Device:
    """Return what a ``ggml_backend_dev_t`` reports."""
    name: bytes = ggml_function("ggml_backend_dev_name", _TEXT, _POINTER)(handle)
    description: bytes = ggml_function("ggml_backend_dev_description", _TEXT, _POINTER)(handle)
    free, total = _NUMBER(), _NUMBER()
    numbers = ctypes.POINTER(_NUMBER)
    ggml_function("ggml_backend_dev_memory", None, _POINTER, numbers, numbers)(handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name.decode(errors="replace"), description.decode(errors="replace").strip(), _kind(handle), free.value, total.value, handle
    )


def device(name: str) -> Device:
    """Return the device of a name. Raises SettingError, which lists the known ones."""
    known = {each.name: each for each in devices()}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name.upper(), known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise SettingError(f"device is {name!r:.40}; llama.cpp has {', '.join(known)} here{hint}; choose one of these, or omit the option")


def _handles() -> list[int]:
    system_info()  # llama.cpp finds its devices when it starts
    count = ggml_function("ggml_backend_dev_count", _NUMBER)()
    return [ggml_function("ggml_backend_dev_get", _POINTER, _NUMBER)(index) for index in range(count)]


def _kind(handle: int) -> str:
    kind: int = ggml_function("ggml_backend_dev_type", ctypes.c_int, _POINTER)(handle)
    return _KINDS[kind] if kind < len(_KINDS) else "unknown"


def device_array(chosen: Sequence[Device]) -> Any:
    """Return devices as ``llama_model_params.devices`` takes them."""
    return ctypes.cast((_POINTER * (len(chosen) + 1))(*(each.handle for each in chosen), None), _POINTER)
