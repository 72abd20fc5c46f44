"""Where things stand in a GGUF file: a walk over its header that believes nothing it has not checked against the file's size.

Counts, lengths, types and places are refused with their values before anyone sets memory aside for them. Knows nothing of what models
are made of.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from ..common.errors import ModelLoadError

#: Far above what any model has, far below what would keep this process busy: keys, tensors, texts in a list, numbers in a list.
_MOST_KEYS, _MOST_TENSORS, _MOST_TEXTS, _MOST_NUMBERS = 1 << 16, 1 << 20, 1 << 20, 1 << 30
_MOST_SHARDS, _MOST_KEPT = 1000, 1 << 28
_LONGEST_KEY, _LONGEST_TEXT, _LONGEST_TENSOR_NAME, _MOST_DIMENSIONS = 1 << 16, 32 << 20, 63, 4
TEXT, _LIST = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class Tensor:
    """kind: ggml's number of its type. size: bytes that it takes; 0 for a type that is not known."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class StoredList:
    """Where the entries of a list stand: ``count`` of GGUF's ``kind``, from byte ``start`` on."""

    kind: int
    count: int
    start: int


@dataclass(frozen=True)
class Layout:
    """What one file holds. values: its single numbers and texts, by key; of a list only how long it is, and in ``lists`` where it stands.
    n_tensors: how many it says it has. data_start: where they begin.
    """

    path: Path
    values: dict[str, Any]
    lists: dict[str, StoredList]
    n_tensors: int
    tensors: tuple[Tensor, ...]
    data_start: int

    def numbers(self, key: str) -> list[Any]:
        """What a list of numbers holds. Raises KeyError, OSError."""
        place = self.lists[key]
        code = f"<{place.count}{_FORMATS[place.kind]}"
        with self.path.open("rb") as file:
            file.seek(place.start)
            return list(struct.unpack(code, file.read(struct.calcsize(code))))


def layout_of(path: Path, until: str | None = None) -> Layout:
    """until: read no further than the beginning of the list of this name; there are no tensors then, and their ends are not checked.

    Raises ModelLoadError for what is no whole GGUF file, OSError for what cannot be read.
    """
    with path.open("rb", buffering=1 << 20 if until is None else 1 << 14) as file:
        return layout_in(file, os.fstat(file.fileno()).st_size, path, until)


def layout_in(file: BinaryIO, size: int, path: Path, until: str | None = None) -> Layout:
    """The same for an open file of so many bytes, read from where it stands; only its header is read. path: what it is called."""
    return HeaderReader(path, file, size).layout(until)


def shards(name: str) -> list[str]:
    """The names of all files of a model of which one is ``...-00002-of-00003.gguf``; of any other model the name alone.

    A number beyond the count, no count, or one beyond what any model has makes it a name like any other.
    """
    found = _SHARD.fullmatch(name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]) <= _MOST_SHARDS:
        return [name]
    return [f"{found['stem']}-{number:05}-of-{found['count']}.gguf" for number in range(1, int(found["count"]) + 1)]


def shards_of(path: Path) -> list[Path]:
    """All the files that one of a divided model stands for; of any other model the file itself."""
    return [path.with_name(name) for name in shards(path.name)]


