"""How a GGUF file is laid out: its keys, its long lists, its tensors, and where its header ends.

Long lists (a vocabulary of 150,000 texts) are stepped over and read only when asked for, so that a header takes milliseconds; the gguf
package reads each entry into an object, which takes seconds. A file of which only the first part is there says how much is missing, so
that a header can be fetched piece by piece. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import ModelLoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_STRING, _LIST = 8, 9
#: How each kind of number is stored, by the number that GGUF has for the kind.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")
#: More entries than any model has; a header that claims them is damaged, and stepping over them would take for ever.
_MOST = 1 << 26
_DIMENSIONS = 4

Bytes = bytes | memoryview | mmap.mmap


class IncompleteError(Exception):
    """The header goes on where the bytes end; ``needed`` of them, from the start of the file, would be enough for the next step."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"its header goes on behind byte {needed}")
        self.needed = needed


@dataclass(frozen=True)
class StoredList:
    """Where a list lies: ``count`` entries of GGUF's ``kind`` from byte ``start`` on."""

    kind: int
    count: int
    start: int


@dataclass(frozen=True)
class Tensor:
    """Its name, its number of values, the number that ggml has for its type, and where it lies behind the header."""

    name: str
    n_values: int
    kind: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """values: keys with one value. lists: keys with many, unread. end: where the header ends, 0 if it was not read so far."""

    data: Bytes
    values: Mapping[str, Any]
    lists: Mapping[str, StoredList]
    n_tensors: int
    tensors: tuple[Tensor, ...]
    end: int

    def entries(self, name: str) -> list[Any]:
        """A list's entries; texts as bytes. Raises KeyError."""
        place = self.lists[name]
        if place.kind != _STRING:
            return list(struct.unpack_from(f"<{place.count}{_NUMBERS[place.kind]}", self.data, place.start))
        starts = self.starts(name)
        return [bytes(self.data[start + 8 : end]) for start, end in pairwise(starts)]

    def starts(self, name: str) -> list[int]:
        """Where each text of a list begins, with the eight bytes of its length, and where the last one ends. Raises KeyError."""
        place = self.lists[name]
        cursor = _Cursor(self.data, place.start)
        return [place.start, *(cursor.skip_text() for _ in range(place.count))]


def layout_of(path: Path, until: str | None = None) -> Layout:
    """The layout of a file; ``until``: no further than this key, if there is such a key. Raises ModelLoadError."""
    try:
        with path.open("rb") as file:
            # Closed by whoever forgets the layout last: its lists are read from it when they are asked for.
            return read_layout(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), until)
    except IncompleteError as error:
        raise ModelLoadError(f"{path}: its header cannot be read ({error}); it may be cut off: fetch it again") from error
    except (OSError, ValueError) as error:  # ValueError: of the reading below, or an empty file
        raise ModelLoadError(f"{path}: its header cannot be read ({error}); it may be damaged: fetch it again") from error


def read_layout(data: Bytes, until: str | None = None) -> Layout:
    """The layout of what begins with these bytes. Raises IncompleteError, and ValueError for what is no GGUF header."""
    cursor = _Cursor(data, 0)
    if cursor.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ValueError(f"it is GGUF version {version}, known are 2 and 3 with the low byte first")
    n_tensors, n_keys = cursor.count("tensors"), cursor.count("keys")
    values: dict[str, Any] = {}
    lists: dict[str, StoredList] = {}
    for _ in range(n_keys):
        name, kind = cursor.text(), cursor.number("I")
        if kind == _LIST:
            kind, count = cursor.number("I"), cursor.count("entries")
            lists[name] = StoredList(kind, count, cursor.at)
        else:
            values[name] = cursor.value(kind)
        if name == until:
            return Layout(data, values, lists, n_tensors, (), 0)
        if name in lists:
            cursor.skip(lists[name])
    tensors = tuple(_tensor(cursor) for _ in range(n_tensors))
    return Layout(data, values, lists, n_tensors, tensors, cursor.at)


def _tensor(cursor: _Cursor) -> Tensor:
    name, n_values = cursor.text(), 1
    for _ in range(cursor.dimensions()):
        n_values *= cursor.number("Q")
    return Tensor(name, n_values, kind=cursor.number("I"), offset=cursor.number("Q"))


class _Cursor:
    """A place in the bytes that moves on as they are read."""

    def __init__(self, data: Bytes, at: int) -> None:
        self.data, self.at, self._size = data, at, len(data)

    def take(self, n: int) -> bytes:
        start = self._advance(n)
        return bytes(self.data[start : self.at])

    def number(self, form: str) -> Any:
        form = f"<{form}"
        start = self._advance(struct.calcsize(form))
        return struct.unpack_from(form, self.data, start)[0]

    def count(self, what: str) -> int:
        count: int = self.number("Q")
        if count > _MOST:
            raise ValueError(f"it claims to have {count} {what}")
        return count

    def dimensions(self) -> int:
        n: int = self.number("I")
        if n > _DIMENSIONS:
            raise ValueError(f"a tensor claims to have {n} dimensions")
        return n

    def text(self) -> str:
        return self.take(self.count("bytes in a name or a text")).decode(errors="replace")

    def value(self, kind: int) -> Any:
        return self.text() if kind == _STRING else self.number(_number(kind))

    def skip(self, place: StoredList) -> None:
        if place.kind == _STRING:
            for _ in range(place.count):
                self.skip_text()
        else:
            self._advance(place.count * struct.calcsize(f"<{_number(place.kind)}"))

    def skip_text(self) -> int:
        """Where the next one begins."""
        start = self.at
        if start + 8 > self._size:
            raise IncompleteError(start + 8)
        self.at = start + 8 + _LENGTH.unpack_from(self.data, start)[0]
        if self.at > self._size:
            raise IncompleteError(self.at)
        return self.at

    def _advance(self, n: int) -> int:
        start = self.at
        if start + n > self._size:
            raise IncompleteError(start + n)
        self.at = start + n
        return start


def _number(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"it has a value of the unknown kind {kind}")
    return _NUMBERS[kind]
