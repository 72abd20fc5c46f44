from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from strategies import JUDGED_RULES, all_rules, judged_rules, row_pairs, sampler_settings
from toys import ScriptedRandom

from speccascade_local.deferral import blend
from speccascade_local.errors import SettingError
from speccascade_local.evidence import Rows
from speccascade_local.methods import target_probs
from speccascade_local.rules import Never, Strict, TokenV3
from speccascade_local.sampling import Sampler
from speccascade_local.verify import Draft, Verdict
from speccascade_local.verify import verify as verify_rows


def drafted(token_ids, logits) -> Draft:
    return Draft(token_ids, Rows.of(np.asarray(logits)))


def verify(draft, expert_logits, rule, sampler, rng, **settings) -> Verdict:
    return verify_rows(draft, Rows.of(np.asarray(expert_logits)), rule, sampler, rng, **settings)


NEXT = np.zeros((1, 4), np.float32)  # the expert's row for the bonus token


@given(judged_rules, row_pairs(), sampler_settings, st.data())
def test_a_drafted_token_is_kept_with_probability_min_of_one_and_target_over_draft(rule, rows, settings, data):
    """Exact: the coin just below the threshold keeps it, the coin just above does not."""
    drafter, expert = rows
    sampler = Sampler(**settings)
    q = sampler.probs(drafter)[0]
    token = data.draw(st.sampled_from(np.flatnonzero(q).tolist()))
    target = target_probs(rule, drafter, expert, **settings)[0]
    keep = min(1.0, target[token] / q[token])
    draft, scores = drafted([token], drafter), np.vstack([expert, expert])
    if keep > 1e-9:
        verdict = verify(draft, scores, rule, sampler, ScriptedRandom(keep * (1 - 1e-9), 0.5, 0.5))
        assert verdict.token_ids[0] == token
        assert verdict.origins[0] in ("accepted", "matched")
    if keep < 1 - 1e-9:
        verdict = verify(draft, scores, rule, sampler, ScriptedRandom(keep + 1e-9, 0.5, 0.5))
        assert verdict.origins == ("corrected",)
        assert verdict.dropped_ids == (token,)
        assert verdict.deferred == (True,)


@given(judged_rules, row_pairs(), sampler_settings, st.data())
def test_a_corrected_token_is_drawn_from_the_residual(rule, rows, settings, data):
    """Exact: the middle of each token's share of the residual draws that token."""
    drafter, expert = rows
    sampler = Sampler(**settings)
    q, target = sampler.probs(drafter)[0], target_probs(rule, drafter, expert, **settings)[0]
    residual = np.maximum(target - q, 0)
    dropped = np.flatnonzero(q > target + 1e-6)
    assume(len(dropped) and residual.sum() > 1e-6)
    token = int(data.draw(st.sampled_from(dropped.tolist())))
    edges = np.concatenate([[0.0], np.cumsum(residual)]) / residual.sum()
    wide = [v for v in range(len(q)) if edges[v + 1] - edges[v] > 1e-6]
    for expected in wide:
        middle = (edges[expected] + edges[expected + 1]) / 2
        verdict = verify(drafted([token], drafter), np.vstack([expert, expert]), rule, sampler, ScriptedRandom(1 - 1e-12, middle))
        assert verdict.token_ids == (expected,)


@given(judged_rules, row_pairs(), sampler_settings)
def test_such_coins_and_residuals_make_the_target_the_marginal_and_its_distance_the_rejection_rate(rule, rows, settings):
    """The algebra that joins the two exact tests above; test_emitted_tokens_follow_the_target draws for real."""
    drafter, expert = rows
    q, target = Sampler(**settings).probs(drafter)[0], target_probs(rule, drafter, expert, **settings)[0]
    keep = np.divide(np.minimum(q, target), q, out=np.zeros_like(q), where=q > 0)
    rejected = float((q * (1 - keep)).sum())
    residual = np.maximum(target - q, 0)
    assert rejected == pytest.approx(residual.sum(), abs=1e-9)  # TV(target, q)
    marginal = q * keep + (rejected * residual / residual.sum() if residual.sum() > 0 else 0)
    np.testing.assert_allclose(marginal, target, atol=1e-9)


@pytest.mark.parametrize("rule", [Never(), *JUDGED_RULES], ids=str)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}], ids=str)
def test_emitted_tokens_follow_the_target(rule, settings):
    rng = np.random.default_rng(5)
    drafter, expert = 1.5 * rng.normal(size=(2, 1, 6))
    sampler = Sampler(**settings)
    target = target_probs(rule, drafter, expert, **settings)[0]
    q = sampler.probs(drafter)[0]
    n = 8_000
    verdicts = [verify(drafted([int(rng.choice(6, p=q))], drafter), np.vstack([expert, expert]), rule, sampler, rng) for _ in range(n)]
    counts = np.bincount([verdict.token_ids[0] for verdict in verdicts], minlength=6)
    assert not counts[target == 0].any()
    possible = target > 0
    if possible.sum() > 1:
        assert chisquare(counts[possible], n * target[possible]).pvalue > 1e-4
    rejected = sum("corrected" in verdict.origins for verdict in verdicts)
    if rule.asks_expert:
        assert binomtest(rejected, n, min(1.0, float(np.maximum(target - q, 0).sum()))).pvalue > 1e-4


