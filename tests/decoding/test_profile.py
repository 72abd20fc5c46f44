"""The profile as a value: padding, lines between what was measured and beyond, and the numbers it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.decoding.profile import SIZES, WORTH_PADDING, Profile, Speed

# One token, two, ...: a 1 B Q8_0 model on a CPU, relative to one token.
STAIRCASE = (1.0, 2.5, 2.9, 3.2, 4.2, 4.5, 4.9, 3.5, 4.4, 4.6, 5.0, 4.4, 4.7, 4.9, 5.2, 5.3, 6.0)
rows = st.tuples(*[st.floats(1e-5, 1e3)] * len(SIZES))


@st.composite
def speeds(draw: st.DrawFn) -> Speed:
    depths = sorted(draw(st.sets(st.integers(0, 2000), min_size=1, max_size=2)))
    return Speed(
        draw(st.integers(1, 64)), draw(st.integers(1, 64)), tuple(depths), tuple(draw(rows) for _ in depths), draw(st.floats(1e-5, 1e3))
    )


def test_a_staircase_with_dips_is_padded_to_the_dips():
    speed = Speed(2, 2, (32,), (STAIRCASE,), 0.25)
    assert speed.padding == {5: 8, 6: 8, 7: 8, 10: 12, 11: 12}  # 9 is cheaper at 12, but not clearly
    assert [speed.batch_s(n) for n in (1, 4, 5, 8, 9, 17)] == [1, 3.2, 3.5, 3.5, 4.4, 6.0]
    assert speed.batch_s(25) == 6.0 + 8 * 0.25


@given(speeds())
def test_a_padded_batch_is_never_smaller_and_clearly_cheaper_or_the_same(speed):
    for n in SIZES:
        m = speed.padded(n)
        before, after = (sum(row[size - 1] for row in speed.seconds) for size in (n, m))
        assert n <= m <= SIZES[-1]
        assert m == n or after <= (1 - WORTH_PADDING) * before * (1 + 1e-9)
    assert speed.padded(SIZES.stop) == SIZES.stop


@given(speeds(), st.integers(0, 3000))
def test_more_tokens_never_take_less_time(speed, depth):
    times = [speed.batch_s(n, depth) for n in range(1, 40)]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(times))
    assert all(time > 0 and math.isfinite(time) for time in times)


@given(speeds(), st.integers(1, 17))
def test_at_a_measured_depth_it_is_the_cheapest_batch_that_is_large_enough(speed, n):
    for depth, row in zip(speed.depths, speed.seconds):
        assert speed.batch_s(n, depth) == pytest.approx(min(row[n - 1 :]))
    assert speed.batch_s(n, 0) == pytest.approx(min(speed.seconds[0][n - 1 :]))
    assert speed.batch_s(n, 10**6) == pytest.approx(min(speed.seconds[-1][n - 1 :]))


def test_between_two_depths_it_is_a_straight_line():
    speed = Speed(1, 1, (100, 300), (STAIRCASE, tuple(2 * value for value in STAIRCASE)), 0.25)
    assert [speed.batch_s(1, depth) for depth in (0, 100, 150, 200, 300, 999)] == [1, 1, 1.25, 1.5, 2, 2]


def test_no_batch_is_smaller_than_one():
    with pytest.raises(ValueError, match="a batch of 0 tokens"):
        Speed(1, 1, (0,), (STAIRCASE,), 0.25).batch_s(0)


GOOD = Speed(2, 2, (32, 512), (STAIRCASE,) * 2, 0.25)


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 0},
        {"threads": 10**9},
        {"batch_threads": 0},
        {"depths": (512, 32)},
        {"depths": (32,)},
        {"depths": (-1, 32)},
        {"depths": (), "seconds": ()},
        {"seconds": (STAIRCASE[:-1],) * 2},
        {"seconds": ((*STAIRCASE[:-1], 0.0),) * 2},
        {"seconds": ((*STAIRCASE[:-1], math.nan),) * 2},
        {"seconds": ((*STAIRCASE[:-1], math.inf),) * 2},
        {"prompt_s": 0.0},
    ],
    ids=str,
)
def test_a_speed_with_impossible_numbers_is_refused(changes):
    with pytest.raises(ValueError, match="must"):
        replace(GOOD, **changes)


@pytest.mark.parametrize("changes", [{"overlap": 1.5}, {"overlap": math.nan}, {"block_s": -1.0}, {"draft_s": math.nan}], ids=str)
def test_a_profile_with_impossible_numbers_is_refused(changes):
    with pytest.raises(ValueError, match="must"):
        replace(Profile(GOOD, GOOD, 0.5, {}), **changes)
