"""Measures what the decoding loop takes beside its two models: nothing that a large one would notice, most of the time of a tiny one.

Knows nothing of profiles in files.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np

from ..decoding.auto_length import AutoLength
from ..decoding.draft import Session
from ..decoding.fidelity import Recording
from ..decoding.generation import Generation
from ..decoding.history import AcceptanceHistory
from ..decoding.loop import BlockLoop
from ..decoding.ngram import Guess, NgramIndex, NgramSession
from ..decoding.profile import FREE, Profile
from ..decoding.stats import Stats
from ..rules.position_rules import Strict
from ..tokens.rows import Rows
from ..tokens.sampler import Array, Sampler

#: Blocks that are timed, or so many as begin within these seconds, and how many tokens are drafted in each.
BLOCKS, ENOUGH_S, DRAFT = 12, 0.3, 4


def loop_cost(drafter: Session | None, expert: Session) -> tuple[float, float]:
    """What the loop takes beside the models, in seconds: for each block, and for each drafted token with the decisions about it."""
    judge, writer = _StopwatchSession(expert), _StopwatchSession(drafter or NgramSession(expert.n_vocab, expert.n_ctx))
    per_block = _own_s(writer, judge, 0)
    drafting = _own_s(writer, judge, DRAFT) if drafter is not None else per_block
    return per_block, max(0.0, drafting - per_block) / DRAFT


def _own_s(drafter: _StopwatchSession, expert: _StopwatchSession, block_size: int) -> float:
    """Seconds of a block that neither model took, the median."""
    for session in (drafter, expert):
        session.roll_back(0)
    generation = Generation([0], Sampler(0), np.random.default_rng(0), lambda _: False)
    room = expert.n_ctx - len(generation.tokens)
    if room < 1:
        return 0.0
    blocks = BlockLoop(
        generation, drafter, expert, rule=Strict(), block_size=min(block_size, room // 2), max_tokens=room, stops=lambda _: False,
        stats=Stats(), recording=Recording(), lengths=_AlwaysDraft(Profile(FREE, FREE, 1.0, {}), AcceptanceHistory()), index=NgramIndex(),
    ).decode()  # fmt: skip
    own: list[float] = []
    until = perf_counter() + ENOUGH_S
    for _ in range(BLOCKS):
        before, inside = perf_counter(), drafter.seconds + expert.seconds
        if next(blocks, None) is None:
            break
        now = perf_counter()
        own.append(now - before - (drafter.seconds + expert.seconds - inside))
        if now > until and len(own) > 2:
            break
    return median(own[1:] or own)  # the first block reads the prompt


class _AlwaysDraft(AutoLength):
    """Weighs everything as always, and drafts on whatever comes of it."""

    def wants_row(self, guess: Guess) -> bool:
        super().wants_row(guess)
        return True

    def wants_token(self, row: Rows) -> bool:
        super().wants_token(row)
        return True

    def count_reviewed(self, guess: Guess) -> int:
        super().count_reviewed(guess)
        return 0

    def count_guesses(self, guess: Guess) -> int:
        super().count_guesses(guess)
        return 0

    def count_ahead(self, submitted: int) -> int:
        return 0


class _StopwatchSession:
    """A session that counts its seconds."""

    def __init__(self, session: Session) -> None:
        self._session, self.seconds = session, 0.0
        self.n_vocab, self.n_ctx = session.n_vocab, session.n_ctx

    @property
    def tokens(self) -> list[int]:
        return self._session.tokens

    def extend(self, tokens: list[int], keep: int) -> Array:
        started = perf_counter()
        try:
            return self._session.extend(tokens, keep)
        finally:
            self.seconds += perf_counter() - started

    def roll_back(self, length: int) -> None:
        self._session.roll_back(length)
