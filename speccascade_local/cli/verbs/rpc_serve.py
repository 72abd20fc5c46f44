"""``speccascade rpc-serve``: serve this machine's devices to a larger model elsewhere."""

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


def run(
    host: Annotated[str, typer.Option(help="IPv4 address to listen at; 0.0.0.0 is every address of this machine.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(help="Port to listen at.")] = DEFAULT_PORT,
    device: Annotated[
        list[str] | None,
        typer.Option(show_default="the GPUs, else the CPU", help="Device to serve, by its name in speccascade doctor; may be repeated."),
    ] = None,
    threads: Annotated[int | None, typer.Option(show_default="the physical cores", help="Number of CPU threads.")] = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Cache the weights that clients send, so that they are sent only once.")
    ] = False,
    open_to_network: Annotated[
        bool, typer.Option("--open-to-network", help="Listen where other machines can connect: no password, no encryption.")
    ] = False,
    verbose: options.Verbose = 0,
) -> None:
    """Serve this machine's devices to a larger model elsewhere (llama.cpp's RPC server), until Ctrl-C.

    On the other machine, name this one with --rpc HOST:PORT, or under rpc: in models.yaml. It serves one client at a time.
    """
    set_log_level(verbose)
    endpoint = Endpoint(_address(host), whole_number("--port", port, 1, 65535))
    check_support()
    if not is_loopback(endpoint.host):
        _warn(endpoint, open_to_network)
    count = whole_number("--threads", physical_cores() if threads is None else threads, 1, 1024)
    served = _devices(device)
    cache = platformdirs.user_cache_path("speccascade") / "rpc" if keep_weights else None
    if cache:
        cache.mkdir(parents=True, exist_ok=True)
    listener = {"on_line": lambda line: stderr.print(f"llama.cpp: {line}", soft_wrap=True)} if verbose else {}
    with stderr.status("starting llama.cpp's RPC server"):
        server = Server(endpoint, [each.name for each in served], threads=count, cache=cache, **listener)
    with server:
        stdout.print(f"serving at {endpoint}; end with Ctrl-C", soft_wrap=True)
        for each in served:
            stdout.print(f"  {each.name}: {each.description}, {each.total / 1e9:.1f} GB, {each.free / 1e9:.1f} GB free", soft_wrap=True)
        server.wait()


def _address(host: str) -> str:
    """Return the host's IPv4 address; llama.cpp takes no other. Raises SettingError."""
    try:
        return str(ipaddress.IPv4Address("127.0.0.1" if host.lower() == "localhost" else host))
    except ValueError:
        raise SettingError(f"--host {host!r:.60} is not an IPv4 address, such as 127.0.0.1 or 192.168.1.7") from None


def _warn(endpoint: Endpoint, allowed: bool) -> None:
    """Warn that the server is open to the network. Raises SettingError unless that is allowed."""
    danger = (
        f"--host {endpoint.host} is open to other machines, and llama.cpp's RPC server has no password and no encryption: "
        "everyone who reaches the port can use this machine's memory, read the data, and perhaps run code here"
    )
    if not allowed:
        raise SettingError(f"{danger}; on a private link allow it with --open-to-network, else tunnel the port through ssh -L")
    stderr.print(f"warning: {danger}", style="bold red", soft_wrap=True)


def _devices(names: list[str] | None) -> tuple[Device, ...]:
    """Return the named devices, or those that llama.cpp's own server chooses. Raises SettingError."""
    if names:
        return tuple(devices.device(name) for name in names)
    every = devices.devices()
    return tuple(each for each in every if each.is_gpu) or tuple(each for each in every if each.kind == "cpu")
