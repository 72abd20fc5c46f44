"""Damaged copies of GGUF files, the same for the same seed: flipped bits, huge counts and lengths, changed types, cut off anywhere.

mutants(original, count, seed)   yields ``count`` of them, as bytes
header_size(original)            returns where the header ends; most of the damage is in it
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from speccascade_local.models.gguf_layout import layout_of

_INTERESTING = (0, 1, 2, 3, 7, 8, 9, 127, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def header_size(original: Path) -> int:
    return layout_of(original).data_start


def mutants(original: Path, count: int, seed: int) -> Iterator[bytes]:
    whole, end = original.read_bytes(), header_size(original)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damage = _KINDS[rng.integers(len(_KINDS))]
        yield bytes(damage(bytearray(whole), end, rng))


def _flip_bits(data: bytearray, end: int, rng: np.random.Generator) -> bytearray:
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(4, end)] ^= 1 << rng.integers(8)
    return data


def _change_bytes(data: bytearray, end: int, rng: np.random.Generator) -> bytearray:
    at = int(rng.integers(4, end - 4))
    data[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
    return data


def _change_a_number(data: bytearray, end: int, rng: np.random.Generator) -> bytearray:
    """Replace a count, length or value of four or eight bytes by an awkward one."""
    code, size = (("<I", 4), ("<Q", 8))[rng.integers(2)]
    at = int(rng.integers(4, end - size)) if rng.integers(3) else int(rng.choice([4, 8, 16]))
    struct.pack_into(code, data, at, int(_INTERESTING[rng.integers(len(_INTERESTING))]) % 2 ** (8 * size))
    return data


def _change_a_value(data: bytearray, end: int, rng: np.random.Generator) -> bytearray:
    """Change what follows a key: its type, or its first bytes."""
    keys = [
        place
        for key in (b"llama.", b"qwen", b"deepseek2.", b"gemma3.", b"general.", b"tokenizer.", b"mamba.")
        for place in _all(data[:end], key)
    ]
    at = int(rng.choice(keys))
    (length,) = struct.unpack_from("<Q", data, at - 8)
    place = min(at + length + (4 if rng.integers(4) else 0), end - 4)
    struct.pack_into("<I", data, place, int(_INTERESTING[rng.integers(len(_INTERESTING))]) % 2**32)
    return data


def _change_a_tensor(data: bytearray, end: int, rng: np.random.Generator) -> bytearray:
    """Change a tensor's number of dimensions, one of them, its type, or its offset."""
    at = int(rng.choice([*_all(data[:end], b".weight"), *_all(data[:end], b"norm.weight")])) + 7
    place = min(at + int(rng.integers(0, 32)), end - 8)
    struct.pack_into("<I", data, place, int(_INTERESTING[rng.integers(len(_INTERESTING))]) % 2**32)
    return data


def _cut_off(data: bytearray, end: int, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(0, end if rng.integers(2) else len(data))]


def _leave_out(data: bytearray, end: int, rng: np.random.Generator) -> bytearray:
    at = int(rng.integers(4, end))
    del data[at : at + int(rng.integers(1, 64))]
    return data


def _all(data: bytearray, text: bytes) -> list[int]:
    places, at = [], data.find(text)
    while at >= 0:
        places.append(at)
        at = data.find(text, at + 1)
    return places


_KINDS: tuple[Callable[[bytearray, int, np.random.Generator], bytearray], ...] = (
    _flip_bits,
    _change_bytes,
    _change_a_number,
    _change_a_value,
    _change_a_value,
    _change_a_tensor,
    _cut_off,
    _leave_out,
)
