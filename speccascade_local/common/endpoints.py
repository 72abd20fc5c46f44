"""Parses ``host:port`` of an RPC server on another machine, and checks that one answers there.

The check comes before llama.cpp connects, because llama.cpp ends the whole process if it gets no answer.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import SettingError
from .validation import whole_number

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 50052
#: llama.cpp's limit.
MAX_SERVERS = 16
#: For connecting and for each answer.
TIMEOUT_S = 5.0
_HOST_PORT = re.compile(r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})):(?P<port>[0-9]{1,5})", re.ASCII)
_IPV6 = re.compile(r"\[?[0-9A-Fa-f.]*(:[0-9A-Fa-f.]*){2,}\]?(:[0-9]+)?")
_HELLO, _CAPABILITIES = 14, 24  # the command, which is the same in every version; the bytes of its argument


@dataclass(frozen=True)
class Endpoint:
    """A host name or IPv4 address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint of a text such as ``"192.168.1.7:50052"``. Raises SettingError."""
    match = _HOST_PORT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        hint = "; llama.cpp's servers speak IPv4 only" if _IPV6.fullmatch(str(text)) else ""
        raise SettingError(f"{text!r:.80} is not HOST:PORT of an RPC server, such as 192.168.1.7:{DEFAULT_PORT}{hint}")
    return Endpoint(match["host"].lower(), whole_number(f"the port of {text!r}", int(match["port"]), 1, 65535))


def parse_endpoints(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """Return the endpoints in the same order. Raises SettingError, also for one that is named twice."""
    endpoints = tuple(map(parse_endpoint, texts))
    twice = next((each for each in endpoints if endpoints.count(each) > 1), None)
    if twice:
        raise SettingError(f"RPC server {twice} is named twice; name each once: layers are distributed by free memory anyway")
    if len(endpoints) > MAX_SERVERS:
        raise SettingError(f"{len(endpoints)} RPC servers; llama.cpp uses {MAX_SERVERS} at most")
    return endpoints


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens at ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def greet(endpoint: Endpoint, timeout_s: float = TIMEOUT_S) -> str:
    """Return the version of the server's protocol, such as ``7.0.0``. Raises SettingError if no RPC server answers."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_s) as connection:
            version = _version(connection, endpoint, timeout_s)
    except socket.gaierror as error:
        raise SettingError(
            f"RPC server {endpoint}: unknown host ({error.strerror or error}); check its name, or give its address"
        ) from error
    except TimeoutError as error:
        raise SettingError(
            f"RPC server {endpoint}: no connection within {timeout_s:g} s; is the machine on, and does its firewall let the port through?"
        ) from error
    except OSError as error:
        raise SettingError(
            f"RPC server {endpoint}: {(error.strerror or str(error)).lower()}; start one there with: "
            f"speccascade rpc-serve --host ADDRESS --port {endpoint.port}"
        ) from error
    return "{}.{}.{}".format(*version)


def _version(connection: socket.socket, endpoint: Endpoint, timeout_s: float) -> bytes:
    """Return major, minor and patch version."""
    try:
        connection.sendall(struct.pack("<BQ", _HELLO, _CAPABILITIES) + bytes(_CAPABILITIES))
        length = struct.unpack("<Q", _receive(connection, 8))[0]
        if length == 4 + _CAPABILITIES:
            return _receive(connection, length)[:3]
    except TimeoutError as error:
        raise SettingError(
            f"RPC server {endpoint}: connected, but no answer within {timeout_s:g} s; a server serves one client at a time: "
            "is another one using it?"
        ) from error
    except OSError:
        pass
    raise SettingError(
        f"RPC server {endpoint}: the answer is not that of an RPC server of this version of llama.cpp; "
        "install the same version of llama-cpp-python on both machines"
    )


def _receive(connection: socket.socket, size: int) -> bytes:
    """Return the next ``size`` bytes. Raises OSError if the connection ends before."""
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("the connection ended")
        data += piece
    return data
