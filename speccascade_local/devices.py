"""What llama.cpp can compute on: the CPU, and the GPUs that its build knows; how much memory each has.

Asks ggml directly, whose functions the bindings leave out. Knows nothing of models.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp._ctypes_extensions import load_shared_library

from .backend import system_info
from .errors import SettingError

_KINDS = {0: "cpu", 1: "gpu", 2: "integrated gpu", 3: "accelerator"}


@dataclass(frozen=True)
class Device:
    """name: llama.cpp's, such as CUDA0. kind: cpu, gpu, integrated gpu or accelerator. free, total: bytes of its memory, as it says."""

    name: str
    description: str
    kind: str
    free: int
    total: int

    @property
    def is_gpu(self) -> bool:
        """Whether layers can be put there to be faster."""
        return self.kind.endswith("gpu")


def devices() -> list[Device]:
    """All of this build, as they are now."""
    return [_described(handle) for handle in _handles()]


def has_gpu() -> bool:
    """Whether any of them is one."""
    return any(_kind(handle).endswith("gpu") for handle in _handles())


def device_array(name: str) -> Any:
    """The device of this name as model parameters take it. Raises SettingError with those that there are."""
    handles = {_text("ggml_backend_dev_name", handle): handle for handle in _handles()}
    if name not in handles:
        raise SettingError(f"device is {name!r:.40}; llama.cpp has {', '.join(handles)} here; choose one of these, or name none")
    return ctypes.cast((ctypes.c_void_p * 2)(handles[name], None), ctypes.c_void_p)


def _described(handle: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _function("ggml_backend_dev_memory", None)(ctypes.c_void_p(handle), ctypes.byref(free), ctypes.byref(total))
    return Device(
        _text("ggml_backend_dev_name", handle),
        _text("ggml_backend_dev_description", handle),
        _kind(handle),
        free.value,
        total.value,
    )


def _kind(handle: int) -> str:
    return _KINDS.get(_function("ggml_backend_dev_type", ctypes.c_int)(ctypes.c_void_p(handle)), "other")


def _handles() -> list[int]:
    system_info()  # starts the backend
    count = _function("ggml_backend_dev_count", ctypes.c_size_t)()
    return [_function("ggml_backend_dev_get", ctypes.c_void_p)(ctypes.c_size_t(i)) for i in range(count)]


def _text(name: str, handle: int) -> str:
    text: bytes = _function(name, ctypes.c_char_p)(ctypes.c_void_p(handle)) or b""
    return text.decode(errors="replace")


@cache
def _function(name: str, result: Any) -> Any:
    for library in _libraries():
        if hasattr(library, name):
            function = library[name]
            function.restype = result
            return function
    raise AttributeError(name)


@lru_cache(maxsize=1)
def _libraries() -> list[ctypes.CDLL]:
    folder = Path(llama_cpp.__file__).parent / "lib"
    return [load_shared_library(name, folder) for name in ("ggml", "ggml-base")]
