"""The structure of a GGUF file: a walk over its header that checks every number against the size of the file.

Counts, lengths, types and offsets that cannot be true are refused before memory is reserved for them: model files are downloads.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..common.errors import ModelLoadError

#: Far above what any model has, and low enough to be read quickly: keys, tensors, texts in a list, numbers in a list.
_MAX_KEYS, _MAX_TENSORS, _MAX_TEXTS, _MAX_NUMBERS = 1 << 16, 1 << 20, 1 << 20, 1 << 30
_MAX_SHARDS, _MAX_DIMENSIONS = 1000, 4
#: Bytes: of all names and texts that are read, of a key, a text, and a tensor's name.
_MAX_READ, _MAX_KEY, _MAX_TEXT, _MAX_TENSOR_NAME = 1 << 28, 1 << 16, 32 << 20, 63
TEXT, _LIST = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SHARD = re.compile(r"(?P<stem>.*-)(?P<number>\d{5})(?P<end>-of-(?P<count>\d{5})\.gguf)", re.IGNORECASE)

#: ggml's types of tensors by number: name, values in a block, bytes of a block. A test compares them with the ``gguf`` package, which
#: brings too much to be needed by every installation.
# fmt: off
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}
# fmt: on


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry in the header. ``kind`` is ggml's number of its type; ``size`` is in bytes, 0 for an unknown type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class StoredList:
    """Where the entries of a list are: ``count`` of GGUF's type ``kind``, from byte ``start`` on."""

    kind: int
    count: int
    start: int


@dataclass(frozen=True)
class Layout:
    """The header of one file."""

    path: Path
    values: dict[str, Any]  # Numbers and texts by key. For a list: its length.
    lists: dict[str, StoredList]  # where each list is stored, by key
    n_tensors: int  # the number of tensors that the file claims to have
    tensors: tuple[Tensor, ...]  # empty if reading stopped before them
    data_start: int  # the offset in bytes from which the tensors' offsets count

    def numbers(self, key: str) -> list[Any]:
        """Return the entries of a list of numbers. Raises KeyError and OSError."""
        place = self.lists[key]
        code = f"<{place.count}{_FORMATS[place.kind]}"
        with self.path.open("rb") as file:
            file.seek(place.start)
            return list(struct.unpack(code, file.read(struct.calcsize(code))))


def layout_of(path: Path, until: str | None = None) -> Layout:
    """Return the header of a file, without its tensors if ``until`` names the list at which reading stops.

    Raises ModelLoadError if it is not a whole GGUF file, and OSError if it cannot be read.
    """
    with path.open("rb", buffering=1 << 20 if until is None else 1 << 14) as file:
        return layout_in(file, os.fstat(file.fileno()).st_size, path, until)


def layout_in(file: BinaryIO, size: int, path: Path, until: str | None = None) -> Layout:
    """Return the header of an open file of ``size`` bytes, as :func:`layout_of` does. ``path`` is its name in errors."""
    return _HeaderReader(path, file, size).layout(until)


def shard_names(name: str) -> list[str]:
    """Return the names of all shards of a model, given one such as ``m-00002-of-00003.gguf``; for any other file its own name.

    A name with a number beyond the count, or with more shards than any model has, is a name like any other.
    """
    match = _SHARD.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= _MAX_SHARDS:
        return [name]
    return [f"{match['stem']}{number:05}{match['end']}" for number in range(1, int(match["count"]) + 1)]


def shard_paths(path: Path) -> list[Path]:
    """Return the paths of all shards of a model, given one; for any other file its own path."""
    return [path.parent / name for name in shard_names(path.name)]


