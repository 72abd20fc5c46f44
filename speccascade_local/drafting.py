"""Where drafts come from: the small model writes a block, token by token.

Every drafted token is drawn from the drafter's own sampling distribution, and its raw row travels with it, because the
rejection test needs the whole distribution and not only the token. Knows nothing of the expert or of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from .evidence import Rows
from .ngram import NOTHING, Guess, NgramIndex
from .pacing import LONGEST, LONGEST_BLOCK, Fixed, Pace
from .rules import Strict
from .sampling import Array, Sampler
from .shaping import Shaper
from .verify import Draft, drawn, verify


class Session(Protocol):
    """One mutable timeline over a model: what the decoding loop needs, and all that it needs.

    :class:`speccascade_local.session.LlamaSession` is the real one; a toy of ten lines will do in a test.
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
        """Append ``tokens`` and return the logits after each of the last ``keep`` of them, [keep, n_vocab] float32.

        The rows may be a view that is valid until the next call only.
        """

    def rewind(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""


#: Rows that the drafter has read already, each with the token that was drawn from it.
ReadAhead = list[tuple[Rows, int]]


@dataclass(frozen=True, eq=False)
class Helpers:
    """Cheaper drafters behind the drafter, which reviews what they propose: vertical cascades (Chen et al. 2312.11462).

    Whatever they propose, what the drafter submits is distributed as its own rows say, because it settles their proposals by the strict
    test. index: copies from the text. small: a third, smaller model; small_pace says how long its drafts are.
    """

    index: NgramIndex | None = None
    small: Session | None = None
    small_pace: Pace = field(default_factory=lambda: Fixed(4))

    def guess(self, length: int, drafted: Sequence[int] = ()) -> Guess:
        """How the text and ``drafted`` would be copied on."""
        return self.index.guess(length, drafted) if self.index is not None else NOTHING


def propose(
    drafter: Session,
    tokens: list[int],
    length: int,
    sampler: Sampler,
    rng: np.random.Generator,
    is_end: Callable[[int], bool],
    *,
    shaper: Shaper,
    reply: list[int],
    look_ahead: bool = False,
    pace: Pace | None = None,
    ahead: ReadAhead | None = None,
    helpers: Helpers = Helpers(),  # a frozen value
    waiting: int = 1,
) -> Draft:
    """Draft up to ``length`` tokens that continue ``tokens``, of which ``reply`` is the end that was generated.

    The drafter first reads, in one batch, whatever it has not seen of ``tokens``, so no token is ever read twice. A draft ends early
    after an end-of-text token, where what followed could never be used, and where ``pace`` says so. look_ahead: let the drafter read its
    last token too, for the row that follows it. ahead: what the drafter has written already behind ``tokens``.
    waiting: how many tokens the draft's judge has not read yet.
    """
    pace = pace or Fixed(length)
    pace.begin(length, len(tokens) - len(drafter.tokens), waiting, len(tokens))
    reading = _Reading(drafter, tokens, reply, sampler, rng, is_end, shaper, pace, helpers, ahead or [])
    drafted: list[int] = []
    rows: list[Rows] = []
    ended = False
    while not ended and len(drafted) < length and pace.another(helpers.guess(LONGEST_BLOCK, drafted)):
        rows.append(reading.next(drafted, most=length - len(drafted)))
        if not pace.worth(rows[-1]):
            break
        drafted.append(reading.draw(rows[-1]))
        ended = is_end(drafted[-1])
    if look_ahead and not ended and len(rows) == len(drafted):
        rows.append(reading.next(drafted, most=1))
    for session in (drafter, helpers.small):  # a proposal may have reached further than the draft
        if session is not None:
            session.rewind(min(len(session.tokens), len(tokens) + max(len(rows) - 1, 0)))
    logits = np.concatenate([row.logits for row in rows]) if rows else np.empty((0, drafter.n_vocab), np.float32)
    return Draft(drafted, Rows.joined(rows, logits), calls=reading.calls)


class _Reading:
    """The drafter's rows one after the other, each from the drafter itself or from a batch in which it reviewed a proposal."""

    def __init__(
        self,
        drafter: Session,
        tokens: list[int],
        reply: list[int],
        sampler: Sampler,
        rng: np.random.Generator,
        is_end: Callable[[int], bool],
        shaper: Shaper,
        pace: Pace,
        helpers: Helpers,
        ahead: ReadAhead,
    ) -> None:
        self._drafter, self._tokens, self._reply, self._sampler, self._rng = drafter, tokens, reply, sampler, rng
        self._is_end, self._shaper, self._pace, self._helpers = is_end, shaper, pace, helpers
        self._ready = ahead
        self._drawn: int | None = None
        self.calls = 0  # batches of the drafter

    def next(self, drafted: list[int], most: int) -> Rows:
        """The row that follows the text and ``drafted``. [1, n_vocab]"""
        if not self._ready:
            self.calls += 1
            proposal = self._proposal(drafted, most - 1)
            if not proposal.submitted:
                self._drawn = None
                return self._shaper.rows(self._drafter.extend(self._unread(drafted), keep=1).copy(), [*self._reply, *drafted], [])
            self._review(drafted, proposal)
        row, self._drawn = self._ready.pop(0)
        return row

    def draw(self, row: Rows) -> int:
        """A token from the row that ``next`` gave."""
        return drawn(row, self._sampler, self._rng) if self._drawn is None else self._drawn

    def _unread(self, drafted: list[int]) -> list[int]:
        held, text = len(self._drafter.tokens), len(self._tokens)
        return [*self._tokens[held:], *drafted[max(held - text, 0) :]]

    def _proposal(self, drafted: list[int], most: int) -> Draft:
        """What a helper thinks that the drafter will say next."""
        small, nothing = self._helpers.small, Draft([], Rows.of(np.empty((0, self._drafter.n_vocab), np.float32)))
        if most < 1:
            return nothing
        guess = self._helpers.guess(LONGEST, drafted)
        guessed = guess.token_ids[: min(self._pace.review(guess), most)]
        guessed = guessed[: self._shaper.admitted([*self._reply, *drafted], guessed)]
        if guessed or small is None:
            self._guess = Guess(guessed, guess.match)
            return replace(nothing, guesses=guessed)
        text = [*self._tokens, *drafted]
        pace, reply = self._helpers.small_pace, [*self._reply, *drafted]
        waiting = len(self._unread(drafted))
        return propose(
            small, text, most, self._sampler, self._rng, self._is_end, shaper=self._shaper, reply=reply, pace=pace, waiting=waiting
        )

    def _review(self, drafted: list[int], proposal: Draft) -> None:
        base, read = len(self._tokens) + len(drafted), proposal.submitted
        rows = self._drafter.extend(self._unread(drafted) + read, keep=len(read) + 1).copy()
        own = self._shaper.rows(rows, [*self._reply, *drafted], read)
        verdict = verify(proposal, own, Strict(), self._sampler, self._rng)
        kept = sum(origin == "matched" for origin in verdict.origins)
        if proposal.guesses:
            self._pace.reviewed(self._guess, kept)
        else:
            self._helpers.small_pace.learn(len(verdict.deferred), kept, 0, 0, len(verdict.token_ids))
        for session in (self._drafter, self._helpers.small):
            if session is not None:
                session.rewind(min(len(session.tokens), base + kept))
        self._ready = [(own.row(j), token) for j, token in enumerate(verdict.token_ids)]
