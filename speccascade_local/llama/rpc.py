"""llama.cpp's RPC backend: layers of a model on other machines, and this machine's devices lent to others.

Whoever reaches such a server may use it, and nothing on the way is encrypted. Knows nothing of pairs, and of files only where a server
keeps weights.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from ..common.endpoints import Endpoint, greet, parse_endpoints
from ..common.errors import SettingError
from ..common.pip import rebuild
from .backend import expect_lost_servers, forget_complaints, function, system_info
from .devices import Device, array_of, describe, device, devices

log = logging.getLogger(__name__)

_POINTER, _NUMBER, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p


def is_supported() -> bool:
    """Whether this build of llama.cpp has RPC."""
    system_info()  # llama.cpp finds its backends when it starts
    return bool(llama_cpp.llama_supports_rpc())


def check_support() -> None:
    """Raises SettingError, with the command that makes such a build."""
    if not is_supported():
        raise SettingError(f"this build of llama.cpp has no RPC; build it anew with: {rebuild('-DGGML_RPC=on')}")


def connect(servers: Iterable[str]) -> tuple[Device, ...]:
    """The devices of these servers (``host:port``), in their order.

    Raises SettingError: for how they are written, for a build without RPC, and where no such server answers.
    """
    named = parse_endpoints(servers)
    if named:
        check_support()
    for endpoint in named:  # all of them first: what llama.cpp cannot connect to ends the process
        greet(endpoint)
    return tuple(each for endpoint in named for each in _devices_of(endpoint))


def holders(servers: Iterable[str], name: str | None = None) -> Any:
    """What a model's layers are spread over, as ``llama_model_params.devices`` takes it: these servers, then the device of that name.

    name None: this machine's graphics cards. Layers that are not put there stay in this machine's memory. Raises SettingError as
    :func:`connect` does, and for a device that there is not.
    """
    here = (device(name),) if name is not None else tuple(each for each in devices() if each.is_gpu)
    far = connect(servers)
    for each in far:
        log.info("RPC server %s: %s, %.1f GB free", each.server, each.name, each.free / 1e9)
    return array_of(far + here)


def _devices_of(endpoint: Endpoint) -> list[Device]:
    expect_lost_servers()
    forget_complaints()
    add = ctypes.CFUNCTYPE(_POINTER, _TEXT)(_procedure("ggml_backend_rpc_add_server"))
    registry = add(str(endpoint).encode())
    if not registry:
        raise SettingError(f"RPC server {endpoint}: it offers no device; start it anew (speccascade rpc-serve)")
    count: int = function("ggml_backend_reg_dev_count", _NUMBER, _POINTER)(registry)
    handle_of = function("ggml_backend_reg_dev_get", _POINTER, _POINTER, _NUMBER)
    return [describe(handle_of(registry, index)) for index in range(count)]


def serve(endpoint: Endpoint, lent: Sequence[Device], threads: int, cache: Path | None) -> None:
    """Let clients use these devices, one client at a time; returns only where the port cannot be listened on.

    threads: of a cpu. cache: a folder that keeps weights, so that they are sent once only.
    """
    check_support()
    types = (None, _TEXT, _TEXT, _NUMBER, _NUMBER, _POINTER)
    start = ctypes.CFUNCTYPE(*types)(_procedure("ggml_backend_rpc_start_server"))
    start(str(endpoint).encode(), os.fsencode(cache) if cache else None, threads, len(lent), array_of(lent))


def _procedure(name: str) -> Any:
    """The address of a function that only a build with RPC has."""
    registry = function("ggml_backend_reg_by_name", _POINTER, _TEXT)(b"RPC")
    return function("ggml_backend_reg_get_proc_address", _POINTER, _POINTER, _TEXT)(registry, name.encode())
