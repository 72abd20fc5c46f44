"""The profile of a pair: how many seconds each of its two models takes for a batch of each size.

The cost of a draft is not proportional to its length. The seconds of a batch are a staircase with dips, because the kernels work in
tiles. A batch of 5 can take longer than one of 8; it is then cheaper to pad it to 8 with tokens that are thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

#: The batch sizes that are measured: a draft of up to 16 tokens, and the token before it.
SIZES = range(1, 18)
MOST_THREADS = 1024
#: A batch is padded only where that saves more than this share of its seconds; less may be noise.
WORTH_PADDING = 0.03


@dataclass(frozen=True)
class Speed:
    """The seconds that one model takes for a batch of n tokens, for each n of ``SIZES``.

    Raises:
        ValueError: A number is out of its range, or the lengths do not match.
    """

    threads: int  # CPU threads for single tokens
    batch_threads: int  # CPU threads for batches
    depths: tuple[int, ...]  # how many tokens the KV cache held when the batches were measured, ascending
    seconds: tuple[tuple[float, ...], ...]  # ``seconds[i][n - 1]`` is the time of a batch of n tokens at ``depths[i]``. [depths, 17]
    prompt_s: float  # seconds for each token of a long prompt

    def __post_init__(self) -> None:
        if not all(1 <= threads <= MOST_THREADS for threads in (self.threads, self.batch_threads)):
            raise ValueError(f"threads are {self.threads!r} and {self.batch_threads!r}; they must be from 1 to {MOST_THREADS}")
        if not self.depths or self.depths[0] < 0 or any(a >= b for a, b in pairwise(self.depths)):
            raise ValueError(f"depths are {self.depths!r}; they must be at least one number, from 0, ascending")
        if len(self.seconds) != len(self.depths) or any(len(row) != len(SIZES) for row in self.seconds):
            raise ValueError(f"seconds must be {len(SIZES)} numbers for each of the {len(self.depths)} depths")
        if not all(0 < value < math.inf for row in (*self.seconds, (self.prompt_s,)) for value in row):
            raise ValueError("seconds must be finite and above 0")

    def batch_s(self, n: int, depth: int = 0) -> float:
        """Return the seconds of the cheapest batch of at least n tokens, after ``depth`` others.

        Between two measured depths this is a straight line, outside of them the nearest. Beyond ``SIZES`` each token takes as long as in
        a prompt.
        """
        if n < 1:
            raise ValueError(f"a batch of {n} tokens; the smallest has 1")
        at = [self._extrapolated(row, n) for row in self._cheapest]
        for (low, high), (before, after) in zip(pairwise(self.depths), pairwise(at)):
            if depth <= high:
                return before + (after - before) * max(0, depth - low) / (high - low)
        return at[-1]

    def padded(self, n: int) -> int:
        """Return the size of the batch to evaluate in place of one of n tokens: n, unless a larger one of ``SIZES`` is clearly cheaper."""
        if n not in SIZES:
            return n
        totals = [math.fsum(row[m - 1] for row in self.seconds) for m in range(n, SIZES.stop)]
        best = min(totals)
        return n + totals.index(best) if best <= (1 - WORTH_PADDING) * totals[0] else n

    @property
    def padding(self) -> dict[int, int]:
        """The sizes to pad, and to which. Single tokens are never padded: their kernels differ and round differently."""
        return {n: self.padded(n) for n in SIZES if n > 1 and self.padded(n) != n}

    @cached_property
    def _cheapest(self) -> list[list[float]]:
        """For each depth and n, the seconds of the cheapest batch of at least n tokens. [depths, 17]"""
        return [list(accumulate(reversed(row), min))[::-1] for row in self.seconds]

    def _extrapolated(self, row: Sequence[float], n: int) -> float:
        return row[n - 1] if n in SIZES else row[-1] + (n - SIZES[-1]) * self.prompt_s


@dataclass(frozen=True)
class Profile:
    """The speeds of a pair, and what they hold for.

    Raises:
        ValueError: A number is out of its range.
    """

    expert: Speed  # the expert's speed
    drafter: Speed  # the drafter's speed; ``FREE`` where drafts are copied from the text
    # What is lost when the drafter decodes while the expert reads a batch, as a share of the time that this could save. 0: both run as if
    # alone; 1: nothing is gained.
    overlap: float
    key: Mapping[str, str | int]  # the files, the machine and the build that were measured
    # Seconds that the decoding loop takes beside the models, for each block. A large model hides them, a tiny one does not.
    block_s: float = 0.0
    draft_s: float = 0.0  # the same for each drafted token

    def __post_init__(self) -> None:
        for name in ("block_s", "draft_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a finite number from 0")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap is {self.overlap!r}; it must be a number from 0 to 1")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


#: The speed of drafts that are copied from the text: next to nothing beside any model.
FREE = Speed(1, 1, (0,), (tuple(1e-6 for _ in SIZES),), 1e-6)
