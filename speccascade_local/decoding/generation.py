"""The text that both models continue, and how its next tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..tokens.rows import Rows
from ..tokens.sampler import Array, Sampler
from ..tokens.shaping import UNSHAPED, Shaper


@dataclass(eq=False)
class Generation:
    """A prompt and the reply to it so far."""

    tokens: list[int]  # both together; grows in place
    sampler: Sampler  # temperature and filters
    rng: np.random.Generator  # where every random number of the reply comes from
    is_end: Callable[[int], bool]  # whether an id ends a text
    shaper: Shaper = UNSHAPED  # penalties, biases and the grammar
    reply: list[int] = field(default_factory=list)  # the end of ``tokens`` that was generated

    def grow(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self.reply += tokens

    def with_drafts(self, drafted: Sequence[int]) -> Generation:
        """Return a copy that continues after ``drafted``; it shares the random numbers."""
        return replace(self, tokens=[*self.tokens, *drafted], reply=[*self.reply, *drafted])

    def rows(self, logits: Array, drafted: Sequence[int] = (), read: Sequence[int] = ()) -> Rows:
        """Return a model's rows after the text, ``drafted`` and 0, 1, 2, ... tokens of ``read``, as they are sampled from. [k, n_vocab]"""
        return self.shaper.rows(logits, [*self.reply, *drafted], read)

    def allowed_guesses(self, drafted: Sequence[int], guessed: Sequence[int]) -> list[int]:
        """Return the guesses that may follow ``drafted``, up to the first that the grammar forbids or that ends the text."""
        end = next((at for at, token in enumerate(guessed, start=1) if self.is_end(token)), len(guessed))
        return list(guessed[: self.shaper.count_allowed([*self.reply, *drafted], guessed[:end])])

    def to_score(self, submitted: list[int]) -> list[int]:
        """Return what a model reads of a draft to judge it: all but an end of text, which nothing follows."""
        return submitted[:-1] if submitted and self.is_end(submitted[-1]) else submitted

    def draw(self, row: Rows) -> int:
        """Return a token of the model's own, drawn from its row. [1, n_vocab]"""
        return row.draw(self.sampler, self.rng)
