"""The profile as a value: padding, lines between what was measured and beyond, and its written form."""

from __future__ import annotations

import copy
import json
import math
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


profiles = st.builds(
    Profile, speeds(), speeds(), st.floats(0, 1), st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.integers(-1, 2**40)),
    block_s=st.floats(0, 1), draft_s=st.floats(0, 1),
)  # fmt: skip


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


@given(profiles)
def test_what_was_written_is_read(profile):
    assert Profile.from_dict(json.loads(json.dumps(profile.as_dict()))) == profile


GOOD = Profile(
    Speed(2, 2, (32, 512), (STAIRCASE,) * 2, 0.25), Speed(1, 1, (32,), (STAIRCASE,), 0.25), 0.5, {"cpu": "x", "format": 1}
).as_dict()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("expert",), None),
        (("expert", "threads"), 0),
        (("expert", "threads"), True),
        (("expert", "threads"), 10**9),
        (("expert", "batch_threads"), 2.5),
        (("expert", "depths"), [512, 32]),
        (("expert", "depths"), [32]),
        (("expert", "depths"), 32),
        (("drafter", "depths"), []),
        (("drafter", "depths"), [-1]),
        (("drafter", "seconds"), [[1.0] * 16]),
        (("drafter", "seconds"), [1.0]),
        (("drafter", "seconds"), [[1.0] * 16 + [0.0]]),
        (("drafter", "seconds"), [[1.0] * 16 + [math.nan]]),
        (("drafter", "seconds"), [[1.0] * 16 + [math.inf]]),
        (("drafter", "seconds"), [[1.0] * 16 + ["1"]]),
        (("drafter", "seconds"), [[1.0] * 16 + [10**400]]),
        (("drafter", "prompt_s"), 0.0),
        (("drafter", "prompt_s"), None),
        (("drafter", "more"), 1),
        (("overlap",), 1.5),
        (("overlap",), "0"),
        (("block_s",), -1.0),
        (("draft_s",), math.nan),
        (("key",), []),
        (("key",), {"cpu": 1.5}),
        (("key",), {"cpu": True}),
        (("more",), 1),
    ],
)
def test_anything_else_is_refused(path, value):
    data = copy.deepcopy(GOOD)
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=r"must"):
        Profile.from_dict(data)


@pytest.mark.parametrize("data", [None, 1, "text", [], {}, {"expert": {}}])
def test_what_is_no_profile_at_all_is_refused(data):
    with pytest.raises(ValueError, match="must have exactly the entries"):
        Profile.from_dict(data)
