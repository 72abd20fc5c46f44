"""Reads files of users and downloads up to a limit, and writes files whole or not at all."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import CatalogError

#: The folder of this package, with the bundled pair and the programs in it.
PACKAGE = Path(__file__).parents[1]
_PIECE_BYTES = 1 << 20
#: The limit for a file that is read whole, unless its reader sets another.
MAX_BYTES = 64 << 20


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` resolved. A home that does not exist stays in it, so that the file is simply missing."""
    return Path(os.path.expanduser(path))


def replace_file(path: Path, content: str | Iterable[bytes]) -> None:
    """Write text, or bytes in pieces, to a file: whole or not at all, also while others read or write it. Raises OSError.

    Its folder is created if needed; its permissions and a link to it stay.
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


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return the content of a file. Raises CatalogError, also for one of more than ``most`` bytes, without reading the rest."""
    try:
        with path.open("rb") as file:
            data = bytearray()  # in pieces, because read(most) reserves all that memory for any file
            while len(data) <= most and (piece := file.read(_PIECE_BYTES)):
                data += piece
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from error
    except ValueError as error:  # a name that no file can have
        raise CatalogError(f"{path}: cannot be read ({error}); check its name") from error
    if len(data) > most:
        raise CatalogError(f"{path}: larger than {most / (1 << 20):g} MiB, the limit for such a file; is it the right one?")
    return bytes(data)


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """Return the text of a file of at most ``most`` bytes, without byte order mark and with Unix line ends. Raises CatalogError."""
    data = read_bytes(path, most)
    try:
        return decode_text(data).replace("\r\n", "\n").replace("\r", "\n")
    except ValueError as error:
        raise CatalogError(f"{path}: {error}") from error


def decode_text(data: bytes) -> str:
    """Return the text of a file or a pipe, without byte order mark. Raises ValueError, which says what to do, if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("not UTF-8 text but UTF-16; save it as UTF-8, or convert it first, for example with iconv") from error
        place = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise ValueError(f"not UTF-8 text: {place}; convert it first, for example with iconv") from error


def read_json(path: Path, most: int = MAX_BYTES) -> Any:
    """Return the value in a JSON file. Raises CatalogError, also for one that is too large or too deep."""
    try:
        return json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{path}: not JSON ({error})") from error


def fingerprint(path: Path) -> str:
    """Return SHA-256 of a file's size, first and last MiB, which identifies a model; hashing all of it takes too long."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(str(size).encode())
        for start in (0, max(0, size - _PIECE_BYTES)):
            file.seek(start)
            digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()
