"""Session files: a conversation with its messages, settings, ids and both KV caches, so that it continues without another prefill.

A file is written whole or not at all, and read whole or not at all: a first line with its kind, a header as JSON, the caches, and a
checksum of everything.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from ..common.errors import CatalogError
from ..common.files import fingerprint, replace_file
from ..llama.session import SavedState
from ..tokens.transcript import Piece, Transcript

VERSION = 1
_MAGIC = b"speccascade chat session\n"
_LENGTH_BYTES, _SUM_BYTES = 8, 32
#: Bytes of messages, settings and ids; a context of a million tokens needs half of it.
_MOST_HEADER = 32 << 20
_PIECE = 1 << 20
_TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]


class ModelMark(BaseModel):
    """Which file a cache belongs to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    fingerprint: str

    @classmethod
    def of(cls, path: Path) -> ModelMark:
        """Return the mark of a file. Raises CatalogError when it cannot be read."""
        try:
            return cls(name=path.name, fingerprint=fingerprint(path))
        except OSError as error:
            raise CatalogError(f"{path}: cannot be read ({error.strerror}); a session file names the models that it belongs to") from error


@dataclass(frozen=True)
class SavedChat:
    """A conversation as a value. ``settings``: as JSON has them. ``forgotten``: oldest turns that are no longer part of the prompt."""

    messages: list[dict[str, str]]
    system: str | None = None
    forgotten: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    said: Transcript = field(default_factory=Transcript)
    models: Mapping[str, ModelMark] = field(default_factory=dict)
    caches: Mapping[str, SavedState] = field(default_factory=dict)


class _Cache(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tokens: _TokenIds
    n_bytes: NonNegativeInt


class _Header(BaseModel):
    """The JSON before the caches."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int
    messages: Annotated[list[dict[str, str]], Field(fail_fast=True)]
    system: str | None
    forgotten: Annotated[int, Field(ge=0, lt=2**31)]
    settings: dict[str, Any]
    said: Annotated[list[tuple[_TokenIds, list[tuple[str, bool]] | None]], Field(fail_fast=True)]
    models: dict[str, ModelMark]
    caches: dict[str, _Cache]


def require_place(path: Path) -> None:
    """Check now that a file can be written there. Raises CatalogError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CatalogError(f"{path}: cannot be written ({error.strerror}); choose another place for the session") from error


def write(path: Path, chat: SavedChat) -> None:
    """Write the conversation to a file, in place of an older session. Raises CatalogError, and then the file is unchanged."""
    try:
        if path.exists() and path.stat().st_size and not _is_session(path):
            raise CatalogError(f"{path}: this file exists and is no session; choose another name")
        replace_file(path, _add_checksum(_content(chat)))
    except OSError as error:
        raise CatalogError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def read(path: Path) -> SavedChat:
    """Return the conversation in a file. Raises CatalogError for one that is missing, cut off, damaged, of another kind or newer."""
    try:
        with path.open("rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror}); give a file that /save or --session wrote") from error
    except MemoryError as error:
        raise CatalogError(f"{path}: this machine lacks the memory for its caches; free some, or use another session") from error


def _read(path: Path, file: BinaryIO, size: int) -> SavedChat:
    """Read after checking the checksum, and allocate no more than the file holds."""
    begin = file.read(len(_MAGIC))
    if begin != _MAGIC:
        raise CatalogError(f"{path}: no session file: it begins with {begin!r}; give a file that /save or --session wrote")
    damaged = CatalogError(f"{path}: cut off or damaged: the checksum does not fit its {size} bytes; use an intact copy")
    n_header, caches_at = int.from_bytes(file.read(_LENGTH_BYTES), "big"), len(_MAGIC) + _LENGTH_BYTES
    caches_at += n_header
    if caches_at + _SUM_BYTES > size or _checksum(file, size - _SUM_BYTES) != file.read():
        raise damaged
    if n_header > _MOST_HEADER:
        raise CatalogError(f"{path}: {n_header} bytes stand before its caches; at most {_MOST_HEADER} are read; use another session")
    file.seek(caches_at - n_header)
    try:
        header = _Header.model_validate_json(file.read(n_header), strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CatalogError(
            f"{path}: not a session that this version can read: {place or 'header'}: {first['msg']}; it was written by another one"
        ) from error
    if header.version != VERSION:
        raise CatalogError(f"{path}: a session of version {header.version}; this program reads version {VERSION}")
    if caches_at + sum(cache.n_bytes for cache in header.caches.values()) + _SUM_BYTES != size:
        raise damaged
    caches = {role: SavedState(tuple(cache.tokens), file.read(cache.n_bytes)) for role, cache in header.caches.items()}
    said = Transcript(tuple(Piece(tuple(ids), None if parts is None else tuple(parts)) for ids, parts in header.said))
    return SavedChat(header.messages, header.system, header.forgotten, header.settings, said, header.models, caches)


def _checksum(file: BinaryIO, length: int) -> bytes:
    """Return the SHA-256 of the first ``length`` bytes, and leave the file after them."""
    file.seek(0)
    digest = hashlib.sha256()
    while length and (piece := file.read(min(length, _PIECE))):
        digest.update(piece)
        length -= len(piece)
    return digest.digest()


def _is_session(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _content(chat: SavedChat) -> Iterator[bytes]:
    header = _Header(
        version=VERSION,
        messages=chat.messages,
        system=chat.system,
        forgotten=chat.forgotten,
        settings=dict(chat.settings),
        said=[(list(piece.ids), None if piece.parts is None else list(piece.parts)) for piece in chat.said.pieces],
        models=dict(chat.models),
        caches={role: _Cache(tokens=list(cache.tokens), n_bytes=len(cache.state)) for role, cache in chat.caches.items()},
    )
    text = header.model_dump_json().encode()
    if len(text) > _MOST_HEADER:
        raise CatalogError(f"this conversation is {len(text)} bytes long, and a session file holds {_MOST_HEADER}; begin a new one")
    yield from chain([_MAGIC, len(text).to_bytes(_LENGTH_BYTES, "big"), text], (cache.state for cache in chat.caches.values()))


def _add_checksum(content: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content, and its checksum after it."""
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
        yield piece
    yield digest.digest()
