"""One text in the making: what both models continue, and how its next tokens are drawn.

Knows nothing of models, drafts or rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..tokens.rows import Rows
from ..tokens.sampler import Array, Sampler
from ..tokens.shaping import UNSHAPED, Shaper


@dataclass(eq=False)
class Generation:
    """A prompt and the reply to it so far.

    tokens: both together; grows in place. reply: the end of ``tokens`` that was generated. is_end: whether an id ends a text.
    """

    tokens: list[int]
    sampler: Sampler
    rng: np.random.Generator
    is_end: Callable[[int], bool]
    shaper: Shaper = UNSHAPED
    reply: list[int] = field(default_factory=list)

    def grow(self, tokens: Sequence[int]) -> None:
        """These have been emitted."""
        self.tokens += tokens
        self.reply += tokens

    def with_drafts(self, drafted: Sequence[int]) -> Generation:
        """As it would be after these; the text itself stays as it is, the random numbers are the same ones."""
        return replace(self, tokens=[*self.tokens, *drafted], reply=[*self.reply, *drafted])

    def rows(self, logits: Array, drafted: Sequence[int] = (), read: Sequence[int] = ()) -> Rows:
        """A model's rows after the text, ``drafted`` and 0, 1, 2, ... tokens of ``read``, as they are sampled from. [k, n_vocab]"""
        return self.shaper.rows(logits, [*self.reply, *drafted], read)

    def count_allowed(self, drafted: Sequence[int], guessed: Sequence[int]) -> list[int]:
        """The guesses that may follow the text and ``drafted``, up to the first that the grammar forbids or that ends the text."""
        end = next((at for at, token in enumerate(guessed, start=1) if self.is_end(token)), len(guessed))
        return list(guessed[: self.shaper.count_allowed([*self.reply, *drafted], guessed[:end])])

    def scored(self, submitted: list[int]) -> list[int]:
        """What of a draft a model has to read so that it is judged: all but an end of text, behind which nothing stands."""
        return submitted[:-1] if submitted and self.is_end(submitted[-1]) else submitted

    def draw(self, row: Rows) -> int:
        """A token of the model's own, from its row. [1, n_vocab]"""
        return row.draw(self.sampler, self.rng)
