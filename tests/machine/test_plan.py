"""The forecast of a speed-up: exact where the world is as simple as it assumes, honest where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.common.errors import SettingError
from speccascade_local.decoding.profile import SIZES, Speed
from speccascade_local.machine.plan import ACCEPTANCE_RATES, MeasuredModel, best_length, estimate_errors, estimate_pair, token_seconds
from speccascade_local.machine.profile_cache import read_profile
from speccascade_local.models.gguf_header import Header

EXPERT = Header(Path("e.gguf"), "llama", "Q8_0", 1_000_000_000, 900_000_000, 65_536, 32_000, 8192)
DRAFTER = replace(EXPERT, path=Path("d.gguf"), weights=100_000_000, token_bytes=90_000_000, cache_bytes=8192)


def speed(single: float, slope: float = 0.0) -> Speed:
    """Each token more of a batch costs ``slope`` single tokens."""
    return Speed(1, 1, (0,), (tuple(single * (1 + slope * (n - 1)) for n in SIZES),), single / 4)


def line(weights: int) -> float:
    return 0.001 + weights / 20e9


def test_seconds_lie_on_the_line_through_what_was_measured():
    known = [MeasuredModel(weights, speed(line(weights))) for weights in (50_000_000, 400_000_000, 4_000_000_000)]
    low, high = token_seconds(900_000_000, known)
    assert (low + high) / 2 == pytest.approx(line(900_000_000))
    assert high / low == pytest.approx(1.1 / 0.9), "never surer than a tenth"


def test_the_page_shows_the_estimate_for_the_pair_that_was_measured():
    docs = Path(__file__).parents[2] / "docs"
    measured = json.loads((docs / "results" / "curves_scaled.json").read_text(encoding="utf-8"))["setup"]["profile"]
    profile = read_profile(measured)
    known = [MeasuredModel(measured["key"][f"{role}_bytes"], getattr(profile, role)) for role in ("drafter", "expert")]
    drafter, expert = (replace(EXPERT, weights=each.weights, token_bytes=each.weights) for each in known)
    low, high = estimate_pair(drafter, expert, known, 512).speedup
    assert f"it says {low:.1f} to {high:.1f} ×" in (docs / "benchmarking.md").read_text(encoding="utf-8")


def test_one_measured_model_gives_a_wide_range_around_its_own_rate():
    low, high = token_seconds(900_000_000, [MeasuredModel(450_000_000, speed(0.02))])
    assert (low, high) == pytest.approx((0.03, 0.05))


@given(st.floats(0.1, 0.95), st.floats(0, 0.5), st.floats(0, 1))
def test_the_best_length_is_the_best_of_all(kept, drafter, slope):
    batches = [1 + slope * n for n in range(17)]
    rate, length = best_length(kept, drafter, batches)
    every = [sum(kept**i for i in range(n + 1)) / (n * drafter + batches[n]) for n in range(17)]
    assert rate == pytest.approx(max(1.0, *every))
    assert every[length] == pytest.approx(max(every))


def test_a_pair_whose_drafts_cost_as_much_as_the_expert_is_never_estimated_to_be_slower():
    found = estimate_pair(EXPERT, EXPERT, [MeasuredModel(EXPERT.weights, speed(0.05, 1.0))], 1024)
    assert found.speedup == (1, 1)


def test_a_cheap_drafter_and_flat_batches_give_what_the_formula_says():
    known = [MeasuredModel(weights, speed(line(weights), 0.0)) for weights in (90_000_000, 300_000_000, 900_000_000)]
    found = estimate_pair(DRAFTER, EXPERT, known, 1024)
    share = line(90_000_000) / line(900_000_000)
    for kept, speedup, off in ((ACCEPTANCE_RATES[0], found.speedup[0], 1.1 / 0.9), (ACCEPTANCE_RATES[1], found.speedup[1], 0.9 / 1.1)):
        assert speedup == pytest.approx(max(sum(kept**i for i in range(n + 1)) / (1 + n * share * off) for n in range(17)))
    assert found.speedup[0] < found.speedup[1]
    assert found.memory["expert's cache"] == 1024 * 65_536
    assert found.memory["drafter's weights"] == DRAFTER.weights


def test_without_a_second_model_drafts_are_free():
    known = [MeasuredModel(900_000_000, speed(0.05))]
    found = estimate_pair(None, EXPERT, known, 512)
    assert found.drafter_s == (0, 0)
    assert found.speedup[1] == pytest.approx(sum(ACCEPTANCE_RATES[1] ** i for i in range(17)))
    assert not any("drafter" in part for part in found.memory)


def test_batches_follow_the_model_that_is_most_alike():
    flat, steep = MeasuredModel(10_000_000, speed(0.001, 0.0)), MeasuredModel(800_000_000, speed(0.05, 1.0))
    assert estimate_pair(DRAFTER, EXPERT, [flat, steep], 512).basis == (2, pytest.approx(800 / 900))
    assert estimate_pair(DRAFTER, EXPERT, [flat, steep], 512).speedup[1] < estimate_pair(DRAFTER, EXPERT, [flat], 512).speedup[1]


def test_errors_are_those_of_models_estimated_from_the_others():
    sizes = (90_000_000, 300_000_000, 900_000_000)
    assert estimate_errors([MeasuredModel(size, speed(line(size))) for size in sizes]) == pytest.approx((0, 0), abs=1e-9)
    odd = [MeasuredModel(sizes[0], speed(line(sizes[0]))), MeasuredModel(sizes[0], speed(2 * line(sizes[0])))]
    assert estimate_errors(odd) == pytest.approx((0.75, 1.0)), "twice and half as slow as estimated"
    assert estimate_errors(odd[:1]) is None


def test_where_nothing_was_measured_nothing_is_estimated():
    with pytest.raises(SettingError, match="run 'speccascade profile'"):
        estimate_pair(DRAFTER, EXPERT, [], 512)


@given(st.lists(st.tuples(st.integers(1, 10**10), st.floats(1e-5, 10)), min_size=1, max_size=6), st.integers(1, 10**10))
def test_seconds_are_a_positive_range_whatever_was_measured(measured, size):
    low, high = token_seconds(size, [MeasuredModel(weights, speed(taken)) for weights, taken in measured])
    assert 0 <= low <= high
    assert np.isfinite(high)
