"""What decides the length of drafts, and the simplest policy: always the same length. auto_length.py weighs costs and chances."""

from __future__ import annotations

from typing import Protocol

from ..tokens.rows import Rows
from .ngram import Guess

#: The longest draft of an automatic block: batches beyond 17 tokens are no cheaper per token on any machine measured so far.
LONGEST = 16
#: The longest block with guesses after its draft: a guess costs only its place in the batch, and a copy may be long.
LONGEST_BLOCK = 48


class LengthPolicy(Protocol):
    """Decides how long the drafts of one reply are. The methods are called in this order, block after block.

    By default a policy uses no guesses, no threads, and learns nothing.
    """

    def reads_beside(self, expert: int, drafter: int) -> bool:
        """Return whether the expert reads ``expert`` tokens of the text in a thread while the drafter reads ``drafter`` and drafts."""
        return False

    def begin(self, room: int, depth: int, *, first: bool, bonus: bool = True) -> None:
        """Begin a block.

        Args:
            room: the most tokens to draft.
            depth: length of the text.
            first: whether nothing was emitted yet, so that the expert reads the prompt together with the draft. (How much of it the
                caches hold is left out on purpose: it must not change an answer.)
            bonus: whether the expert adds a token of its own to a draft that is kept whole. Without it the block's first ``wants_row``
                and ``wants_token`` are True, unless no draft can change the text.
        """

    def wants_row(self, guess: Guess) -> bool:
        """Return whether the drafter computes its next row. ``guess``: how the index would continue the text here."""

    def count_reviewed(self, guess: Guess) -> int:
        """Return how many guessed tokens the drafter reads together with its next row, to draft several tokens at once."""
        return 0

    def learn_review(self, guess: Guess, kept: int) -> None:
        """Learn that the drafter would have drawn the first ``kept`` of the reviewed tokens.

        This may happen before those tokens are submitted, so ``wants_row`` and ``wants_token`` must not use it: they would look ahead.
        """
        return

    def wants_token(self, row: Rows) -> bool:
        """Return whether a token drawn from this row is submitted."""
        return True

    def count_guesses(self, guess: Guess) -> int:
        """Return how many guessed tokens follow the draft. Ends the draft."""
        return 0

    def count_ahead(self, submitted: int) -> int:
        """Return how many tokens the drafter writes on, in a thread, while the expert reads ``submitted``."""
        return 0

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        """Learn what became of the block: drafted tokens tested and kept, guesses tested and right, tokens emitted."""
        return


class FixedLength(LengthPolicy):
    """The same length for every draft, and the drafter alone."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._left = 0

    def begin(self, room: int, depth: int, *, first: bool, bonus: bool = True) -> None:
        self._left = min(room, self.length)

    def wants_row(self, guess: Guess) -> bool:
        self._left -= 1
        return self._left >= 0
