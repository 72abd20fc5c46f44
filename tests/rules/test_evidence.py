from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given
from strategies import row_pairs, sampler_settings

from speccascade_local.common.errors import SettingError
from speccascade_local.rules.evidence import Evidence, Place
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler, softmax
from speccascade_local.tokens.vocabulary import Vocabulary


def evidence_of(rows: tuple[np.ndarray, np.ndarray], settings: dict) -> Evidence:
    return Evidence(Rows.of(rows[0]), Rows.of(rows[1]), Sampler(**settings))


@given(row_pairs(n_rows=2), sampler_settings)
def test_divergences_are_those_of_scipy_between_the_sampling_distributions(rows, settings):
    evidence = evidence_of(rows, settings)
    q, p = (Sampler(**settings).probs(each) for each in rows)
    np.testing.assert_allclose(evidence.js, scipy.spatial.distance.jensenshannon(q, p, axis=-1) ** 2, atol=1e-9)
    np.testing.assert_allclose(evidence.tv, np.abs(q - p).sum(axis=-1) / 2, atol=1e-12)


@given(row_pairs(n_rows=2), sampler_settings)
def test_confidence_is_that_of_the_plain_distributions_whatever_the_settings(rows, settings):
    evidence = evidence_of(rows, settings)
    q, p = map(softmax, rows)
    np.testing.assert_allclose(evidence.drafter_entropy, scipy.stats.entropy(q, axis=-1), atol=1e-12)
    np.testing.assert_allclose(evidence.expert_entropy, scipy.stats.entropy(p, axis=-1), atol=1e-12)
    np.testing.assert_array_equal(evidence.drafter_max, q.max(axis=-1))
    np.testing.assert_array_equal(evidence.expert_max, p.max(axis=-1))
    np.testing.assert_allclose(evidence.drafter_doubt, 1 - q.max(axis=-1), atol=1e-12)


@given(row_pairs(masked=False))
def test_cross_entropy_is_the_entropy_of_the_drafter_plus_its_divergence_from_the_expert(rows):
    q, p = map(softmax, rows)
    expected = scipy.stats.entropy(q, axis=-1) + scipy.stats.entropy(q, p, axis=-1)
    np.testing.assert_allclose(evidence_of(rows, {}).cross_entropy, expected, atol=1e-9)


def test_a_token_that_the_expert_rules_out_makes_the_cross_entropy_large_and_finite():
    rows = np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]])
    assert evidence_of(rows, {}).cross_entropy[0] == pytest.approx(300 * np.log(10))


def test_a_place_knows_the_text_up_to_itself():
    assert Place(text=[1, 2], drafted=[3, 4, 5], position=2).tokens == [1, 2, 3, 4]


def test_tokens_are_found_by_their_texts_where_these_are_known():
    rows = Rows.of(np.zeros((1, 3)))
    place = Place(vocabulary=Vocabulary(3, lambda token: [b"7", b"x", b"42"][token]))
    assert Evidence(rows, rows, Sampler(), place).tokens_where(str.isdigit).tolist() == [True, False, True]
    with pytest.raises(SettingError, match="use it on a loaded pair"):
        Evidence(rows, rows, Sampler()).tokens_where(str.isdigit)


@given(row_pairs(n_rows=2), sampler_settings)
def test_values_that_rows_cache_equal_values_computed_alone(rows, settings):
    sampler = Sampler(**settings)
    both = Rows.of(rows[0])
    probs, support = sampler.probs_and_support(rows[0])
    for _ in range(2):
        for j in range(2):
            row = both.row(j)
            assert row is both.row(j)
            np.testing.assert_array_equal(row.probs(sampler)[0], probs[j])
            np.testing.assert_array_equal(row.support(sampler)[0], support[j])
            assert row.best[0] == rows[0][j].argmax()
            assert [row.prob(sampler, v) for v in range(rows[0].shape[1])] == probs[j].tolist()
            possible = np.flatnonzero(np.isfinite(rows[0][j]))
            expected = rows[0][j].astype(float) - np.logaddexp.reduce(rows[0][j].astype(float))
            np.testing.assert_allclose([row.logprob(int(v)) for v in possible], expected[possible], atol=1e-12)
    np.testing.assert_array_equal(both.probs(sampler), probs)


def test_a_plain_and_a_sampling_distribution_that_are_the_same_are_one_array_and_cannot_be_written_to():
    logits = np.array([[0.0, 1.0, 3.0]], np.float32)
    rows = Rows.of(logits)
    assert rows.probs(Sampler()) is rows.plain.probs
    for sampler in (Sampler(), Sampler(0), Sampler(0.5), Sampler(top_k=2)):
        assert rows.probs(sampler) is rows.probs(sampler)
        assert not rows.probs(sampler).flags.writeable
    for other in (Rows(logits, logits + np.eye(3)[2]).probs(Sampler()), rows.probs(Sampler(0.5)), rows.probs(Sampler(min_p=0.2))):
        assert not np.allclose(other, rows.plain.probs)


@given(row_pairs(n_rows=2), sampler_settings)
def test_samples_and_confidence_come_from_shaped_rows_and_raw_ones_stay(rows, settings):
    raw, shaped = rows
    made = Rows(raw, shaped)
    for j in range(2):
        np.testing.assert_array_equal(made.row(j).probs(Sampler(**settings))[0], Sampler(**settings).probs(shaped[j]))
        np.testing.assert_array_equal(made.row(j).plain.probs[0], softmax(shaped[j]))
        np.testing.assert_array_equal(made.row(j).raw.probs[0], softmax(raw[j]))
        for found, row in ((made.row(j).plain_logprob, shaped[j]), (made.row(j).logprob, raw[j])):
            possible = np.flatnonzero(np.isfinite(row)).tolist()
            np.testing.assert_allclose(
                [found(v) for v in possible], [row[v] - np.logaddexp.reduce(row.astype(float)) for v in possible], atol=1e-9
            )
        assert made.row(j).best[0] == shaped[j].argmax()
    np.testing.assert_array_equal(made.shaped, shaped)
