"""Where drafts come from: the small model writes a block, token by token.

Every drafted token is drawn from the drafter's own sampling distribution, and its raw row travels with it, because the
rejection test needs the whole distribution and not only the token. Knows nothing of the expert or of rules.
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
    """One mutable timeline over a model: what the decoding loop needs, and all that it needs.

    :class:`speccascade_local.llama.session.LlamaSession` is the real one; a toy of ten lines will do in a test.
    """

    @property
    def n_vocab(self) -> int:
        """Width of the rows, and bound of the ids."""

    @property
    def n_ctx(self) -> int:
        """How many tokens the timeline can hold."""

    @property
    def tokens(self) -> list[int]:
        """What the timeline holds, in order. Not to be changed by the caller."""

    def extend(self, tokens: list[int], keep: int) -> Array:
        """Append ``tokens`` and return the logits after each of the last ``keep`` of them (0: none), [keep, n_vocab] float32.

        The rows may be a view that is valid until the next call only.
        """

    def roll_back(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""


#: Rows that the drafter has read already, each with the token that was drawn from it.
ReadAhead = list[tuple[Rows, int]]


def next_row(session: Session, generation: Generation, drafted: Sequence[int] = ()) -> Rows:
    """The row after the text and ``drafted``, of which the session reads what it had not. Its own copy. [1, n_vocab]"""
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
    pace: LengthPolicy | None = None,
    written: ReadAhead | None = None,
    index: NgramIndex | None = None,
) -> Draft:
    """Draft up to ``length`` tokens that continue the text.

    The drafter first reads, in one batch, whatever it has not seen of it, so no token is ever read twice. A draft ends early
    after an end-of-text token, where what followed could never be used, and where ``pace`` says so. bonus: see ``Pace.begin``.
    look_ahead: let the drafter read its last token too, for the row that follows it. written: what the drafter has written already behind
    the text.
    """
    text, pace = len(generation.tokens), pace or FixedLength(length)
    pace.begin(length, text, first=not generation.reply, bonus=bonus)
    reading = _Reading(drafter, generation, pace, written or [])
    drafted: list[int] = []
    rows: list[Rows] = []
    ended = False
    while not ended and len(drafted) < length:
        guess = NOTHING if index is None else index.guess(LONGEST_BLOCK, drafted)
        if not pace.another(guess):
            break
        rows.append(reading.next(drafted, guess, most=length - len(drafted)))
        if not pace.worth(rows[-1]):
            break
        drafted.append(reading.draw(rows[-1]))
        ended = generation.is_end(drafted[-1])
    if look_ahead and not ended and len(rows) == len(drafted):
        rows.append(reading.next(drafted, NOTHING, most=1))
    drafter.roll_back(min(len(drafter.tokens), text + max(len(rows) - 1, 0)))  # a guess may have reached further than the draft
    return Draft(drafted, rows, calls=reading.calls)


class _Reading:
    """The drafter's rows one after the other, each from the drafter itself or from a batch in which it reviewed a proposal."""

    def __init__(self, drafter: Session, generation: Generation, pace: LengthPolicy, written: ReadAhead) -> None:
        self._drafter, self._generation, self._pace = drafter, generation, pace
        self._ready = written
        self._drawn: int | None = None
        self.calls = 0  # batches of the drafter

    def next(self, drafted: list[int], guess: Guess, most: int) -> Rows:
        """The row that follows the text and ``drafted``. guess: how they would be copied on. [1, n_vocab]"""
        if not self._ready:
            self.calls += 1
            proposal = self._proposal(drafted, guess, most - 1)
            if not proposal.submitted:
                self._drawn = None
                return next_row(self._drafter, self._generation, drafted)
            self._review(drafted, guess, proposal)
        row, self._drawn = self._ready.pop(0)
        return row

    def draw(self, row: Rows) -> int:
        """A token from the row that ``next`` gave."""
        return self._generation.draw(row) if self._drawn is None else self._drawn

    def _proposal(self, drafted: list[int], guess: Guess, most: int) -> Draft:
        """What the drafter may say next: the part of ``guess`` that is worth reviewing."""
        if most < 1:
            return Draft([])
        length = min(self._pace.review(Guess(guess.token_ids[:LONGEST], guess.match)), most)
        guessed = self._generation.count_allowed(drafted, guess.token_ids[:length])
        return Draft([], guesses=guessed)

    def _review(self, drafted: list[int], guess: Guess, proposal: Draft) -> None:
        generation, read = self._generation, self._generation.scored(proposal.submitted)
        rows = self._drafter.extend(_unread(self._drafter, generation, drafted) + read, keep=len(read) + 1).copy()
        own = generation.rows(rows, drafted, read)
        verdict = verify(proposal, own, Strict(), generation.sampler, generation.rng)
        self._pace.learn_review(Guess(proposal.guesses, guess.match), verdict.kept)
        self._drafter.roll_back(min(len(self._drafter.tokens), len(generation.tokens) + len(drafted) + verdict.kept))
        self._ready = [(own.row(j), token) for j, token in enumerate(verdict.token_ids)]
