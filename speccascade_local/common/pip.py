"""Returns the pip commands that errors advise, quoted for this system's shell."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata

from .child_process import is_frozen

PACKAGE = "llama-cpp-python"


def pip(*arguments: str, windows: bool = sys.platform == "win32") -> str:
    """Return a call of this Python's own pip, or of any ``python`` if this is a frozen application without pip."""
    words = ["python" if is_frozen() else sys.executable, "-m", "pip", *arguments]
    if windows:  # PowerShell
        return "& " + " ".join(f'"{word}"' if set(word) & set(" <>,[];") else word for word in words)
    return shlex.join(words)


def install_extra(extra: str) -> str:
    """Return the command that adds an extra to this installation, from a checkout or from an index alike."""
    return pip("install", f"speccascade-local[{extra}]")


def rebuild(options: str, *, windows: bool = sys.platform == "win32") -> str:
    """Return the command that compiles the installed llama.cpp with CMake options such as ``-DGGML_RPC=on``."""
    flags = ("--force-reinstall", "--no-deps", "--no-cache-dir", "--no-binary", PACKAGE)
    try:
        same = f"{PACKAGE}=={metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:  # not installed by pip
        same = PACKAGE
    call = pip("install", *flags, same, windows=windows)
    return f'$env:CMAKE_ARGS = "{options}"; {call}' if windows else f'CMAKE_ARGS="{options}" {call}'
