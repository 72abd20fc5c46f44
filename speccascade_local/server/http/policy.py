"""Who may ask: API keys, host names of the server, and websites and applications whose pages may ask.

A request's key also decides whose KV caches it may use and with whom it takes turns.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.endpoints import is_loopback
from ...common.errors import SettingError
from ...common.files import read_text

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
ENVIRONMENT_KEY = "SPECCASCADE_API_KEY"
SHORTEST_KEY = 16
#: Maximum bytes of a file with keys: room for thousands.
MAX_KEY_FILE = 1 << 20
#: A Host header of RFC 9110, without what only hostile ones hold: user names, paths, escapes.
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?))(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)(?::[0-9]{1,5})?", re.ASCII)
#: Schemes of web pages and downloaded files, which are no application.
_OPEN_SCHEMES = frozenset(("about", "blob", "data", "file", "filesystem", "ftp", "javascript", "view-source", "ws", "wss"))
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
#: The wildcard, and the origin that any website can have.
ANY, OPAQUE = "*", "null"


@dataclass(frozen=True)
class Policy:
    """Who may ask. Raises SettingError where a setting is unsafe, or not an origin or host name."""

    host: str = "127.0.0.1"  # the address that the server is bound to
    api_keys: tuple[str, ...] = ()  # requests must send one of these; empty if no key is needed
    origins: tuple[str, ...] = ()  # other sites and applications whose pages may ask
    names: tuple[str, ...] = ()  # more host names of the server
    private: bool = False  # share KV caches only within one ``prompt_cache_key``

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.api_keys:
            raise SettingError(
                f"--host {self.host} lets other machines in, and no API key is set; give one with --api-key-file or ${ENVIRONMENT_KEY}, "
                "or stay on 127.0.0.1"
            )
        for origin in self.origins:
            _check_origin(origin, has_key=bool(self.api_keys))
        for name in self.names:
            if not (_is_address(name) or _name_of(name) == name.lower()):
                raise SettingError(
                    f"--allow-host {name!r:.80} is not a host name; give only the name, without http:// and port, "
                    "such as host.docker.internal"
                )

    def is_own_host(self, host: str) -> bool:
        """Return whether a Host header, with or without port, names this server."""
        name = _name_of(host)
        if name is None:
            return False
        if name in (*LOOPBACK_NAMES, self.host.lower(), *map(str.lower, self.names)):
            return True
        return not is_loopback(self.host) and _is_address(name)  # an address cannot be rebound, and a key is needed here

    def allows_origin(self, origin: str) -> bool:
        """Return whether pages of this origin may ask."""
        return ANY in self.origins or origin in self.origins

    def key_number(self, key: str | None) -> int | None:
        """Return the key's index, or None for a wrong key. Takes the same time for every wrong key."""
        digest = _digest(key or "")
        matches = [hmac.compare_digest(digest, _digest(each)) for each in self.api_keys]
        return matches.index(True) if True in matches else None

    def owner(self, key_number: int | None, salt: str | None, conversation: str | None) -> Hashable:
        """Return whose KV caches a request may use: equal for requests that may share a cache.

        ``salt``, its ``cache_salt``, separates requests of one key. ``conversation``, its ``prompt_cache_key``, does the same on a private
        server. There a request with neither shares nothing.
        """
        key = key_number if len(self.api_keys) > 1 else None
        if salt:
            return key, "salt", salt
        if self.private:
            return (key, "conversation", conversation) if conversation else object()
        return None if key is None else (key,)

    def client(self, key_number: int | None, address: str) -> Hashable:
        """Return who takes turns with others: by key if there are several, and by address.

        An address of this machine does not count, because it may be a proxy's. None if neither distinguishes clients.
        """
        key = key_number if len(self.api_keys) > 1 else None
        peer = "" if not address or is_loopback(address) else peer_of(address)
        return (key, peer) if peer or key is not None else None


def peer_of(address: str) -> str:
    """Return an IPv4 address as it is, and for IPv6 the network, because one client has all of its addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def api_keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys of a file, or the one of the environment, or none. Raises CatalogError and SettingError.

    A file has one key per line; blank lines and lines that begin with # do not count.
    """
    if file is not None:
        source, text = f"--api-key-file {file}", read_text(file, MAX_KEY_FILE)
    elif ENVIRONMENT_KEY in os.environ:
        source, text = f"${ENVIRONMENT_KEY}", os.environ[ENVIRONMENT_KEY]
    else:
        return ()
    lines: dict[str, int] = {}  # line numbers by key
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if line and not line.startswith("#"):
            lines.setdefault(line, number)
    for key, number in (lines or {"": 1}).items():
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingError(
                f"{source}, line {number}, holds a key of {len(key)} characters; it needs at least {SHORTEST_KEY} ASCII characters without "
                "blanks; this prints one: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
    return tuple(lines)


def origins_of(origins: Sequence[str] | None) -> tuple[str, ...]:
    """Return origins as browsers send them: without a final slash, and a website's in lower case without its default port."""
    return tuple(_as_sent(each.rstrip("/")) for each in origins or ())


def _as_sent(origin: str) -> str:
    scheme, _, _ = origin.lower().partition("://")
    if scheme not in _DEFAULT_PORTS:
        return origin
    return origin.lower().removesuffix(_DEFAULT_PORTS[scheme])


def _check_origin(origin: str, *, has_key: bool) -> None:
    """Raise SettingError for an origin that is none, or that is unsafe."""
    if origin == OPAQUE:
        return
    if origin == ANY:
        if not has_key:
            raise SettingError(
                "--allow-origin * lets the pages of every website use this server, and no API key is set; name the website, or "
                f"give a key with --api-key-file or ${ENVIRONMENT_KEY}"
            )
        return
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise SettingError(
            f"--allow-origin {origin!r:.80} is not an origin; give SCHEME://HOST, with :PORT if it has one and nothing after it, "
            "such as https://chat.example.org, http://localhost:3000 or app://obsidian.md"
        )
    if match["scheme"] in _OPEN_SCHEMES:
        raise SettingError(
            f"--allow-origin {origin!r:.80} is not an origin of one website or application: any page may have {match['scheme']}:; name "
            "https://..., http://... or the application's own, such as app://obsidian.md"
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _name_of(host: str) -> str | None:
    """``localhost:8080`` -> ``localhost``, ``[::1]:8080`` -> ``::1``; None for an invalid host."""
    match = _HOST.fullmatch(host)
    return (match["v6"] or match["name"]).lower() if match else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
