"""Who decides how long drafts are, and the simplest who does: always the same length.

Knows nothing of costs and chances; the controller that weighs them is decoding/auto_length.py.
"""

from __future__ import annotations

from typing import Protocol

from ..tokens.rows import Rows
from .ngram import Guess

#: The longest draft of an automatic block: batches beyond 17 tokens are no cheaper per token on any machine measured so far.
LONGEST = 16
#: The longest block with guesses behind its draft: they cost nothing but their place in the batch, and a copy may go on for long.
LONGEST_BLOCK = 48


class LengthPolicy(Protocol):
    """Who decides how long the drafts are. One object per reply; the methods are called in this order, block after block.

    A subclass that says nothing of guesses, threads and experience has none.
    """

    def beside(self, expert: int, drafter: int) -> bool:
        """Whether the expert shall read so many tokens of the text in a thread while the drafter reads so many and drafts."""
        return False

    def begin(self, room: int, depth: int, *, first: bool, bonus: bool = True) -> None:
        """A block begins. room: the most tokens to draft. depth: length of the text. first: nothing was emitted yet, so the judge reads the
        prompt together with the draft. (What the caches hold of it already is not told: it must not change an answer.) bonus: whether the
        judge adds a token of its own to a draft that is kept whole. Without it the block's first ``another`` and ``worth`` are True, unless
        no draft can make the text another than the judge's.
        """

    def another(self, guess: Guess) -> bool:
        """Whether the drafter shall compute its next row. guess: how the text would be copied on from here."""

    def review(self, guess: Guess) -> int:
        """How many guessed tokens the drafter shall read together with what it reads anyway, to draft several tokens at once."""
        return 0

    def learn_review(self, guess: Guess, kept: int) -> None:
        """``kept`` of the reviewed tokens were what the drafter would have drawn.

        This may be told before those tokens are submitted: ``another`` and ``worth`` must not heed it, or they would look ahead.
        """
        return

    def worth(self, row: Rows) -> bool:
        """Whether a token drawn from this row shall be submitted."""
        return True

    def tail(self, guess: Guess) -> int:
        """How many guessed tokens shall follow the draft. Ends the draft."""
        return 0

    def ahead(self, submitted: int) -> int:
        """How many tokens the drafter shall write on, in a thread, while the expert reads so many."""
        return 0

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        """What became of the block: so many drafted tokens tested and kept, guesses tested and right, tokens emitted."""
        return


class FixedLength(LengthPolicy):
    """Always the same length, and the drafter alone."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._left = 0

    def begin(self, room: int, depth: int, *, first: bool, bonus: bool = True) -> None:
        self._left = min(room, self.length)

    def another(self, guess: Guess) -> bool:
        self._left -= 1
        return self._left >= 0
