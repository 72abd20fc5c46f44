"""llama.cpp's RPC backend: layers of a model on other machines, and this machine's devices for others.

A server accepts every client that reaches it, and nothing is encrypted.
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
from .backend import expect_lost_servers, forget_complaints, ggml_function, system_info
from .devices import Device, describe, device, device_array, devices

log = logging.getLogger(__name__)

_POINTER, _NUMBER, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p


def is_supported() -> bool:
    """Return whether this build of llama.cpp has RPC."""
    system_info()  # llama.cpp finds its backends when it starts
    return bool(llama_cpp.llama_supports_rpc())


def check_support() -> None:
    """Raise SettingError, with the command that builds it, where RPC is missing."""
    if not is_supported():
        raise SettingError(f"this build of llama.cpp has no RPC; rebuild it with: {rebuild('-DGGML_RPC=on')}")


def connect(servers: Iterable[str]) -> tuple[Device, ...]:
    """Return the devices of servers (``host:port``), in their order.

    Raises SettingError for a wrong address, a build without RPC, and a server that does not answer.
    """
    endpoints = parse_endpoints(servers)
    if endpoints:
        check_support()
    for endpoint in endpoints:  # all of them first: llama.cpp aborts where it cannot connect
        greet(endpoint)
    return tuple(each for endpoint in endpoints for each in _devices_of(endpoint))


def layer_devices(servers: Iterable[str], name: str | None = None) -> Any:
    """Return devices for a model's layers, as ``llama_model_params.devices`` takes them: the servers', then the named device.

    ``name`` None stands for this machine's graphics cards. All other layers stay in this machine's memory. Raises SettingError as
    :func:`connect` does, and for an unknown device.
    """
    here = (device(name),) if name is not None else tuple(each for each in devices() if each.is_gpu)
    far = connect(servers)
    for each in far:
        log.info("RPC server %s: %s, %.1f GB free", each.server, each.name, each.free / 1e9)
    return device_array(far + here)


def _devices_of(endpoint: Endpoint) -> list[Device]:
    expect_lost_servers()
    forget_complaints()
    add = ctypes.CFUNCTYPE(_POINTER, _TEXT)(_procedure("ggml_backend_rpc_add_server"))
    registry = add(str(endpoint).encode())
    if not registry:
        raise SettingError(f"RPC server {endpoint}: it offers no device; restart it (speccascade rpc-serve)")
    count: int = ggml_function("ggml_backend_reg_dev_count", _NUMBER, _POINTER)(registry)
    handle_of = ggml_function("ggml_backend_reg_dev_get", _POINTER, _POINTER, _NUMBER)
    return [describe(handle_of(registry, index)) for index in range(count)]


def serve(endpoint: Endpoint, offered: Sequence[Device], threads: int, cache: Path | None) -> None:
    """Let clients use devices, one client at a time. Returns only where the port cannot be used.

    ``threads`` is for a CPU. ``cache`` is a folder that stores weights, so that each is sent only once.
    """
    check_support()
    types = (None, _TEXT, _TEXT, _NUMBER, _NUMBER, _POINTER)
    start = ctypes.CFUNCTYPE(*types)(_procedure("ggml_backend_rpc_start_server"))
    start(str(endpoint).encode(), os.fsencode(cache) if cache else None, threads, len(offered), device_array(offered))


def _procedure(name: str) -> Any:
    """Return the address of a function that only a build with RPC has."""
    registry = ggml_function("ggml_backend_reg_by_name", _POINTER, _TEXT)(b"RPC")
    return ggml_function("ggml_backend_reg_get_proc_address", _POINTER, _POINTER, _TEXT)(registry, name.encode())
