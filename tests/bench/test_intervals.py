from __future__ import annotations

import math

import numpy as np
import pytest

from speccascade_local.bench.intervals import differences, estimated, ratios, surely, too_few


@pytest.mark.parametrize("n", [20, 40, 100])
@pytest.mark.parametrize("kind", ["normal", "skewed", "right or wrong"])
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_2000_trials(n, kind):
    rng = np.random.default_rng(7)
    draw, truth = {
        "normal": (lambda: rng.normal(0.3, 1.0, n), 0.3),
        "skewed": (lambda: rng.lognormal(0.0, 0.4, n), math.exp(0.08)),  # as ratios of times are
        "right or wrong": (lambda: rng.choice([-1.0, 0.0, 1.0], n, p=[0.2, 0.55, 0.25]), 0.05),
    }[kind]
    found = [estimated(draw(), draws=1000) for _ in range(2000)]
    assert 0.93 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.97


def test_a_planted_difference_is_found_and_none_is_not_made_up():
    rng = np.random.default_rng(3)
    slow = rng.lognormal(0.0, 0.5, 60)
    noise = rng.lognormal(0.0, 0.1, (2, 60))
    faster = estimated(ratios(slow * noise[0], slow / 1.3 * noise[1]))
    assert surely(faster, 1.0, "faster", "slower") == "faster"
    assert faster.value == pytest.approx(1.3, rel=0.1)
    assert surely(estimated(ratios(slow / 1.3 * noise[1], slow * noise[0])), 1.0, "faster", "slower") == "slower"
    same = estimated(differences(slow * noise[0], slow * noise[1]))
    assert surely(same, 0.0, "more", "less") is None


def test_a_claim_needs_the_whole_interval_on_one_side():
    for low, high, expected in ((1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.99, 1.2, None), (0.8, 1.0, None)):
        estimate = type(estimated([1.0, 2.0]))(1.0, low, high, 1.0, 30)
        assert surely(estimate, 1.0, "faster", "slower") == expected


def test_what_prompts_share_does_not_widen_a_paired_interval():
    rng = np.random.default_rng(5)
    shared = rng.lognormal(0, 2, 50)
    paired = estimated(ratios(shared * rng.lognormal(0, 0.01, 50), shared))
    assert paired.high - paired.low < 0.02


def test_one_prompt_says_nothing_about_others_and_few_are_warned_of():
    alone = estimated([1.5])
    assert (alone.value, alone.low, alone.high, alone.n) == (1.5, -math.inf, math.inf, 1)
    assert "only 1 questions" in too_few(alone)
    assert too_few(estimated([1.0] * 20)) is None
    assert estimated([1.0] * 20).low == 1.0


def test_the_same_values_have_the_same_interval():
    values = np.random.default_rng(1).normal(size=30)
    assert estimated(values) == estimated(list(values))
    assert estimated(values).median == pytest.approx(np.median(values))


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])