class _HeaderReader:
    """Reads one header, from front to back."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size, self.left = path, file, size, size
        self.n_read = 0
        self.lists: dict[str, StoredList] = {}

    def layout(self, until: str | None) -> Layout:
        if self._take(len(_MAGIC)) != _MAGIC:
            raise self._error("it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            kind = "big-endian, which this machine cannot read" if version & 0xFFFF == 0 else "not known"
            raise self._error(f"its format version is {version}, {kind}; allowed are 2 and 3")
        n_tensors = self._count("tensors", _MAX_TENSORS, least_bytes=24)
        n_keys = self._count("keys", _MAX_KEYS, least_bytes=13)
        values: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._text("a key", _MAX_KEY)
            if not key:
                raise self._error("a key is empty")
            values[key] = self._value(key, until)
            if key == until:
                return Layout(self.path, values, self.lists, n_tensors, (), 0)
        tensors = [self._tensor() for _ in range(n_tensors)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._error(f"general.alignment is {alignment!r:.40}; it must be a power of two")
        data_start = math.ceil((self.size - self.left) / alignment) * alignment
        for tensor in tensors:
            end = data_start + tensor.offset + tensor.size
            if end > self.size:
                raise ModelLoadError(
                    f"{self.path}: cut off: tensor {tensor.name!r} ends at byte {end}, the file at {self.size}; fetch it again"
                )
        return Layout(self.path, values, self.lists, n_tensors, tuple(tensors), data_start)

    def _value(self, key: str, until: str | None) -> Any:
        kind = self._number("I")
        if kind == TEXT:
            return self._text(key, _MAX_TEXT)
        if kind == _LIST:
            return self._list(key, skipped=key != until)
        value = self._number(self._format(key, kind))
        if key.endswith("epsilon") and not 0 <= value < math.inf:  # llama.cpp notices only in the first evaluation
            raise self._error(f"{key:.80} is {value}")
        return value

    def _list(self, key: str, skipped: bool) -> int:
        """Return the length of a list and note where it is stored; ``skipped``: move to what follows it."""
        kind = self._number("I")
        if kind == TEXT:
            count = self._count(f"texts of {key}", _MAX_TEXTS, least_bytes=8)
            self.lists[key] = StoredList(kind, count, self.size - self.left)
            if skipped:
                self._skip_texts(key, count)
            return count
        size = struct.calcsize(self._format(key, kind))
        count = self._count(f"numbers of {key}", _MAX_NUMBERS, least_bytes=size)
        self.lists[key] = StoredList(kind, count, self.size - self.left)
        self._skip(count * size)
        return count

    def _tensor(self) -> Tensor:
        name = self._text("a tensor's name", _MAX_TENSOR_NAME)
        n_dimensions = self._number("I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise self._error(f"tensor {name!r} has {n_dimensions} dimensions; allowed are 1 to {_MAX_DIMENSIONS}")
        shape = tuple(self._number("Q") for _ in range(n_dimensions))
        if not 1 <= math.prod(shape) < 1 << 62:
            raise self._error(f"tensor {name!r} claims the shape {' x '.join(map(str, shape))}")
        kind, offset = self._number("I"), self._number("Q")
        _, block_values, block_bytes = TENSOR_TYPES.get(kind, ("", 1, 0))
        return Tensor(name, shape, kind, offset, math.prod(shape) // block_values * block_bytes)

    def _format(self, key: str, kind: int) -> str:
        if kind not in _FORMATS:
            raise self._error(f"{key!r:.80} is of type {kind}, which is unknown; allowed are 0 to 12")
        return _FORMATS[kind]

    def _count(self, what: str, limit: int, least_bytes: int) -> int:
        count: int = self._number("Q")
        if count > limit or count * least_bytes > self.left:
            raise self._error(f"it claims {count} {what:.80}, with {self.left} bytes left in the file; allowed are {limit} at most")
        return count

    def _too_long(self, what: str, length: int, limit: int) -> ModelLoadError:
        return self._error(f"{what:.80} claims {length} bytes, with {self.left} left in the file; allowed are {limit} at most")

    def _text(self, what: str, limit: int) -> str:
        length = self._number("Q")
        if length > limit or length > self.left:
            raise self._too_long(what, length, limit)
        return self._take(length).decode(errors="replace")

    def _number(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        return struct.unpack(f"<{code}", self._take(size))[0]

    def _take(self, n: int) -> bytes:
        data = self.file.read(n) if n <= self.left else b""
        if len(data) != n:
            raise self._error(f"it ends inside its header, at byte {self.size}")
        self.left -= n
        self.n_read += n
        if self.n_read > _MAX_READ:
            raise self._error(f"its names and texts are longer than {_MAX_READ} bytes")
        return data

    def _skip(self, n: int) -> None:
        if n > self.left:
            raise self._error(f"it ends inside its header, at byte {self.size}")
        self.file.seek(n, os.SEEK_CUR)
        self.left -= n

    def _skip_texts(self, key: str, count: int) -> None:
        """Do what ``_text`` does but for the text, in one loop: a vocabulary has hundreds of thousands of texts."""
        read, seek, left = self.file.read, self.file.seek, self.left
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0 or length > _MAX_TEXT:
                self.left = max(0, left + length)
                raise self._too_long(key, length, _MAX_TEXT)
            if length:
                seek(length, os.SEEK_CUR)
        self.left = left

    def _error(self, reason: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path}: its header cannot be read: {reason}; the file is damaged or cut off: fetch it again")
