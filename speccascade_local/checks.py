"""Numbers, files and texts that come from users and strangers: the right kind, within their range, readable, or a clear error."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
import reprlib
import tempfile
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .errors import CatalogError, SettingError

_EDGE_BYTES = _PIECE_BYTES = 1 << 20
#: Of a file that is read whole, where its reader names no other limit.
MOST_BYTES = 64 << 20
#: ASCII's control characters but newline and tab, Unicode's others, those that turn the direction of writing, and halves of characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def whole_number(name: str, value: object, low: int, high: int, other: str = "") -> int:
    """``value`` as an int in low..high. Raises SettingError; ``other`` ends its message, such as " or 'auto'"."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise SettingError(f"{name} is {value!r:.40}; it must be a whole number from {low} to {high}{other}")
    return int(value)


def finite_number(name: str, value: object, low: float, high: float, allowed: str) -> float:
    """``value`` as a finite float in low..high, which ``allowed`` says in words. Raises SettingError."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise SettingError(f"{name} is {value!r:.40}; it must be {allowed}")
    return number


def shown(value: object, most: int = 100) -> str:
    """A value as an error shows it: short, however large the value is."""
    try:
        return f"{_SHORT.repr(value):.{most}}"
    except Exception:  # numbers of more digits than Python writes
        return f"a {type(value).__name__}"


def replace_file(path: Path, content: str | Iterable[bytes]) -> None:
    """Write a file whole or not at all, whoever reads or writes it meanwhile; its permissions stay, and so does a link to it.

    content: text, or bytes in pieces. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = target.stat().st_mode if target.exists() else None
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.writelines([content.encode()] if isinstance(content, str) else content)
            file.close()
            if mode is not None:
                temporary.chmod(mode)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def bytes_of(path: Path, most: int = MOST_BYTES) -> bytes:
    """What stands in a file. Raises CatalogError, also for one of more than ``most`` bytes, of which no more are read."""
    try:
        with path.open("rb") as file:
            data = bytearray()  # in pieces, because room for all that may stand there would be set aside for any file
            while len(data) <= most and (piece := file.read(_PIECE_BYTES)):
                data += piece
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from error
    except ValueError as error:  # a name that no file can have
        raise CatalogError(f"{path}: cannot be read ({error}); check its name") from error
    if len(data) > most:
        raise CatalogError(f"{path}: larger than the {most / (1 << 20):g} MiB that are read of such a file; is it the right one?")
    return bytes(data)


def text_of(path: Path, most: int = MOST_BYTES) -> str:
    """What a file of at most ``most`` bytes says, without its byte order mark and with the line ends of Unix. Raises CatalogError."""
    data = bytes_of(path, most)
    try:
        return decoded(data).replace("\r\n", "\n").replace("\r", "\n")
    except ValueError as error:
        raise CatalogError(f"{path}: {error}") from error


def decoded(data: bytes) -> str:
    """The text of a file or a pipe, without its byte order mark. Raises ValueError for what is no UTF-8, and says what to do."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("not UTF-8 text but UTF-16; save it as UTF-8, or convert it first, for example with iconv") from error
        seen = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise ValueError(f"not UTF-8 text: {seen}; convert it first, for example with iconv") from error


def printable(text: str, limit: int | None = None) -> str:
    """The text with its control characters as escapes of four digits, so that no terminal obeys them. Newline and tab stay.

    limit: most of its characters that are shown; of a longer one the middle is left out.
    """
    return _shortened(_CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", _shortened(text, limit)), limit)


def _shortened(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


def json_of(path: Path, most: int = MOST_BYTES) -> Any:
    """What a file of JSON holds. Raises CatalogError, also for one that is too large or too deep."""
    try:
        return json.loads(text_of(path, most))
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{path}: not JSON ({error})") from error


def fingerprint(path: Path) -> str:
    """What tells a model file from others: SHA-256 of its size, its first and its last MiB (a whole large file takes too long)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(str(size).encode())
        for start in (0, max(0, size - _EDGE_BYTES)):
            file.seek(start)
            digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()
