"""``host:port`` of another machine's RPC server: how it is spelled, and whether one answers there.

Asked before llama.cpp is, which ends the whole process where nobody answers. Knows nothing of models and devices.
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
#: So many servers llama.cpp can use at once.
MOST = 16
#: Of connecting and of each answer, in seconds.
PATIENCE = 5.0
_SPELLED = re.compile(r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})):(?P<port>[0-9]{1,5})", re.ASCII)
_IPV6 = re.compile(r"\[?[0-9A-Fa-f.]*(:[0-9A-Fa-f.]*){2,}\]?(:[0-9]+)?")
_HELLO, _CAPABILITIES = 14, 24  # the command, which is the same in every version; bytes of what it carries


@dataclass(frozen=True)
class Endpoint:
    """A host's name or IPv4 address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """``"192.168.1.7:50052"``. Raises SettingError."""
    found = _SPELLED.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        more = "; llama.cpp's servers speak IPv4 only" if _IPV6.fullmatch(str(text)) else ""
        raise SettingError(f"{text!r:.80} is not HOST:PORT of an RPC server, such as 192.168.1.7:{DEFAULT_PORT}{more}")
    return Endpoint(found["host"].lower(), whole_number(f"the port of {text!r}", int(found["port"]), 1, 65535))


def parse_endpoints(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """Each of them, in this order. Raises SettingError, also for one that is named twice."""
    found = tuple(map(parse_endpoint, texts))
    twice = next((each for each in found if found.count(each) > 1), None)
    if twice:
        raise SettingError(f"RPC server {twice} is named twice; name each once: what it holds is shared out by its memory anyway")
    if len(found) > MOST:
        raise SettingError(f"{len(found)} RPC servers; llama.cpp uses {MOST} at most")
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def greet(endpoint: Endpoint, patience: float = PATIENCE) -> str:
    """The version of the server's protocol, such as ``7.0.0``. Raises SettingError where no RPC server answers."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=patience) as connection:
            answer = _answer(connection, endpoint, patience)
    except socket.gaierror as error:
        raise SettingError(
            f"RPC server {endpoint}: no such host ({error.strerror or error}); check its name, or give its address"
        ) from error
    except TimeoutError as error:
        raise SettingError(
            f"RPC server {endpoint}: no connection within {patience:g} s; is the machine on, and does its firewall let the port through?"
        ) from error
    except OSError as error:
        raise SettingError(
            f"RPC server {endpoint}: {(error.strerror or str(error)).lower()}; start one there with: "
            f"speccascade rpc-serve --host ADDRESS --port {endpoint.port}"
        ) from error
    return "{}.{}.{}".format(*answer)


def _answer(connection: socket.socket, endpoint: Endpoint, patience: float) -> bytes:
    """Major, minor and patch version."""
    try:
        connection.sendall(struct.pack("<BQ", _HELLO, _CAPABILITIES) + bytes(_CAPABILITIES))
        length = struct.unpack("<Q", _receive(connection, 8))[0]
        if length == 4 + _CAPABILITIES:
            return _receive(connection, length)[:3]
    except TimeoutError as error:
        raise SettingError(
            f"RPC server {endpoint}: connected, but no answer within {patience:g} s; a server serves one client at a time: "
            "is another one using it?"
        ) from error
    except OSError:
        pass
    raise SettingError(
        f"RPC server {endpoint}: what answers there is no RPC server of llama.cpp, or one of another version; "
        "install the same version of llama-cpp-python on both machines"
    )


def _receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes. Raises OSError where the connection ends before."""
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise ConnectionError("the connection ended")
        found += more
    return found
