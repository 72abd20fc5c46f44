"""llama.cpp as a whole: functions that the bindings lack, its log, aborts, its build, forks, and Ctrl-C while it works."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import psutil
from llama_cpp import _ctypes_extensions as extensions

from ..common.errors import ModelLoadError, SessionError

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- functions of ggml that the bindings lack

_FOLDER = Path(llama_cpp.__file__).parent / "lib"
#: On Windows a library does not export the functions of libraries that it links, so each is searched.
_LIBRARIES = ("ggml", "ggml-base")


@cache
def ggml_function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Return a function of ggml, with the ctypes types of its result and arguments. Raises ModelLoadError where this build lacks it."""
    for library in _LIBRARIES:
        symbol = getattr(_open_library(library), name, None)
        if symbol is not None:
            symbol.restype, symbol.argtypes = result, arguments
            return symbol  # type: ignore[no-any-return]
    raise ModelLoadError(f"this build of llama.cpp has no {name}; install llama-cpp-python 0.3.36 or a newer 0.3")


@cache
def _open_library(library: str) -> Any:
    try:
        return extensions.load_shared_library(library, _FOLDER)
    except (FileNotFoundError, RuntimeError):  # some builds are one library
        return None


# ---------------------------------------------------------------- the log

_MAX_COMPLAINT_CHARACTERS = 500
#: Most lines that go to Python's log until the next load or context: llama.cpp writes one for each odd token of a vocabulary.
_MAX_LOGGED_LINES = 10_000
_recent_complaints: deque[bytes] = deque(maxlen=8)
_lines_left = [_MAX_LOGGED_LINES]
_listeners: list[Callable[[bytes], None]] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    for listener in _listeners:
        listener(text)
    if level in (3, 4):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
        _recent_complaints.append(text)
    if _lines_left[0] and log.isEnabledFor(logging.DEBUG):
        line = text.decode(errors="replace").rstrip()
        if line:
            log.debug("llama.cpp: %s", line)
            _lines_left[0] -= 1


def listen(listener: Callable[[bytes], None]) -> None:
    """Pass everything that llama.cpp logs, in pieces as it comes, to a function, which must be quick."""
    _listeners.append(listener)


def forget_complaints() -> None:
    """Clear old lines, so that the next error quotes only its own."""
    _recent_complaints.clear()
    _lines_left[0] = _MAX_LOGGED_LINES


def complaint() -> str:
    """Return the latest warnings of llama.cpp: the first tend to be the cause, the last say that it failed."""
    lines = (text.decode(errors="replace").rstrip()[:_MAX_COMPLAINT_CHARACTERS] for text in _recent_complaints)
    return "; ".join(dict.fromkeys(filter(None, lines))) or "no reason given"


# ---------------------------------------------------------------- the process


def system_info() -> str:
    """Return llama.cpp's line about the instruction sets of this build. The first call starts the backend. Raises SessionError."""
    require_own_process()
    return _start()[1]


