"""``speccascade rpc-serve``: this machine's devices for models on other machines."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import platformdirs
import typer

from ...common.endpoints import DEFAULT_HOST, DEFAULT_PORT, Endpoint, is_loopback
from ...common.errors import SettingError
from ...common.validation import whole_number
from ...llama import devices
from ...llama.backend import physical_cores
from ...llama.devices import Device
from ...llama.rpc import check_support
from ...llama.rpc_process import Server
from .. import options
from ..load import set_log_level
from ..terminal import stderr, stdout


def rpc_serve(
    host: Annotated[str, typer.Option(help="The IPv4 address to listen at; 0.0.0.0 is all of this machine's.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(help="The port to listen at.")] = DEFAULT_PORT,
    device: Annotated[
        list[str] | None,
        typer.Option(show_default="graphics cards, else the cpu", help="What is lent, by its name in speccascade doctor; may be repeated."),
    ] = None,
    threads: Annotated[int | None, typer.Option(show_default="the physical cores", help="Threads of the cpu.")] = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Keep what clients send in the cache folder, so that it is sent once only.")
    ] = False,
    open_to_network: Annotated[
        bool, typer.Option("--open-to-network", help="Listen where other machines reach it. No password, no encryption.")
    ] = False,
    verbose: options.Verbose = 0,
) -> None:
    """Hold layers of a model for another machine (llama.cpp's RPC server), until Ctrl-C.

    There, name this one with --rpc HOST:PORT, or under rpc: in models.yaml. It serves one client at a time.
    """
    set_log_level(verbose)
    endpoint = Endpoint(_address(host), whole_number("--port", port, 1, 65535))
    check_support()
    if not is_loopback(endpoint.host):
        _warn(endpoint, open_to_network)
    count = whole_number("--threads", physical_cores() if threads is None else threads, 1, 1024)
    lent = _lent(device)
    cache = platformdirs.user_cache_path("speccascade") / "rpc" if keep_weights else None
    if cache:
        cache.mkdir(parents=True, exist_ok=True)

    def show(line: str) -> None:
        stderr.print(f"llama.cpp: {line}", markup=False, soft_wrap=True)

    silent = {} if not verbose else {"on_line": show}
    with stderr.status("starting llama.cpp's RPC server"):
        server = Server(endpoint, [each.name for each in lent], threads=count, cache=cache, **silent)
    with server:
        stdout.print(f"serving at {endpoint}; end with Ctrl-C", soft_wrap=True)
        for each in lent:
            stdout.print(
                f"  {each.name}: {each.description}, {each.total / 1e9:.1f} GB, {each.free / 1e9:.1f} GB free", markup=False, soft_wrap=True
            )
        server.wait()


def _address(host: str) -> str:
    """llama.cpp listens at IPv4 addresses only. Raises SettingError."""
    try:
        return str(ipaddress.IPv4Address("127.0.0.1" if host.lower() == "localhost" else host))
    except ValueError:
        raise SettingError(f"--host {host!r:.60} is not an IPv4 address, such as 127.0.0.1 or 192.168.1.7") from None


def _warn(endpoint: Endpoint, allowed: bool) -> None:
    """Raises SettingError where it was not asked for."""
    danger = (
        f"--host {endpoint.host} lets other machines in, and llama.cpp's RPC server asks for no password and encrypts nothing: "
        "whoever reaches the port can use this machine's memory, read along, and perhaps run code here"
    )
    if not allowed:
        raise SettingError(f"{danger}. Use it on a private link only, and say so with --open-to-network; or tunnel the port through ssh -L")
    stderr.print(f"warning: {danger}", style="bold red", soft_wrap=True)


def _lent(names: list[str] | None) -> tuple[Device, ...]:
    """Those that were named, or as llama.cpp's own server chooses. Raises SettingError."""
    if names:
        return tuple(devices.device(name) for name in names)
    there = devices.devices()
    return tuple(each for each in there if each.is_gpu) or tuple(each for each in there if each.kind == "cpu")
