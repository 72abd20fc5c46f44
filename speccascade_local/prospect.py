"""A block in the making, and what it would be worth if it ended in one way or another: arithmetic on chances and seconds.

Decides nothing, and knows nothing of where chances and seconds come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ngram import NOTHING
from .pacing import LONGEST
from .rows import Float


class Prospect:
    """A block in the making, and what it is worth: tokens, less what they might have cost at ``rate``.

    batch: seconds of the expert, by the number of tokens submitted. step, first: seconds of a row of the drafter, and of its first one.
    rate: tokens per second. room: the most tokens to submit. chances: P(kept) of tokens that the drafter is as sure of as it was lately.
    probing: whether the first token is drafted whatever it is worth.
    """

    def __init__(self, batch: Float, step: float, first: float, rate: float, room: int, chances: Float, *, probing: bool) -> None:
        self.batch, self.step, self.first, self.rate, self.room, self.chances = batch, step, first, rate, room, chances
        self.probing = probing
        self.said: list[float] = []  # log-odds of the drafter, of each drafted token
        self.expected, self.all_kept = 1.0, 1.0  # tokens of the block as drafted so far; chance that all of it is kept
        self.rows = self.free_rows = 0  # of the drafter; how many it has computed already, while it reviewed guesses
        self.seconds = 0.0  # of the drafter
        self.refused = False  # the last row, because no token of it was worth submitting
        self.ending = 0.0  # what it is worth if it ends here
        self.guess = NOTHING  # its tail
        # a + a² + ...: what further tokens bring beyond one that is kept, their chances being unknown yet
        self.further = np.concatenate(([0.0], np.cumsum(chances.mean() ** np.arange(1, LONGEST))))

    @property
    def drafted(self) -> int:
        """How many tokens."""
        return len(self.said)

    @property
    def is_probe(self) -> bool:
        """Whether the next token is drafted whatever it is worth."""
        return self.probing and not self.said

    def submit(self, log_odds: float, chance: float) -> None:
        """One token more."""
        self.said.append(log_odds)
        self.all_kept *= chance
        self.expected += self.all_kept

    def if_kept(self, chances: Float) -> Float:
        """The most that it can be worth if one token more is submitted, by that token's chance, the best length chosen. [k]"""
        more = np.arange(min(self.room, LONGEST) - self.drafted)
        tokens = self.all_kept * chances[:, None] * (1 + self.further[more])
        cost = more * self.step + self.batch[self.drafted + 1 + more]
        worth: Float = (self.expected + tokens - self.rate * cost).max(axis=1)
        return worth

    def best_tail(self, chances: Sequence[float]) -> tuple[int, float]:
        """How many guesses to submit if the draft ends here, and what the block is worth then. chances: of each guess in turn."""
        chances = chances[: self.room - self.drafted]
        if not chances:
            return 0, float(self.expected - self.rate * self.batch[self.drafted])
        tokens = np.cumsum([self.expected, *(self.all_kept * np.cumprod(chances))])
        worth = tokens - self.rate * self.batch[self.drafted : self.drafted + len(tokens)]
        length = len(worth) - 1 - int(np.argmax(worth[::-1]))  # what costs nothing is taken
        return length, float(worth[length])
