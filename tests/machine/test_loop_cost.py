"""What the loop itself takes: only what the models did not, whatever they took."""

from __future__ import annotations

import pytest
from toys import ToySession, random_rows, sometimes_accepts

from speccascade_local.machine import loop_cost as module
from speccascade_local.machine.loop_cost import DRAFT, loop_cost


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves a little at each look, and as models and loop say."""
    now = [0.0]

    def look() -> float:
        now[0] += 1e-9
        return now[0]

    monkeypatch.setattr(module, "perf_counter", look)
    return now


def slow(seed, clock):
    session = ToySession(random_rows(7, seed), 7, 64)
    real = session.extend

    def extend(tokens, keep):
        clock[0] += 5.0
        return real(tokens, keep)

    session.extend = extend
    return session


def test_the_models_time_does_not_count_and_all_other_does(clock, monkeypatch):
    assert max(loop_cost(slow(1, clock), slow(2, clock))) < 1e-6
    real = module.AutoLength.wants_row

    def wants_row(self, guess):
        clock[0] += 0.25
        return real(self, guess)

    monkeypatch.setattr(module.AutoLength, "wants_row", wants_row)
    block_s, draft_s = loop_cost(slow(1, clock), slow(2, clock))
    assert block_s < 1e-6, "without drafts there is nothing to decide"
    assert draft_s == pytest.approx(0.25, rel=0.3), "asked once for each token"


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 4, 8, 64])
def test_it_stays_within_the_context(n_ctx):
    drafter, expert = sometimes_accepts(n_ctx=n_ctx)
    block_s, draft_s = loop_cost(drafter, expert)
    assert block_s >= 0
    assert draft_s >= 0
    assert max([*drafter.calls, *expert.calls], default=0) <= DRAFT + 2


def test_without_a_drafter_drafts_are_free():
    _, expert = sometimes_accepts()
    block_s, draft_s = loop_cost(None, expert)
    assert block_s > 0
    assert draft_s == 0
