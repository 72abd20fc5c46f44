"""How long the two models of a pair take for batches of each size: the profile of a pair, as a value and as JSON.

What a draft costs is not proportional to its length. The seconds of a batch are a staircase with dips, because the kernels work in
tiles: a batch of 5 can take longer than one of 8, and is then cheaper if padded to 8 with tokens that are thrown away.
Knows nothing of models, of how the times were measured, or of where profiles are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

#: The sizes of batches that are measured: a draft of up to 16 tokens, and the token before it.
SIZES = range(1, 18)
MOST_THREADS = 1024
#: A batch is padded only where that saves more than this share: less may be noise.
WORTH_PADDING = 0.03


@dataclass(frozen=True)
class Speed:
    """How long one model takes for a batch of n tokens, n in SIZES, with ``depths`` tokens before it. Raises ValueError if malformed.

    threads and batch_threads: for single tokens and for batches. seconds: ``seconds[i][n - 1]`` at ``depths[i]``. prompt_s: for each
    token of a long prompt.
    """

    threads: int
    batch_threads: int
    depths: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    prompt_s: float

    def __post_init__(self) -> None:
        if not all(_is_whole(threads, 1) and threads <= MOST_THREADS for threads in (self.threads, self.batch_threads)):
            raise ValueError(
                f"threads are {self.threads!r} and {self.batch_threads!r}; they must be whole numbers from 1 to {MOST_THREADS}"
            )
        if not self.depths or not all(_is_whole(depth, 0) for depth in self.depths) or any(a >= b for a, b in pairwise(self.depths)):
            raise ValueError(f"depths are {self.depths!r}; they must be whole numbers from 0, at least one, ascending")
        if len(self.seconds) != len(self.depths) or any(len(row) != len(SIZES) for row in self.seconds):
            raise ValueError(f"seconds must be {len(SIZES)} numbers for each of the {len(self.depths)} depths")
        if not all(_is_number(value) and value > 0 for row in (*self.seconds, (self.prompt_s,)) for value in row):
            raise ValueError("seconds must be finite and above 0")

    def batch_s(self, n: int, depth: int = 0) -> float:
        """Seconds for a batch of at least n tokens, the cheapest that there is, after ``depth`` others.

        A straight line between the depths that were measured, and outside of them the nearest; beyond SIZES each token
        takes as long as in a prompt.
        """
        if n < 1:
            raise ValueError(f"a batch of {n} tokens; the smallest has 1")
        at = [self._extrapolated(row, n) for row in self._cheapest]
        for (low, high), (before, after) in zip(pairwise(self.depths), pairwise(at)):
            if depth <= high:
                return before + (after - before) * max(0, depth - low) / (high - low)
        return at[-1]

    def padded(self, n: int) -> int:
        """The batch to evaluate in place of one of n tokens: n, unless a larger one is clearly cheaper. Beyond SIZES always n."""
        if n not in SIZES:
            return n
        totals = [math.fsum(row[m - 1] for row in self.seconds) for m in range(n, SIZES.stop)]
        best = min(totals)
        return n + totals.index(best) if best <= (1 - WORTH_PADDING) * totals[0] else n

    @property
    def padding(self) -> dict[int, int]:
        """The sizes that are better padded, and to which. Single tokens never are: their kernels are others, and round otherwise."""
        return {n: self.padded(n) for n in SIZES if n > 1 and self.padded(n) != n}

    @cached_property
    def _cheapest(self) -> list[list[float]]:
        """At each depth, for each n, the least of all batches from n on; it never decreases with n."""
        return [list(accumulate(reversed(row), min))[::-1] for row in self.seconds]

    def _extrapolated(self, row: Sequence[float], n: int) -> float:
        return row[n - 1] if n in SIZES else row[-1] + (n - SIZES[-1]) * self.prompt_s


@dataclass(frozen=True)
class Profile:
    """The speeds of a pair, and what they hold for. Raises ValueError if malformed.

    overlap: what is lost when the drafter decodes while the expert reads a batch, as a share of the time that could be saved by it;
    0: both run as if alone, 1: nothing is gained. key: the files, the machine and the build that were measured. block_s, draft_s: what the
    loop takes beside the models, for each block and for each drafted token; a large model hides it, a tiny one does not.
    """

    expert: Speed
    drafter: Speed
    overlap: float
    key: Mapping[str, str | int]
    block_s: float = 0.0
    draft_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("block_s", "draft_s"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a finite number from 0")
        if not (_is_number(self.overlap) and 0 <= self.overlap <= 1):
            raise ValueError(f"overlap is {self.overlap!r}; it must be a number from 0 to 1")
        if not all(isinstance(name, str) and (isinstance(value, str) or _is_whole(value, None)) for name, value in self.key.items()):
            raise ValueError("the key must be texts and whole numbers by name")

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, and ``from_dict`` reads."""
        speeds = {
            role: {**asdict(speed), "depths": list(speed.depths), "seconds": [list(row) for row in speed.seconds]}
            for role, speed in (("expert", self.expert), ("drafter", self.drafter))
        }
        return {**speeds, "overlap": self.overlap, "key": dict(self.key), "block_s": self.block_s, "draft_s": self.draft_s}

    @classmethod
    def from_dict(cls, data: object) -> Profile:
        """The inverse of ``as_dict``. Raises ValueError for anything else."""
        whole = _entries("the profile", data, {"expert", "drafter", "overlap", "key", "block_s", "draft_s"})
        if not isinstance(whole["key"], dict):
            raise ValueError("the key must be texts and whole numbers by name")
        expert, drafter = (_speed(role, whole[role]) for role in ("expert", "drafter"))
        return cls(expert, drafter, whole["overlap"], whole["key"], whole["block_s"], whole["draft_s"])


def _speed(role: str, data: object) -> Speed:
    entries = _entries(role, data, {"threads", "batch_threads", "depths", "seconds", "prompt_s"})
    seconds = tuple(tuple(_list(f"a row of {role}.seconds", row)) for row in _list(f"{role}.seconds", entries["seconds"]))
    depths = tuple(_list(f"{role}.depths", entries["depths"]))
    return Speed(entries["threads"], entries["batch_threads"], depths, seconds, entries["prompt_s"])


def _entries(name: str, data: object, expected: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != expected:
        raise ValueError(f"{name} must have exactly the entries {', '.join(sorted(expected))}")
    return data


def _list(name: str, data: object) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError(f"{name} must be a list")
    return data


def _is_whole(value: object, least: int | None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


#: In place of a drafter: what an index of the text takes beside any model.
FREE = Speed(1, 1, (0,), (tuple(1e-6 for _ in SIZES),), 1e-6)