@cache
def _start() -> tuple[int, str]:
    """Start llama.cpp, and return the id of this process and llama.cpp's line about itself."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    info: bytes = llama_cpp.llama_print_system_info()
    return os.getpid(), info.decode(errors="replace").strip()


def in_own_process() -> bool:
    """Return False in a fork of the process that started llama.cpp, which has neither its threads nor its GPU."""
    return _start.cache_info().currsize == 0 or _start()[0] == os.getpid()


def require_own_process() -> None:
    """Raise SessionError where a use would hang or crash the process."""
    if not in_own_process():
        raise SessionError(
            f"this process ({os.getpid()}) is a fork of one that uses llama.cpp ({_start()[0]}), and lacks its threads; "
            "load the pair in a spawned process (multiprocessing.get_context('spawn')), or fork before loading"
        )


# ---------------------------------------------------------------- aborts

_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
#: Likely causes of an abort: the file that is being read, and whether other machines are used.
_suspects: dict[str, Any] = {"file": None, "servers": False}


@contextmanager
def attribute_aborts_to(path: Path) -> Iterator[None]:
    """Inside the block, blame an abort of llama.cpp on this file. From now on any abort prints its reason before the process ends."""
    _install_abort_callback()
    _suspects["file"] = path
    try:
        yield
    finally:
        _suspects["file"] = None


def expect_lost_servers() -> None:
    """From now on, blame an abort on lost connections to other machines, and let it end the process as an error does."""
    _install_abort_callback()
    _suspects["servers"] = True


@cache
def _install_abort_callback() -> None:
    ggml_function("ggml_set_abort_callback", ctypes.c_void_p, _ABORT_CALLBACK)(_on_abort)


@_ABORT_CALLBACK  # type: ignore[untyped-decorator]
def _on_abort(message: bytes) -> None:
    """Print the reason; llama.cpp ends the process when this returns."""
    warnings = f"{complaint()}; " if _recent_complaints else ""
    reason = " ".join(f"{warnings}{message.decode(errors='replace')}".split())
    path, hint = _suspects["file"], "a fault of llama.cpp or of a model's file; 'speccascade doctor' tries the installation"
    if path:
        hint = "the file is damaged, or has changed since its dry run: fetch it again"
    elif _suspects["servers"]:
        hint = "is every RPC server still running? see speccascade rpc-serve"
    print(f"error: llama.cpp aborted{f' on {path}' if path else ''}: {reason} ({hint})", file=sys.stderr, flush=True)
    if _suspects["servers"]:
        os._exit(1)  # a machine that goes away is no reason for a core dump


# ---------------------------------------------------------------- handles, and Ctrl-C while llama.cpp makes one


def create(make: Callable[[], Any], free: Callable[[Any], None], interrupts: list[BaseException] | None = None) -> Any:
    """Return what llama.cpp makes, which may be a null pointer. Where Ctrl-C came, free it and raise the interruption.

    ``interrupts``: where a callback of ``make`` puts what it must not raise.
    """
    interrupts = [] if interrupts is None else interrupts
    with _record_interrupts(interrupts):
        handle = make()
    if interrupts:
        if handle:
            free(handle)
        raise interrupts[0]
    return handle


@contextmanager
def _record_interrupts(interrupts: list[BaseException]) -> Iterator[None]:
    """Inside the block, append Ctrl-C to ``interrupts`` instead of raising it.

    While llama.cpp loads a model or makes a context, Python runs only inside callbacks (progress, log), where ctypes would swallow a
    KeyboardInterrupt. An application's own handler stays in place.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda _signal, _frame: interrupts.append(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def free(release: Callable[[Any], None], handle: Any) -> None:
    """Release an object of llama.cpp, except in a fork, whose copy ends with the fork."""
    if in_own_process():
        release(handle)


# ---------------------------------------------------------------- the build and its processors


def llama_cpp_version() -> str:
    """Return the version of the bindings, which determines that of llama.cpp."""
    return str(llama_cpp.__version__)


def commit() -> str | None:
    """Return the commit of llama.cpp that was built, or None where the build does not say."""
    try:
        text: bytes | None = ggml_function("ggml_commit", ctypes.c_char_p)()
    except ModelLoadError:
        return None
    return text.decode(errors="replace") if text else None


def supports_mmap() -> bool:
    """Return whether this build maps model files into memory instead of reading them."""
    return bool(llama_cpp.llama_supports_mmap())


def extra_buffers_are_safe(info: str) -> bool:
    """Return whether weights may be repacked for this CPU.

    A GCC build with AMX dies with SIGSEGV at the first batch of two or more tokens of a quantized model, because the tile configuration is
    optimized away (llama.cpp issue 20824). The build itself says whether it has AMX, so no trial has to crash.
    """
    return "AMX_INT8 = 1" not in info


def physical_cores() -> int:
    """Return the physical cores that this process may use: more threads than that make llama.cpp slower."""
    return max(1, min(psutil.cpu_count(logical=False) or os.cpu_count() or 1, allowed_processors()))


def allowed_processors() -> int:
    """Return the logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
