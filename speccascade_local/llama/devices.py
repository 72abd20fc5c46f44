"""What can hold and evaluate a model's layers, as this build of llama.cpp sees it: processors, graphics cards, servers.

Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import SettingError
from .backend import function, system_info

_POINTER, _NUMBER, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_KINDS = ("cpu", "gpu", "integrated gpu", "accelerator", "several")  # enum ggml_backend_dev_type


@dataclass(frozen=True)
class Device:
    """One of them.

    kind: ``cpu``, ``gpu``, ``integrated gpu``, ``accelerator`` (helps the cpu, holds nothing itself) or ``several``. free, total: bytes
    of its memory; a server is asked for it. server: the RPC server that it belongs to, None for one of this machine. handle: the
    ``ggml_backend_dev_t``.
    """

    name: str
    description: str
    kind: str
    free: int
    total: int
    handle: int = field(default=0, repr=False, compare=False)

    @property
    def server(self) -> str | None:
        return self.description if self.name.startswith("RPC") else None

    @property
    def is_gpu(self) -> bool:
        """Whether layers can be put there to be faster."""
        return self.kind.endswith("gpu")


def devices() -> tuple[Device, ...]:
    """Those of this machine, in llama.cpp's order."""
    return tuple(describe(handle) for handle in _handles())


def has_gpu() -> bool:
    """Whether any of them is one, without asking how much is free there."""
    return any(_kind(handle).endswith("gpu") for handle in _handles())


def describe(handle: int) -> Device:
    """What a ``ggml_backend_dev_t`` tells of itself."""
    name: bytes = function("ggml_backend_dev_name", _TEXT, _POINTER)(handle)
    description: bytes = function("ggml_backend_dev_description", _TEXT, _POINTER)(handle)
    free, total = _NUMBER(), _NUMBER()
    numbers = ctypes.POINTER(_NUMBER)
    function("ggml_backend_dev_memory", None, _POINTER, numbers, numbers)(handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name.decode(errors="replace"),
        description.decode(errors="replace").strip(),
        _kind(handle),
        free.value,
        total.value,
        handle,
    )


def device(name: str) -> Device:
    """The one of that name. Raises SettingError with those that there are."""
    there = {each.name: each for each in devices()}
    if name in there:
        return there[name]
    close = difflib.get_close_matches(name.upper(), there, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    known = ", ".join(there)
    raise SettingError(f"device is {name!r:.40}; llama.cpp has {known} here{hint}; choose one of these, or name none")


def _handles() -> list[int]:
    system_info()  # llama.cpp finds its devices when it starts
    count = function("ggml_backend_dev_count", _NUMBER)()
    return [function("ggml_backend_dev_get", _POINTER, _NUMBER)(index) for index in range(count)]


def _kind(handle: int) -> str:
    kind: int = function("ggml_backend_dev_type", ctypes.c_int, _POINTER)(handle)
    return _KINDS[kind] if kind < len(_KINDS) else "unknown"


def array_of(chosen: Sequence[Device]) -> Any:
    """As ``llama_model_params.devices`` takes them."""
    return ctypes.cast((_POINTER * (len(chosen) + 1))(*(each.handle for each in chosen), None), _POINTER)
