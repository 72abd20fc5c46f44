"""Who may ask: the API keys, the names that the server is reached by, and the websites and applications whose pages may ask.

Also whose caches a request may find and with whom it takes turns, because that follows from the key it brings. Knows nothing of routes or
of how requests are read.
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
#: Bytes of a file with keys, which is room for thousands.
MAX_KEY_FILE = 1 << 20
#: A Host header as RFC 9110 has it, without what only a hostile one holds: user names, paths, escapes.
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?))(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)(?::[0-9]{1,5})?", re.ASCII)
#: A page of the open internet, or a file that somebody downloaded, may have these without being an application of its own.
_OPEN_SCHEMES = frozenset(("about", "blob", "data", "file", "filesystem", "ftp", "javascript", "view-source", "ws", "wss"))
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
#: Origins that any website can have.
ANY, OPAQUE = "*", "null"


@dataclass(frozen=True)
class Policy:
    """Who may ask.

    host: what the server is bound to. api_keys: one of them must be sent; none: no key is needed. origins: other sites and applications
    whose pages may ask. names: further names that the server is reached by. private: caches are shared within one ``prompt_cache_key``
    only. Raises SettingError.
    """

    host: str = "127.0.0.1"
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    private: bool = False

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.api_keys:
            raise SettingError(
                f"--host {self.host} lets other machines in, and there is no API key; give one with --api-key-file or ${ENVIRONMENT_KEY}, "
                "or stay on 127.0.0.1"
            )
        for origin in self.origins:
            _check_origin(origin, has_key=bool(self.api_keys))
        for name in self.names:
            if not (_is_address(name) or _name_of(name) == name.lower()):
                raise SettingError(
                    f"--allow-host {name!r:.80} is not a host name; give the name alone, without http:// and port, "
                    "such as host.docker.internal"
                )

    def knows(self, host: str) -> bool:
        """Whether a Host header, with its port or without, names this server."""
        name = _name_of(host)
        if name is None:
            return False
        if name in (*LOOPBACK_NAMES, self.host.lower(), *map(str.lower, self.names)):
            return True
        return not is_loopback(self.host) and _is_address(name)  # an address cannot be rebound, and there a key is needed

    def lets_ask(self, origin: str) -> bool:
        """Whether pages of this origin may ask."""
        return ANY in self.origins or origin in self.origins

    def key_number(self, given: str | None) -> int | None:
        """Which of the keys this is, counted from 0; None for a wrong one. Takes the same time for every wrong one."""
        digest = _digest(given or "")
        same = [hmac.compare_digest(digest, _digest(right)) for right in self.api_keys]
        return same.index(True) if True in same else None

    def owner(self, key_number: int | None, salt: str | None, conversation: str | None) -> Hashable:
        """Whose caches a request may find: equal for requests that may share what the models have read.

        key_number: of the key that it brought. salt: its ``cache_salt``, which separates requests within one key. conversation: its
        ``prompt_cache_key``, which does the same where the server is private. A private request without either shares with no other.
        """
        key = key_number if len(self.api_keys) > 1 else None
        if salt:
            return key, "salt", salt
        if self.private:
            return (key, "conversation", conversation) if conversation else object()
        return None if key is None else (key,)

    def client(self, key_number: int | None, address: str) -> Hashable:
        """Who takes turns with others: by the key where there are several, and by the address unless it is this machine's, behind which a
        proxy may stand. None where neither tells clients apart.
        """
        key = key_number if len(self.api_keys) > 1 else None
        peer = "" if not address or is_loopback(address) else peer_of(address)
        return (key, peer) if peer or key is not None else None


def peer_of(address: str) -> str:
    """Whom an address belongs to, as far as it tells: itself, or of IPv6 the network, of which one client has all addresses."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def api_keys(file: Path | None) -> tuple[str, ...]:
    """From a file with one key per line, or one from the environment; empty where neither is named. Raises CatalogError and SettingError.

    Blank lines and those that begin with # are left out.
    """
    if file is not None:
        source, text = f"--api-key-file {file}", read_text(file, MAX_KEY_FILE)
    elif ENVIRONMENT_KEY in os.environ:
        source, text = f"${ENVIRONMENT_KEY}", os.environ[ENVIRONMENT_KEY]
    else:
        return ()
    found: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if line and not line.startswith("#"):
            found.setdefault(line, number)
    for key, number in (found or {"": 1}).items():
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingError(
                f"{source}, line {number}, holds a key of {len(key)} characters; it must be at least {SHORTEST_KEY} of ASCII without "
                "blanks, such as what this prints: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
    return tuple(found)


def origins_of(given: Sequence[str] | None) -> tuple[str, ...]:
    """As browsers send them: without a slash at the end, and a website's in lower case and without the port that goes without saying."""
    return tuple(_as_sent(each.rstrip("/")) for each in given or ())


def _as_sent(origin: str) -> str:
    scheme, _, _ = origin.lower().partition("://")
    if scheme not in _DEFAULT_PORTS:
        return origin
    return origin.lower().removesuffix(_DEFAULT_PORTS[scheme])


def _check_origin(origin: str, *, has_key: bool) -> None:
    """Raises SettingError."""
    if origin == OPAQUE:
        return
    if origin == ANY:
        if not has_key:
            raise SettingError(
                "--allow-origin * lets the pages of every website use this server, and there is no API key; name the website, or "
                f"give a key with --api-key-file or ${ENVIRONMENT_KEY}"
            )
        return
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        raise SettingError(
            f"--allow-origin {origin!r:.80} is not an origin: SCHEME://HOST, with a port where it has one and nothing behind it, "
            "such as https://chat.example.org, http://localhost:3000 or app://obsidian.md"
        )
    if found["scheme"] in _OPEN_SCHEMES:
        raise SettingError(
            f"--allow-origin {origin!r:.80} is not an origin of one website or application: any page may have {found['scheme']}:; name "
            "https://..., http://... or the application's own, such as app://obsidian.md"
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _name_of(host: str) -> str | None:
    """``localhost:8080`` -> ``localhost``, ``[::1]:8080`` -> ``::1``; None for what is no host."""
    found = _HOST.fullmatch(host)
    return (found["v6"] or found["name"]).lower() if found else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
