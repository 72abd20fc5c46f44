"""Functions of ggml, the library below llama.cpp, which the Python bindings leave out.

Knows nothing of models and pairs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import _ctypes_extensions as extensions

from .errors import ModelLoadError

_FOLDER = Path(llama_cpp.__file__).parent / "lib"
#: On Windows a library does not pass on the functions of those that it is linked with, so each is asked.
_LIBRARIES = ("ggml", "ggml-base")


@cache
def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """The function of that name, with ctypes' types of what it gives and takes. Raises ModelLoadError where this build has none."""
    for library in _LIBRARIES:
        found = getattr(_opened(library), name, None)
        if found is not None:
            found.restype, found.argtypes = result, arguments
            return found  # type: ignore[no-any-return]
    raise ModelLoadError(f"this build of llama.cpp has no {name}; install llama-cpp-python 0.3.36 or a newer 0.3")


@cache
def _opened(library: str) -> Any:
    try:
        return extensions.load_shared_library(library, _FOLDER)
    except (FileNotFoundError, RuntimeError):  # some builds are one library
        return None


def commit() -> str | None:
    """The commit of llama.cpp that was built, where the build tells."""
    try:
        told: bytes | None = function("ggml_commit", ctypes.c_char_p)()
    except ModelLoadError:
        return None
    return told.decode(errors="replace") if told else None