def test_strict_acceptance_averages_the_overlap_of_the_two_distributions():
    rng = np.random.default_rng(8)
    overlaps, kept = [], []
    for _ in range(4_000):
        drafter, expert = rng.normal(size=(2, 1, 5))
        q, p = Sampler().probs(drafter)[0], Sampler().probs(expert)[0]
        overlaps.append(np.minimum(q, p).sum())
        draft = drafted([int(rng.choice(5, p=q))], drafter)
        kept.append(verify(draft, np.vstack([expert, expert]), Strict(), Sampler(), rng).origins[0] == "matched")
    error = np.std(np.array(kept) - np.array(overlaps)) / np.sqrt(len(kept))
    assert abs(np.mean(kept) - np.mean(overlaps)) < 4 * error


def test_a_block_stops_at_its_first_rejection_and_says_what_it_dropped():
    drafter = np.log(np.array([[0.25] * 4] * 3))
    expert = np.log(np.array([[0.25] * 4, [1e-30, 1, 1e-30, 1e-30], [0.25] * 4, [0.25] * 4]))
    verdict = verify(drafted([3, 2, 0], drafter), expert, Strict(), Sampler(), np.random.default_rng(0))
    assert verdict == Verdict((3, 1), ("matched", "corrected"), (True, True), dropped_ids=(2, 0))


def test_a_fully_kept_draft_earns_a_bonus_token_from_the_experts_last_row():
    rows = np.log(np.array([[0.25] * 4] * 2))
    expert = np.vstack([rows, np.log([[1e-30, 1e-30, 1e-30, 1]])])
    verdict = verify(drafted([1, 2], rows), expert, TokenV3(1), Sampler(), np.random.default_rng(0))
    assert verdict == Verdict((1, 2, 3), ("accepted", "accepted", "bonus"), (False, False))


def test_without_a_draft_the_expert_speaks():
    verdict = verify(drafted([], np.empty((0, 4), np.float32)), NEXT, Strict(), Sampler(0), np.random.default_rng(0))
    assert verdict == Verdict((0,), ("expert",))


def test_never_keeps_the_draft_without_reading_the_expert():
    draft = drafted([1, 2], np.zeros((2, 4), np.float32))
    verdict = verify(draft, np.empty((0, 0)), Never(), Sampler(), ScriptedRandom())
    assert verdict == Verdict((1, 2), ("accepted", "accepted"), (False, False))


def test_a_trusted_token_is_kept_without_tossing_a_coin():
    rows = np.log(np.array([[0.9, 0.1]]))
    verdict = verify(drafted([0], rows), np.vstack([rows, rows]), TokenV3(0.5), Sampler(), ScriptedRandom(0.0))  # one: the bonus
    assert verdict.origins == ("accepted", "bonus")


def test_a_residual_without_mass_keeps_the_draft():
    """Float noise: the coin can fall above π(x)/q(x) = 1 - ε although π equals q everywhere."""
    rows = np.log(np.array([[0.5, 0.5]]))
    verdict = verify(drafted([0], rows), np.vstack([rows, rows]), Strict(), Sampler(), ScriptedRandom(1.0, 0.0))
    assert verdict.origins[0] == "matched"


def test_the_handed_over_mass_is_given_out_over_every_token_also_the_trusted_ones():
    """η·p belongs to every token; dropping it for trusted ones is a known mistake of public implementations."""
    q, p = np.array([[0.6, 0.3, 0.1]]), np.array([[0.5, 0.3, 0.2]])
    defer = np.array([[False, True, True]])
    np.testing.assert_allclose(blend(defer, q, p), [[0.6 + 0.4 * 0.5, 0.4 * 0.3, 0.4 * 0.2]])


@given(all_rules, st.integers(1, 3), sampler_settings)
def test_cutting_a_verdict_never_tells_of_what_lies_behind_the_cut(rule, length, settings):
    rng = np.random.default_rng(length)
    drafter, expert = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    verdict = verify(drafted([0, 1, 2], drafter), expert, rule, Sampler(**settings), rng)
    length = min(length, len(verdict.token_ids))
    cut = verdict.cut(length)
    assert cut.token_ids == verdict.token_ids[:length]
    assert cut.origins == verdict.origins[:length]
    assert len(cut.deferred) <= length
    assert cut.dropped_ids in ((), verdict.dropped_ids)
    assert bool(cut.dropped_ids) == ("corrected" in cut.origins)


@pytest.mark.parametrize(
    ("drafter", "expert", "said"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), "shape"),
        (np.zeros((2, 3)), np.zeros((1, 3)), "shape"),
        (np.zeros((1, 0)), np.zeros((1, 0)), "shape"),
        (np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), "shape"),
        (np.full((1, 2), np.nan), np.zeros((1, 2)), "drafter_logits"),
        (np.zeros((1, 2)), np.full((1, 2), -np.inf), "expert_logits"),
        (np.zeros((1, 2)), np.array([[0, np.inf]]), "expert_logits"),
        ([[0, 1], [2]], np.zeros((1, 2)), "arrays of numbers"),
        ("rows", np.zeros((1, 2)), "arrays of numbers"),
        (None, np.zeros((1, 1)), "drafter_logits"),
    ],
)
def test_target_probs_refuses_unusable_rows(drafter, expert, said):
    with pytest.raises(SettingError, match=said):
        target_probs("strict", drafter, expert)


def test_target_probs_takes_a_single_row_too():
    assert target_probs("chow:0.5", np.zeros(3), np.zeros(3)).shape == (1, 3)
