"""Measures what the decoding loop takes beside its two models: next to nothing beside a large model, most of the time of a tiny one."""

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

#: The most blocks that are timed, the seconds after which none is begun, and the tokens drafted in each.
MAX_BLOCKS, MAX_S, DRAFT = 12, 0.3, 4


def loop_cost(drafter: Session | None, expert: Session) -> tuple[float, float]:
    """Return the seconds that the loop takes beside the models: for each block, and for each drafted token with the decisions about it."""
    timed_expert, timed_drafter = _StopwatchSession(expert), _StopwatchSession(drafter or NgramSession(expert.n_vocab, expert.n_ctx))
    block_s = _block_s(timed_drafter, timed_expert, 0)
    drafting_s = _block_s(timed_drafter, timed_expert, DRAFT) if drafter is not None else block_s
    return block_s, max(0.0, drafting_s - block_s) / DRAFT


def _block_s(drafter: _StopwatchSession, expert: _StopwatchSession, block_size: int) -> float:
    """Return the median of the seconds of a block that neither model took."""
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
    seconds: list[float] = []
    end = perf_counter() + MAX_S
    for _ in range(MAX_BLOCKS):
        before, models = perf_counter(), drafter.seconds + expert.seconds
        if next(blocks, None) is None:
            break
        now = perf_counter()
        seconds.append(now - before - (drafter.seconds + expert.seconds - models))
        if now > end and len(seconds) > 2:
            break
    return median(seconds[1:] or seconds)  # the first block reads the prompt


class _AlwaysDraft(AutoLength):
    """Weighs each draft as automatic lengths do, and drafts whatever the outcome."""

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
    """A session that adds up the seconds of its evaluations."""

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
