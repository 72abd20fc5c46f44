from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import logit_rows, sampler_settings

from speccascade_local.errors import SettingError
from speccascade_local.sampling import Sampler, draw, softmax


def reference_probs(row: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """The definition, one token at a time."""
    if temperature == 0:
        return [1.0 if i == row.index(max(row)) else 0.0 for i in range(len(row))]
    weights = [math.exp((x - max(row)) / temperature) for x in row]
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    kept = {i for i in order if weights[i] > 0 or row[i] > -math.inf}
    if top_k:
        kept &= set(order[:top_k])
    if top_p < 1:
        total, mass, reached = sum(weights[i] for i in kept), 0.0, set()
        for i in order:
            if i in kept and mass / total < top_p:
                reached.add(i)
                mass += weights[i]
        kept = reached
    kept = {i for i in kept if weights[i] >= min_p * max(weights)}
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(row))]


@given(logit_rows(), sampler_settings)
def test_probs_equal_the_definition_token_by_token(rows, settings):
    expected = reference_probs([float(x) for x in rows[0]], **settings)
    np.testing.assert_allclose(Sampler(**settings).probs(rows)[0], expected, atol=1e-12)


@given(logit_rows(n_rows=3), sampler_settings)
def test_rows_sum_to_one_and_are_independent_of_their_neighbours(rows, settings):
    sampler = Sampler(**settings)
    probs = sampler.probs(rows)
    np.testing.assert_allclose(probs.sum(axis=-1), 1.0)
    for row, alone in zip(rows, probs, strict=True):
        np.testing.assert_array_equal(sampler.probs(row), alone)


@given(logit_rows(), sampler_settings)
def test_only_supported_tokens_have_probability_and_masked_ids_are_never_supported(rows, settings):
    sampler = Sampler(**settings)
    support = sampler.support(rows)
    assert not (sampler.probs(rows) > 0)[~support].any()
    assert not support[np.isneginf(rows)].any()


@given(logit_rows(), st.integers(1, 9))
def test_top_k_keeps_exactly_k_of_the_possible_tokens_even_when_they_tie(rows, k):
    kept = int((Sampler(top_k=k).probs(rows) > 0).sum())
    assert kept == min(k, int(np.isfinite(rows).sum()))


@given(logit_rows())
def test_temperature_zero_is_one_hot_at_the_first_largest_logit(rows):
    assert Sampler(temperature=0).probs(rows).tolist() == [[float(i == int(np.argmax(rows[0]))) for i in range(rows.shape[1])]]


@given(logit_rows(masked=False))
def test_a_tiny_temperature_is_nearly_greedy_and_never_nan(rows):
    probs = Sampler(temperature=1e-300).probs(rows)
    ties = rows == rows.max()
    np.testing.assert_allclose(probs, ties / ties.sum())


@given(logit_rows(), st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulative_distribution_and_never_returns_an_impossible_token(rows, u):
    class Fixed:
        def random(self) -> float:
            return u

    weights = softmax(rows)[0]
    token = draw(weights, Fixed())
    assert weights[token] > 0
    below = float(np.cumsum(weights)[token - 1]) if token else 0.0
    assert below <= u * weights.sum() + 1e-12
    assert u * weights.sum() <= below + weights[token] + 1e-12


def test_draw_follows_its_weights():
    from scipy.stats import chisquare

    weights = np.array([0.5, 0.0, 3.0, 1.5])
    rng = np.random.default_rng(1)
    counts = np.bincount([draw(weights, rng) for _ in range(20_000)], minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[weights > 0], 20_000 * weights[weights > 0] / weights.sum()).pvalue > 1e-4


def test_a_confident_row_stays_below_one_so_that_alpha_zero_can_mean_always_ask():
    assert softmax(np.array([[20.0, 0.0]], np.float32)).max() < 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(SettingError, match=name) as caught:
        Sampler(**wrong)
    assert str(value) in str(caught.value)
