"""Where drafts come from: the drafter writes a block, token by token.

Every drafted token is drawn from the drafter's own sampling distribution, and its raw row travels with it: the rejection test needs the
whole distribution and not only the token. Guesses from the text (ngram.py) let the drafter read several tokens in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..rules.position_rules import Strict
from ..tokens.rows import Rows
from ..tokens.sampler import Array
from .generation import Generation
from .lengths import LONGEST, LONGEST_BLOCK, FixedLength, LengthPolicy
from .ngram import NOTHING, Guess, NgramIndex
from .verify import Draft, verify


class Session(Protocol):
    """One mutable timeline over a model: all that the decoding loop needs of it.

    :class:`speccascade_local.llama.session.LlamaSession` is the real one; a toy of ten lines is enough for a test.
    """

    @property
    def n_vocab(self) -> int:
        """Width of the rows, and bound of the ids."""

    @property
    def n_ctx(self) -> int:
        """How many tokens the timeline can hold."""

    @property
    def tokens(self) -> list[int]:
        """What the timeline holds, in order. The caller must not change it."""

    def extend(self, tokens: list[int], keep: int) -> Array:
        """Append ``tokens`` and return the logits after each of the last ``keep`` of them (0: none), [keep, n_vocab] float32.

        The rows may be a view that is valid only until the next call.
        """

    def roll_back(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""


#: Rows that the drafter has read already, each with the token that was drawn from it.
ReadAhead = list[tuple[Rows, int]]


def next_row(session: Session, generation: Generation, drafted: Sequence[int] = ()) -> Rows:
    """Let the session read what it has not read of the text and ``drafted``, and return a copy of the row that follows. [1, n_vocab]"""
    return generation.rows(session.extend(_unread(session, generation, drafted), keep=1).copy(), drafted)


def _unread(session: Session, generation: Generation, drafted: Sequence[int]) -> list[int]:
    held, tokens = len(session.tokens), generation.tokens
    return [*tokens[held:], *drafted[max(held - len(tokens), 0) :]]


def propose(
    drafter: Session,
    generation: Generation,
    length: int,
    *,
    bonus: bool = True,
    look_ahead: bool = False,
    lengths: LengthPolicy | None = None,
    written: ReadAhead | None = None,
    index: NgramIndex | None = None,
) -> Draft:
    """Draft up to ``length`` tokens that continue the text.

    The drafter first reads, in one batch, what it has not read of the text, so it reads no token twice. A draft ends early after an
    end-of-text token and where ``lengths`` ends it.

    Args:
        drafter: the session that writes.
        generation: the text.
        length: the most tokens to draft.
        bonus: see :meth:`LengthPolicy.begin`.
        look_ahead: whether the drafter reads its last token too, for the row that follows it.
        lengths: decides where the draft ends; None: after ``length`` tokens.
        written: what the drafter has written ahead, after the text.
        index: guesses for the drafter to review. What it submits follows its own rows all the same: it settles guesses by the strict test
            (a vertical cascade, Chen et al. 2312.11462).
    """
    text, lengths = len(generation.tokens), lengths or FixedLength(length)
    lengths.begin(length, text, first=not generation.reply, bonus=bonus)
    reader = _RowReader(drafter, generation, lengths, written or [])
    drafted: list[int] = []
    rows: list[Rows] = []
    ended = False
    while not ended and len(drafted) < length:
        guess = NOTHING if index is None else index.guess(LONGEST_BLOCK, drafted)
        if not lengths.wants_row(guess):
            break
        rows.append(reader.next(drafted, guess, most=length - len(drafted)))
        if not lengths.wants_token(rows[-1]):
            break
        drafted.append(reader.draw(rows[-1]))
        ended = generation.is_end(drafted[-1])
    if look_ahead and not ended and len(rows) == len(drafted):
        rows.append(reader.next(drafted, NOTHING, most=1))
    drafter.roll_back(min(len(drafter.tokens), text + max(len(rows) - 1, 0)))  # a review may have reached further than the draft
    return Draft(drafted, rows, calls=reader.calls)


class _RowReader:
    """The drafter's rows, one after the other: read alone, or several in a batch in which the drafter reviewed guesses."""

    def __init__(self, drafter: Session, generation: Generation, lengths: LengthPolicy, written: ReadAhead) -> None:
        self._drafter, self._generation, self._lengths = drafter, generation, lengths
        self._ready = written
        self._drawn: int | None = None
        self.calls = 0  # batches of the drafter

    def next(self, drafted: list[int], guess: Guess, most: int) -> Rows:
        """Return the row that follows the text and ``drafted``. [1, n_vocab]"""
        if not self._ready:
            self.calls += 1
            guessed = self._to_review(drafted, guess, most - 1)
            if not guessed:
                self._drawn = None
                return next_row(self._drafter, self._generation, drafted)
            self._review(drafted, guessed, guess.match)
        row, self._drawn = self._ready.pop(0)
        return row

    def draw(self, row: Rows) -> int:
        """Return the token of the row that ``next`` gave."""
        return self._generation.draw(row) if self._drawn is None else self._drawn

    def _to_review(self, drafted: list[int], guess: Guess, most: int) -> list[int]:
        """Return the part of the guess that is worth reviewing."""
        if most < 1:
            return []
        length = min(self._lengths.count_reviewed(Guess(guess.token_ids[:LONGEST], guess.match)), most)
        return self._generation.allowed_guesses(drafted, guess.token_ids[:length])

    def _review(self, drafted: list[int], guessed: list[int], match: int) -> None:
        """Read the guesses in one batch, and keep the rows up to the first that the drafter would not have drawn."""
        generation, read = self._generation, self._generation.to_score(guessed)
        logits = self._drafter.extend(_unread(self._drafter, generation, drafted) + read, keep=len(read) + 1).copy()
        rows = generation.rows(logits, drafted, read)
        verdict = verify(Draft([], guesses=guessed), rows, Strict(), generation.sampler, generation.rng)
        self._lengths.learn_review(Guess(guessed, match), verdict.kept)
        self._drafter.roll_back(min(len(self._drafter.tokens), len(generation.tokens) + len(drafted) + verdict.kept))
        self._ready = [(rows.row(j), token) for j, token in enumerate(verdict.token_ids)]
