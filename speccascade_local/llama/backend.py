"""llama.cpp as a whole: its build, the process that it runs in, what it complains of, and Ctrl-C while it works.

Knows nothing of models.
"""

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
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import llama_cpp
import psutil
from llama_cpp import _ctypes_extensions as extensions

from ..common.errors import ModelLoadError, SessionError

log = logging.getLogger(__name__)

_LONGEST_COMPLAINT = 500
_recent_complaints: deque[bytes] = deque(maxlen=8)
_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
#: What an abort is put down to: the file that is being read, and whether other machines are asked.
_suspects: dict[str, Any] = {"file": None, "servers": False}


_listeners: list[Callable[[bytes], None]] = []
#: Lines that are passed on to Python's log until the next load or context: llama.cpp writes one for each odd token of a vocabulary.
_MOST_LOGGED = 10_000
_left_to_log = [_MOST_LOGGED]


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    for listener in _listeners:
        listener(text)
    if level in (3, 4):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
        _recent_complaints.append(text)
    if _left_to_log[0] and log.isEnabledFor(logging.DEBUG):
        line = text.decode(errors="replace").rstrip()
        if line:
            log.debug("llama.cpp: %s", line)
            _left_to_log[0] -= 1


def listen(listener: Callable[[bytes], None]) -> None:
    """Have every line that llama.cpp logs, in pieces as it comes, given to a function, which must be quick."""
    _listeners.append(listener)


def forget_complaints() -> None:
    """Clear old lines, so that the next error quotes only its own."""
    _recent_complaints.clear()
    _left_to_log[0] = _MOST_LOGGED


def complaint() -> str:
    """What llama.cpp warned of last, a few lines: the first tend to be the cause, the last say that it failed."""
    lines = (text.decode(errors="replace").rstrip()[:_LONGEST_COMPLAINT] for text in _recent_complaints)
    return "; ".join(dict.fromkeys(filter(None, lines))) or "no reason given"


@contextmanager
def attribute_aborts_to(path: Path) -> Iterator[None]:
    """Within the block an abort of llama.cpp is put down to this file. From now on any abort says why, before it ends the process."""
    _tell_last_words()
    _suspects["file"] = path
    try:
        yield
    finally:
        _suspects["file"] = None


def expect_lost_servers() -> None:
    """From now on an abort is put down to other machines that went away, and ends the process as an error does."""
    _tell_last_words()
    _suspects["servers"] = True


@lru_cache(maxsize=1)
def _tell_last_words() -> None:
    function("ggml_set_abort_callback", ctypes.c_void_p, _ABORT_CALLBACK)(_last_words)


@_ABORT_CALLBACK  # type: ignore[untyped-decorator]
def _last_words(message: bytes) -> None:
    """llama.cpp ends the process when this returns."""
    said = f"{complaint()}; " if _recent_complaints else ""
    reason = " ".join(f"{said}{message.decode(errors='replace')}".split())
    path, hint = _suspects["file"], "a fault of llama.cpp or of a model's file; 'speccascade doctor' tries the installation"
    if path:
        hint = "the file is damaged, or was changed after it was tried: fetch it again"
    elif _suspects["servers"]:
        hint = "is every RPC server still running? see speccascade rpc-serve"
    print(f"error: llama.cpp gave up{f' on {path}' if path else ''}: {reason} ({hint})", file=sys.stderr, flush=True)
    if _suspects["servers"]:
        os._exit(1)  # a machine that goes away is no reason for a core dump


def system_info() -> str:
    """llama.cpp's own line about the instruction sets of this build. Starts the backend when first called. Raises SessionError."""
    require_own_process()
    return _start_process()[1]


@lru_cache(maxsize=1)
def _start_process() -> tuple[int, str]:
    """The process that llama.cpp was started in, and what it says of itself."""
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    info: bytes = llama_cpp.llama_print_system_info()
    return os.getpid(), info.decode(errors="replace").strip()


def in_own_process() -> bool:
    """False in a fork of the process that has started llama.cpp: its threads, its GPU and the locks they held are not there."""
    return _start_process.cache_info().currsize == 0 or _start_process()[0] == os.getpid()


def require_own_process() -> None:
    """Raises SessionError where a use would hang, or crash the process."""
    if not in_own_process():
        raise SessionError(
            f"this process ({os.getpid()}) was forked from one that uses llama.cpp ({_start_process()[0]}), whose threads are not here; load the "
            "pair in a process that is started anew (multiprocessing.get_context('spawn')), or fork before anything is loaded"
        )


def free(release: Callable[[Any], None], handle: Any) -> None:
    """Release what llama.cpp has made, unless it is another process's: then this copy goes with this process."""
    if in_own_process():
        release(handle)


def llama_cpp_version() -> str:
    """The version of the bindings, which fixes that of llama.cpp."""
    return str(llama_cpp.__version__)


def extra_buffers_are_safe(info: str) -> bool:
    """Whether weights may be repacked for this CPU.

    A GCC build with AMX dies with SIGSEGV at the first batch of two or more tokens of a quantized model, because the tile
    configuration is optimised away (llama.cpp issue 20824). The build itself says whether it has AMX, so nothing has to
    crash to find out.
    """
    return "AMX_INT8 = 1" not in info


def physical_cores() -> int:
    """Physical cores that this process may run on: more threads than that make llama.cpp slower."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(cores, allowed))


@contextmanager
def record_interrupts(noted: list[BaseException]) -> Iterator[None]:
    """Within the block Ctrl-C is appended to ``noted``.

    While llama.cpp loads a model or makes a context, Python runs only inside callbacks (progress, log), where ctypes would swallow a
    KeyboardInterrupt. An application's own handler is left alone.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda _signal, _frame: noted.append(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def create(make: Callable[[], Any], free: Callable[[Any], None], noted: list[BaseException] | None = None) -> Any:
    """What llama.cpp makes, which may be nothing; if Ctrl-C came meanwhile it is freed, and the interruption raised.

    noted: where a callback of ``make`` keeps what it may not raise itself.
    """
    interruption: list[BaseException] = [] if noted is None else noted
    with record_interrupts(interruption):
        handle = make()
    if interruption:
        if handle:
            free(handle)
        raise interruption[0]
    return handle


_FOLDER = Path(llama_cpp.__file__).parent / "lib"
#: On Windows a library does not pass on the functions of those that it is linked with, so each is asked.
_LIBRARIES = ("ggml", "ggml-base")


@cache
def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """The function of that name, with ctypes' types of what it gives and takes. Raises ModelLoadError where this build has none."""
    for library in _LIBRARIES:
        found = getattr(_open_library(library), name, None)
        if found is not None:
            found.restype, found.argtypes = result, arguments
            return found  # type: ignore[no-any-return]
    raise ModelLoadError(f"this build of llama.cpp has no {name}; install llama-cpp-python 0.3.36 or a newer 0.3")


@cache
def _open_library(library: str) -> Any:
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


def supports_mmap() -> bool:
    """Return whether this build maps model files into memory instead of reading them."""
    return bool(llama_cpp.llama_supports_mmap())
