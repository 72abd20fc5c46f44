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
    probing: whether the first token is drafted to see what becomes of it. bonus: whether a draft that is kept whole brings a token more;
    without it there is no block without a draft, and no guess behind one.
    """

    def __init__(
        self, batch: Float, step: float, first: float, rate: float, room: int, chances: Float, *, probing: bool, bonus: bool = True
    ) -> None:
        self.batch, self.step, self.first, self.rate, self.room, self.chances = batch, step, first, rate, room, chances
        self.probing, self.bonus = probing, bonus
        self.said: list[float] = []  # log-odds of the drafter, of each drafted token
        self.settled = 0.0  # tokens that the drafted places emit: a place does if all before it are kept
        self.all_kept = 1.0  # chance that all of the draft is kept
        self.rows = self.free_rows = 0  # of the drafter; how many it has computed already, while it reviewed guesses
        self.seconds = 0.0  # of the drafter
        self.refused = False  # the last row, because no token of it was worth submitting
        self.ending = 0.0  # what it is worth if it ends here
        self.guess = NOTHING  # its tail
        # 1 + a + a² + ...: what follows a token that is kept, by how many more are drafted, their chances being unknown yet
        powers = chances.mean() ** np.arange(LONGEST)
        self.further = np.cumsum(powers) if bonus else np.concatenate(([0.0], np.cumsum(powers[:-1])))

    @property
    def drafted(self) -> int:
        """How many tokens."""
        return len(self.said)

    @property
    def expected(self) -> float:
        """Tokens of the block as drafted so far."""
        return self.settled + self.bonus * self.all_kept

    @property
    def is_probe(self) -> bool:
        """Whether the next token is drafted to see what becomes of it."""
        return self.probing and not self.said

    @property
    def must_draft(self) -> bool:
        """Whether the next token is drafted whatever it is worth."""
        return (self.probing or not self.bonus) and not self.said

    def submit(self, log_odds: float, chance: float) -> None:
        """One token more."""
        self.said.append(log_odds)
        self.settled += self.all_kept
        self.all_kept *= chance

    def if_kept(self, chances: Float) -> Float:
        """The most that it can be worth if one token more is submitted, by that token's chance, the best length chosen. [k]"""
        more = np.arange(min(self.room, LONGEST) - self.drafted)
        tokens = self.settled + self.all_kept + self.all_kept * chances[:, None] * self.further[more]
        cost = more * self.step + self.batch[self.drafted + 1 + more]
        worth: Float = (tokens - self.rate * cost).max(axis=1)
        return worth

    def best_tail(self, chances: Sequence[float]) -> tuple[int, float]:
        """How many guesses to submit if the draft ends here, and what the block is worth then. chances: of each guess in turn."""
        chances = chances[: self.room - self.drafted]
        if not chances or not self.bonus:
            return 0, float(self.expected - self.rate * self.batch[self.drafted])
        tokens = np.cumsum([self.expected, *(self.all_kept * np.cumprod(chances))])
        worth = tokens - self.rate * self.batch[self.drafted : self.drafted + len(tokens)]
        length = len(worth) - 1 - int(np.argmax(worth[::-1]))  # what costs nothing is taken
        return length, float(worth[length])
