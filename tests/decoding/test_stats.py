from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.decoding.stats import Stats

seconds = st.floats(0, 1e3)


@given(st.lists(st.tuples(seconds, seconds, seconds, seconds, st.integers(1, 9)), min_size=1, max_size=5))
def test_times_add_up_and_what_passes_between_blocks_is_not_counted(blocks):
    """Each block: the pause before it, then drafting, the expert, verifying; and the tokens it emits."""
    stats, now = Stats(), 5.0
    for pause, drafting, expert, verifying, tokens in blocks:
        times = [now + pause, now + pause + drafting, now + pause + drafting + expert, now + pause + drafting + expert + verifying]
        stats.blocks += 1
        stats.tokens += tokens
        stats.clock(*times)
        now = times[-1]
    _, drafting, expert, verifying, tokens = (sum(column) for column in zip(*blocks))
    assert (stats.draft_s, stats.expert_s, stats.verify_s) == pytest.approx((drafting, expert, verifying), abs=1e-6)
    assert stats.wall_s == pytest.approx(drafting + expert + verifying, abs=1e-6)
    assert stats.ttft_s == pytest.approx(sum(blocks[0][1:4]), abs=1e-6)
    if stats.wall_s > 0:
        assert stats.tokens_per_s == pytest.approx(tokens / stats.wall_s)
    if tokens > 1:
        assert stats.tpot_s == pytest.approx((stats.wall_s - stats.ttft_s) / (tokens - 1))
    else:
        assert stats.tpot_s is None


def test_a_rate_of_nothing_is_none_and_not_a_division_by_zero():
    stats = Stats()
    assert [stats.acceptance_rate, stats.deferral_rate, stats.tokens_per_block, stats.tokens_per_s, stats.tpot_s] == [None] * 5


def test_each_rate_is_the_quotient_that_its_name_says():
    stats = Stats(tokens=7, drafted=5, accepted=3, tested=4, deferred=1, expert_calls=2, blocks=3)
    assert (stats.acceptance_rate, stats.deferral_rate, stats.tokens_per_block) == (3 / 5, 1 / 4, 7 / 2)


def test_what_repeats_and_what_differs_from_run_to_run_are_told_apart_and_nothing_is_left_out():
    stats = Stats(*range(1, 1 + len(fields(Stats))))
    counts, clocks = stats.counts(), stats.clocks()
    assert not counts.keys() & clocks.keys()
    assert {field.name for field in fields(Stats)} <= counts.keys() | clocks.keys()
    assert all(name.endswith("_s") or name == "tokens_per_s" for name in clocks)
    for name, value in (counts | clocks).items():
        assert value == getattr(stats, name)