class HeaderReader:
    """One reading of one header, from front to back."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size, self.left = path, file, size, size
        self.kept = 0
        self.lists: dict[str, StoredList] = {}

    def layout(self, until: str | None) -> Layout:
        if self._take(len(_MAGIC)) != _MAGIC:
            raise self._refused("it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            kind = "big-endian, which this machine cannot read" if version & 0xFFFF == 0 else "not known"
            raise self._refused(f"its format version is {version}, {kind}; allowed are 2 and 3")
        n_tensors = self._count("tensors", _MOST_TENSORS, least_bytes=24)
        n_keys = self._count("keys", _MOST_KEYS, least_bytes=13)
        values: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._text("a key", _LONGEST_KEY)
            if not key:
                raise self._refused("a key is empty")
            values[key] = self._value(key, until)
            if key == until:
                return Layout(self.path, values, self.lists, n_tensors, (), 0)
        tensors = [self._tensor() for _ in range(n_tensors)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._refused(f"general.alignment is {alignment!r:.40}; it must be a power of two")
        data_start = math.ceil((self.size - self.left) / alignment) * alignment
        self._check_ends(tensors, data_start)
        return Layout(self.path, values, self.lists, n_tensors, tuple(tensors), data_start)

    def _value(self, key: str, until: str | None) -> Any:
        kind = self._number("I")
        if kind == TEXT:
            return self._text(key, _LONGEST_TEXT)
        if kind == _LIST:
            return self._list(key, skipped=key != until)
        value = self._number(self._format(key, kind))
        if key.endswith("epsilon") and not 0 <= value < math.inf:  # which llama.cpp finds out in the first evaluation
            raise self._refused(f"{key:.80} is {value}")
        return value

    def _list(self, key: str, skipped: bool) -> int:
        """Its length; what it holds is passed over, where anything behind it is wanted."""
        kind = self._number("I")
        if kind == TEXT:
            count = self._count(f"texts of {key}", _MOST_TEXTS, least_bytes=8)
            self.lists[key] = StoredList(kind, count, self.size - self.left)
            if skipped:
                self._skip_texts(key, count)
            return count
        size = struct.calcsize(self._format(key, kind))
        count = self._count(f"numbers of {key}", _MOST_NUMBERS, least_bytes=size)
        self.lists[key] = StoredList(kind, count, self.size - self.left)
        self._skip(count * size)
        return count

    def _tensor(self) -> Tensor:
        name = self._text("a tensor's name", _LONGEST_TENSOR_NAME)
        n_dimensions = self._number("I")
        if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
            raise self._refused(f"tensor {name!r} has {n_dimensions} dimensions; allowed are 1 to {_MOST_DIMENSIONS}")
        shape = tuple(self._number("Q") for _ in range(n_dimensions))
        if not 1 <= math.prod(shape) < 1 << 62:
            raise self._refused(f"tensor {name!r} is said to have the shape {' x '.join(map(str, shape))}")
        kind, offset = self._number("I"), self._number("Q")
        return Tensor(name, shape, kind, offset, _bytes_of(shape, kind))

    def _check_ends(self, tensors: list[Tensor], data_start: int) -> None:
        for tensor in tensors:
            end = data_start + tensor.offset + tensor.size
            if end > self.size:
                raise ModelLoadError(
                    f"{self.path}: cut off: tensor {tensor.name!r} ends at byte {end}, the file at {self.size}; fetch it again, to its end"
                )

    def _format(self, key: str, kind: int) -> str:
        if kind not in _FORMATS:
            raise self._refused(f"{key!r:.80} is of type {kind}, which does not exist")
        return _FORMATS[kind]

    def _count(self, what: str, most: int, least_bytes: int) -> int:
        count: int = self._number("Q")
        if count > most or count * least_bytes > self.left:
            raise self._refused(f"it claims {count} {what:.80}, with {self.left} bytes to go; at most {most} are believed")
        return count

    def _length(self, what: str, longest: int) -> int:
        length: int = self._number("Q")
        if length > longest or length > self.left:
            raise self._refused(f"{what:.80} is said to be {length} bytes long, with {self.left} to go; at most {longest} are believed")
        return length

    def _text(self, what: str, longest: int) -> str:
        return self._take(self._length(what, longest)).decode(errors="replace")

    def _number(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        return struct.unpack(f"<{code}", self._take(size))[0]

    def _take(self, n: int) -> bytes:
        taken = self.file.read(n) if n <= self.left else b""
        if len(taken) != n:
            raise self._refused(f"it ends within its header, at byte {self.size}")
        self.left -= n
        self.kept += n
        if self.kept > _MOST_KEPT:
            raise self._refused(f"its names and texts are longer than {_MOST_KEPT} bytes")
        return taken

    def _skip(self, n: int) -> None:
        if n > self.left:
            raise self._refused(f"it ends within its header, at byte {self.size}")
        self.file.seek(n, os.SEEK_CUR)
        self.left -= n

    def _skip_texts(self, key: str, count: int) -> None:
        """As ``_length`` and ``_skip`` do it, in one loop: a vocabulary has hundreds of thousands."""
        read, seek, left = self.file.read, self.file.seek, self.left
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0 or length > _LONGEST_TEXT:
                self.left = max(0, left + length)
                raise self._refused(
                    f"{key:.80} is said to be {length} bytes long, with {self.left} to go; at most {_LONGEST_TEXT} are believed"
                )
            if length:
                seek(length, os.SEEK_CUR)
        self.left = left

    def _refused(self, reason: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path}: its header cannot be read: {reason}; the file is damaged or cut off: fetch it again")


def _bytes_of(shape: tuple[int, ...], kind: int) -> int:
    block = _block_sizes().get(kind)
    return math.prod(shape) // block[0] * block[1] if block else 0


@lru_cache(maxsize=1)
def _block_sizes() -> dict[int, tuple[int, int]]:
    """Of each type of tensor: values in a block, and bytes."""
    from gguf import GGML_QUANT_SIZES  # slow to import

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
