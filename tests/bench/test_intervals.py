from __future__ import annotations

import math

import intervals
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.bench.intervals import Estimate, quality_change, significant, speed_ratio, too_few

SECONDS = st.floats(1e-3, 1e3)
GRADES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


def pairs_of(values, fewest=1):
    return st.lists(st.tuples(values, values), min_size=fewest, max_size=40).map(lambda pairs: tuple(zip(*pairs)))


# --------------------------------------------------------------------------- speed


@given(pairs_of(SECONDS, fewest=2))
def test_exchanging_the_sides_gives_the_reciprocal_speed(pairs):
    there, back = speed_ratio(*pairs, draws=200), speed_ratio(*reversed(pairs), draws=200)
    assert (back.value, back.low, back.high, back.median) == pytest.approx(
        (1 / there.value, 1 / there.high, 1 / there.low, 1 / there.median)
    )
    assert there.low <= there.value <= there.high


def test_a_planted_speed_up_is_found_both_ways():
    rng = np.random.default_rng(3)
    slow, noise = rng.lognormal(0.0, 0.5, 60), rng.lognormal(0.0, 0.1, (2, 60))
    faster = speed_ratio(slow * noise[0], slow / 1.3 * noise[1])
    assert significant(faster, 1.0, "faster", "slower") == "faster"
    assert faster.value == pytest.approx(1.3, rel=0.1)
    assert significant(speed_ratio(slow / 1.3 * noise[1], slow * noise[0]), 1.0, "faster", "slower") == "slower"


@pytest.mark.slow
@pytest.mark.parametrize("kind", intervals.SECONDS)
@pytest.mark.parametrize("n", intervals.SPEED_SIZES)
def test_equal_arms_are_called_faster_or_slower_in_at_most_6_percent_of_trials(kind, n):
    for cv in (min(intervals.SPREADS), max(intervals.SPREADS)):
        assert intervals.false_verdicts(kind, cv, n, trials=4000, draws=1000) <= 0.06, cv


@pytest.mark.slow
def test_two_seeds_of_one_arm_are_not_called_different_and_either_way_is_the_reciprocal_of_the_other(demo):
    one, other = intervals.real_seconds(demo, intervals.facts()[:40], (0, 1))
    there, back = speed_ratio(one, other), speed_ratio(other, one)
    assert significant(there, 1.0, "faster", "slower") is None
    assert (back.value, back.low, back.high) == pytest.approx((1 / there.value, 1 / there.high, 1 / there.low))
    assert min(np.mean(np.divide(one, other)), np.mean(np.divide(other, one))) > 1, "by means of ratios each would be the faster one"


def test_equal_arms_have_no_mean_speed_up():
    rng, draw = np.random.default_rng(1), intervals.SECONDS["lognormal"]
    pairs = [(draw(rng, 0.5, 40), draw(rng, 0.5, 40)) for _ in range(1000)]
    assert np.mean([speed_ratio(*pair, draws=10).value for pair in pairs]) == pytest.approx(1, abs=0.01)
    assert np.mean([one / other for one, other in pairs]) == pytest.approx(1.25, abs=0.01), "by a mean of ratios"


def test_what_prompts_share_does_not_widen_a_paired_interval():
    rng = np.random.default_rng(5)
    shared = rng.lognormal(0, 2, 50)
    paired = speed_ratio(shared * rng.lognormal(0, 0.01, 50), shared)
    assert paired.high - paired.low < 0.02


def test_one_pair_of_seconds_says_nothing_about_others_and_few_are_warned_of():
    alone = speed_ratio([1.5], [1.0])
    assert (alone.value, alone.low, alone.high, alone.n) == (pytest.approx(1.5), 0, math.inf, 1)
    assert "only 1 questions" in too_few(alone)
    assert too_few(speed_ratio([1.0] * 20, [1.0] * 20)) is None


def test_what_stands_beside_itself_is_exact_and_shown_without_an_interval():
    itself = speed_ratio([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert itself.exact
    assert str(itself) == "1.00"


# --------------------------------------------------------------------------- quality


@pytest.mark.slow
@pytest.mark.parametrize("n", intervals.QUALITY_SIZES)
@pytest.mark.parametrize("discordance", intervals.DISCORDANCE)
def test_intervals_of_right_and_wrong_hold_the_truth_in_93_percent_where_nearly_all_answers_tie(discordance, n):
    for losses in intervals.LOSSES:
        assert intervals.right_or_wrong(discordance, losses, n)[0] >= 0.93, losses


@pytest.mark.slow
@pytest.mark.parametrize("n", intervals.QUALITY_SIZES)
@pytest.mark.parametrize("kind", intervals.GRADES)
def test_intervals_of_grades_hold_the_truth_in_93_percent(kind, n):
    assert intervals.graded(kind, n, trials=400, draws=1000)[0] >= 0.93


@given(pairs_of(GRADES))
def test_a_quality_change_has_a_width_and_exchanging_the_sides_changes_its_sign(pairs):
    there, back = quality_change(*pairs, draws=200), quality_change(*reversed(pairs), draws=200)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert there.high - there.low > 0.05


def test_ties_leave_room_for_what_so_few_of_them_cannot_exclude():
    for n, most in ((1, 0.8), (20, 0.162), (474, 0.0081)):
        for value in (0.0, 0.5, 1.0):
            found = quality_change([value] * n, [value] * n)
            assert found.value == 0
            assert most / 2 < found.high < 1.25 * most
            assert found.low == pytest.approx(-found.high)
    assert not quality_change([1.0] * 20, [1.0] * 20).exact


def test_score_intervals_are_those_of_the_published_formula():
    """Where all discordant pairs are losses and n is 1 the equation is a quadratic; here its solution at no discordance, z² / (n + z²)."""
    z = 1.959963984540054
    for n in (5, 20, 100):
        assert quality_change([1] * n, [1] * n).high == pytest.approx(z**2 / (n + z**2))
    found = quality_change([1] * 12 + [0] * 2 + [1] * 36, [0] * 12 + [1] * 2 + [1] * 36)
    for edge in (found.low, found.high):
        linear, constant = (100 - 12 + 2) * edge - 14, -2 * edge * (1 - edge)
        lost = (math.sqrt(linear**2 - 400 * constant) - linear) / 200
        assert abs(10 - 50 * edge) / math.sqrt(50 * (2 * lost + edge * (1 - edge))) == pytest.approx(z)


def test_a_graded_interval_of_right_and_wrong_would_be_clopper_and_pearsons():
    """The half point of one answer makes the grades graded; it is next to nothing among 200."""
    from scipy.stats import beta

    found = quality_change([0.0] * 10 + [0.999] + [1.0] * 189, [1.0] * 200)
    assert found.low == pytest.approx(-beta.ppf(0.975, 11, 190), abs=0.003)


# --------------------------------------------------------------------------- both


def test_a_claim_needs_the_whole_interval_on_one_side():
    for low, high, expected in ((1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.99, 1.2, None), (0.8, 1.0, None)):
        assert significant(Estimate(1.0, low, high, 1.0, 30), 1.0, "faster", "slower") == expected


def test_the_same_values_have_the_same_interval():
    values = np.random.default_rng(1).uniform(size=(2, 30))
    assert quality_change(*values) == quality_change(*map(list, values))
    assert speed_ratio(*values) == speed_ratio(*map(list, values))


@pytest.mark.parametrize("compare", [speed_ratio, quality_change])
def test_pairs_must_be_pairs(compare):
    with pytest.raises(ValueError, match="zip"):
        compare([1.0], [1.0, 2.0])
