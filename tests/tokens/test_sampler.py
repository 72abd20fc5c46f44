from __future__ import annotations

import math
import statistics
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import logit_rows, sampler_settings

from speccascade_local.common.errors import SessionError, SettingError
from speccascade_local.tokens.sampler import Sampler, Softmax, draw, most_probable, softmax


def reference_probs(row: list[float], temperature: float, top_k: int, top_p: float, min_p: float, top_n_sigma: float = 0.0) -> list[float]:
    """The definition, one token at a time."""
    if temperature == 0:
        return [1.0 if i == row.index(max(row)) else 0.0 for i in range(len(row))]
    weights = [math.exp((x - max(row)) / temperature) for x in row]
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    kept = {i for i in order if weights[i] > 0 or row[i] > -math.inf}
    if top_n_sigma:
        deviation = statistics.pstdev(x for x in row if x > -math.inf)
        kept = {i for i in kept if max(row) - row[i] <= top_n_sigma * deviation}
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
    probs, support = sampler.probs_and_support(rows)
    assert not (probs > 0)[~support].any()
    assert not support[np.isneginf(rows)].any()


@given(logit_rows(), st.integers(1, 9))
def test_top_k_keeps_exactly_k_of_the_possible_tokens_even_when_they_tie(rows, k):
    kept = int((Sampler(top_k=k).probs(rows) > 0).sum())
    assert kept == min(k, int(np.isfinite(rows).sum()))


@given(logit_rows(), st.integers(0, 12))
def test_the_most_probable_ids_are_those_of_a_sorted_row_the_lower_id_first_among_equals(rows, k):
    row = rows[0]
    assert most_probable(row, k) == sorted(range(len(row)), key=lambda v: (-row[v], v))[:k]


@pytest.mark.parametrize("bottom", [0.0, -np.inf])
def test_rows_that_are_equal_nearly_everywhere_are_ranked_as_fast_as_others(bottom):
    """What a grammar or temperature 0 leaves of a wide row. Once 70 ms for each, more than a minute here."""
    row = np.full(151_936, bottom)
    row[[70_000, 7, 140_000]] = 1.0, 3.0, 2.0
    begun = time.monotonic()
    for _ in range(1000):
        assert most_probable(row, 5) == [7, 140_000, 70_000, 0, 1]
    assert time.monotonic() - begun < 30


def test_top_p_of_one_is_off_beside_top_k_and_keeps_what_rounds_away():
    row = np.array([0.0, -50.0, -60.0, -70.0])
    assert Sampler(top_k=3).probs_and_support(row)[1].tolist() == [True, True, True, False]
    assert Sampler(top_k=4).probs_and_support(row)[1].all()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_masked_token_is_no_possible_one_even_where_a_filter_has_room_for_it(temperature):
    row = np.array([0.0, -1.0, -np.inf, -np.inf], np.float32)
    for sampler in (Sampler(temperature), Sampler(temperature, top_k=3), Sampler(temperature, top_k=3, top_p=math.nextafter(1, 0))):
        assert sampler.probs_and_support(row)[1].tolist() == [True, True, False, False]


@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.data())
def test_top_k_is_never_exceeded_however_near_to_one_top_p_is(seed, n, data):
    """Where the mass of the k tokens, summed in another order, falls short of top-p by a rounding."""
    k = data.draw(st.integers(1, n - 1))
    row = 2 * np.random.default_rng(seed).normal(size=n)
    assert Sampler(top_k=k, top_p=math.nextafter(1, 0)).probs_and_support(row)[1].sum() <= k


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


@given(st.integers(0, 5), st.sampled_from([0, 1, 300, 2000]), st.sampled_from([1.0, 0.9137, 0.4321]), st.sampled_from([0.3, 1.0, 4.0]))
def test_wide_rows_are_filtered_like_narrow_ones(seed, top_k, top_p, temperature):
    """A vocabulary wider than the candidates that top-p looks at first, with ties."""
    row = np.round(np.random.default_rng(seed).normal(size=1_000), 1)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": 0.0}
    np.testing.assert_allclose(Sampler(**settings).probs(row), reference_probs(row.tolist(), **settings), atol=1e-12)


@pytest.mark.parametrize("broken", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_rows_that_are_no_logits_are_refused_and_never_drawn_from(broken, temperature):
    with pytest.raises(SessionError, match="nan or inf as logits"):
        Sampler(temperature).probs(np.array([broken]))


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
        {"top_k": 2.0},
        {"temperature": 10**400},
        {"top_k": 10**400},
        {"top_k": 2**31},
        {"top_p": None},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"top_n_sigma": -1},
        {"top_n_sigma": math.inf},
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_what_is_allowed(wrong):
    ((name, value),) = wrong.items()
    allowed = {
        "temperature": "0 (greedy) or more",
        "top_k": "a whole number from 0 to 2147483647",
        "top_p": "above 0 and at most 1 (off)",
        "min_p": "between 0 (off) and 1",
        "top_n_sigma": "0 (off) or more",
    }
    with pytest.raises(SettingError) as caught:
        Sampler(**wrong)
    message, _, hint = str(caught.value).partition("; it must be ")
    assert message.startswith(f"{name} is {repr(value)[:20]}")
    assert hint == allowed[name]


def test_the_ends_of_every_range_are_allowed():
    Sampler(temperature=0.0, top_k=0, top_p=5e-324, min_p=0.0)
    Sampler(temperature=1e308, top_k=2**31 - 1, top_p=1, min_p=1)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(1), 1])
def test_numpy_numbers_are_numbers(number):
    assert Sampler(temperature=number, top_p=number).temperature == number


@given(st.integers(0, 9), st.integers(1, 3000), st.sampled_from([0.0, 0.5, 0.999]), st.floats(0, 1, exclude_max=True))
def test_drawing_in_two_steps_finds_what_one_long_cumulative_sum_finds(seed, width, empty, u):
    class Fixed:
        def random(self) -> float:
            return u

    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=width)
    weights[rng.random(width) < empty] = 0
    weights[int(rng.integers(width))] = 1
    weights[: width // 3] = 0 if seed % 2 and weights[width // 3 :].any() else weights[: width // 3]
    cumulative = np.cumsum(weights)
    near = np.abs(cumulative / cumulative[-1] - u) < 1e-12  # where the rounding of a sum decides
    token = draw(weights, Fixed())
    assert weights[token] > 0
    if not near.any():
        assert token == int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53, 1.0])
def test_the_ends_of_the_random_numbers_draw_the_first_and_the_last_possible_token(u):
    class Fixed:
        def random(self) -> float:
            return u

    weights = np.zeros(2000)
    weights[[600, 700, 1300, 1400]] = 0.1
    assert draw(weights, Fixed()) == (1400 if u else 600)


@given(logit_rows(n_rows=3))
def test_a_softmax_knows_its_largest_value_its_doubt_and_what_divided_it(rows):
    found = Softmax.of(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_array_equal(found.max, found.probs.max(axis=-1))
    np.testing.assert_allclose(found.doubt, 1 - found.max, atol=1e-15)
    np.testing.assert_allclose(found.top + np.log1p(found.rest), np.logaddexp.reduce(wide, axis=-1), atol=1e-12)
