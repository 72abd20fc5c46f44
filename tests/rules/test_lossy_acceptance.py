"""The other papers' acceptances, against their formulas written a second time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loop_runs import run
from strategies import row_pairs
from toys import RowOf, ToySession, random_rows, sometimes_accepts

import speccascade_local as sc
from speccascade_local import target_probs
from speccascade_local.rules import clipping
from speccascade_local.rules.evidence import Evidence, Place
from speccascade_local.rules.lossy_acceptance import DecisionTokens, Fly, Lenience, Mentored, Typical
from speccascade_local.rules.registry import DEFAULT
from speccascade_local.runtime.compare import all_arms, compare, few_arms
from speccascade_local.runtime.settings import Settings
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler

QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]


def kl(one: np.ndarray, other: np.ndarray) -> float:
    """KL(one || other) in nats."""
    return math.fsum(x * (math.log(x) - math.log(y)) if y > 0 else math.inf for x, y in zip(one.tolist(), other.tolist()) if x > 0)


def kept(q: np.ndarray, target: np.ndarray) -> float:
    """The chance that a token drawn from q survives the coin of ``target``."""
    return math.fsum(np.minimum(q, target))


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row.astype(float) - row.max())
    return weights / weights.sum()


divergences = st.one_of(st.sampled_from([1e-6, 0.1, 1.0, 50.0]), st.floats(1e-6, 5))


@given(row_pairs(), divergences, st.sampled_from([0.3, 1.0]))
def test_mentored_stays_within_its_divergence_and_keeps_no_fewer_drafts_than_strict(rows, divergence, temperature):
    q, p = (Sampler(temperature).probs(row)[0] for row in rows)
    target = target_probs(Mentored(divergence), *rows, temperature=temperature)[0]
    assert kl(p, target) <= divergence * (1 + 1e-9) + 1e-12
    assert kept(q, target) >= kept(q, p) - 1e-12


@given(row_pairs(masked=False), st.floats(0, 0.999))
def test_mentored_keeps_no_fewer_drafts_than_lenience_of_the_same_divergence(rows, alpha):
    q, p = (Sampler().probs(row)[0] for row in rows)
    lenient = target_probs(Lenience(alpha), *rows)[0]
    mentored = target_probs(Mentored(max(kl(p, lenient), 0.0)), *rows)[0]
    assert kept(q, mentored) >= kept(q, lenient) - 1e-7


@given(row_pairs(), st.integers(0, 2**32), st.floats(0, 1))
def test_no_other_target_of_the_same_divergence_keeps_more_drafts_than_mentored(rows, seed, towards_drafter):
    """Others: any distribution over what p allows, many of them near the drafter's, where the contest is close."""
    q, p = (Sampler().probs(row)[0] for row in rows)
    rng = np.random.default_rng(seed)
    other = rng.dirichlet(np.full(len(p), 0.5)) * (1 - towards_drafter) + q * towards_drafter
    other = np.where(p > 0, other + 1e-6, 0)
    other /= other.sum()
    mentored = target_probs(Mentored(kl(p, other) + 1e-12), *rows)[0]
    assert kept(q, mentored) >= kept(q, other) - 1e-6


@given(row_pairs())
def test_mentored_is_the_expert_at_divergence_zero_and_keeps_all_that_p_allows_at_a_huge_one(rows):
    q, p = (Sampler().probs(row)[0] for row in rows)
    np.testing.assert_array_equal(target_probs(Mentored(0), *rows)[0], p)
    assert kept(q, target_probs(Mentored(1e9), *rows)[0]) == pytest.approx(math.fsum(q[p > 0]), abs=1e-9)


@pytest.mark.parametrize("divergence", [1e-6, 0.01, 0.3, 4.0])
def test_mentored_is_as_exact_over_a_wide_vocabulary(divergence):
    shared, *own = np.random.default_rng(7).normal(size=(3, 152_064))
    rows = [(3 * shared + 1.5 * each)[None] for each in own]
    q, p = (Sampler().probs(row)[0] for row in rows)
    target = target_probs(Mentored(divergence), *rows)[0]
    assert target.sum() == pytest.approx(1, abs=1e-12)
    spent = kl(p, target)
    assert spent <= divergence * (1 + 1e-9) + 1e-12
    assert spent >= 0.999 * divergence or kept(q, target) == pytest.approx(1, abs=1e-9)
    assert kept(q, target) > kept(q, p)


@given(row_pairs(), st.floats(0, 0.999), st.sampled_from([{}, {"temperature": 0.5}, {"top_k": 3}, {"min_p": 0.1}]))
def test_lenience_keeps_a_draft_with_probability_p_over_its_share_of_q(rows, alpha, settings):
    q, p = (Sampler(**settings).probs(row)[0] for row in rows)
    target = target_probs(Lenience(alpha), *rows, **settings)[0]
    for v in np.flatnonzero(q).tolist():
        assert min(1.0, target[v] / q[v]) == pytest.approx(min(1.0, p[v] / ((1 - alpha) * q[v])), abs=1e-9)


@pytest.mark.parametrize(
    ("expert", "trusted"),
    [
        ([0.86, 0.10, 0.04], [True, True, False]),  # exp(-H) is 0.61, so epsilon 0.09 is the smaller bound
        ([0.05] * 20, [True] * 20),  # exp(-H) is 0.05 and the bound 0.015
        ([0.30, 0.013] + [0.687 / 16] * 16, [True, False] + [True] * 16),  # 0.3 * exp(-H) is 0.0216
    ],
)
def test_typical_trusts_what_exceeds_the_smaller_of_its_two_bounds(expert, trusted):
    expert = np.array(expert)
    drafter = np.ones(len(expert)) / len(expert)
    entropy = -sum(x * math.log(x) for x in expert)
    assert trusted == [bool(x > min(0.09, 0.3 * math.exp(-entropy)) * (1 + 1e-12)) for x in expert], "the example is what it says"
    target = target_probs("typical:0.09,0.3", np.log(drafter), np.log(expert))[0]
    handed_over = sum(q for q, kept_token in zip(drafter, trusted) if not kept_token)
    np.testing.assert_allclose(target, np.where(trusted, drafter, 0) + handed_over * expert, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_typical_reads_the_expert_at_temperature_1_and_so_differs_from_medusa_at_others(temperature):
    """Medusa reads p and H(p) at the sampling temperature, and at temperature 0 keeps the expert's favorite alone."""
    drafter, expert = np.log([[0.2, 0.7, 0.1]]), np.log([[0.5, 0.3, 0.2]])
    evidence = Evidence(Rows.of(drafter), Rows.of(expert), Sampler(temperature))
    deferred = Typical(0.25, 9).defer(evidence)
    assert deferred.tolist() == [[False, False, True]]
    warmed = np.eye(3)[0] if temperature == 0 else softmax(expert[0] / temperature)
    doubt = -sum(x * math.log(x) for x in warmed if x > 0)
    medusa = np.eye(3, dtype=bool)[0] if temperature == 0 else warmed > min(0.25, 9 * math.exp(-doubt))
    assert medusa.tolist() != (~deferred[0]).tolist()


def test_at_the_bound_itself_a_token_is_not_typical():
    drafter, even = np.log([0.9, 0.1]), np.zeros(2)
    np.testing.assert_allclose(target_probs("typical:0.5,9", drafter, even), [[0.5, 0.5]])
    np.testing.assert_allclose(target_probs("typical:0.499,9", drafter, even), [[0.9, 0.1]])


# ---------------------------------------------------------------------------------------------- fly


def wavering(seed: int, n_vocab: int = 5) -> tuple[ToySession, ToySession]:
    """Two models that mostly agree, and are often unsure."""
    shared, own = random_rows(n_vocab, seed, scale=1.0), random_rows(n_vocab, seed + 1000, scale=0.25)
    return ToySession(lambda text: shared(text) + own(text), n_vocab, 200), ToySession(shared, n_vocab, 200)


def plain_fly(text: list[int], draft: list[int], row_of: RowOf, alpha: float) -> tuple[list[int], list[int]]:
    """What a block emits, and the positions of the mismatches that it keeps."""

    def expert(position: int) -> np.ndarray:
        return row_of([*text, *draft[:position]]).astype(np.float32)

    mismatches: list[int] = []
    for i, token in enumerate(draft):
        best = int(expert(i).argmax())
        if token != best:
            if i >= len(draft) - 6:
                return [*draft[:i], best], mismatches
            if any(draft[i + k] != int(expert(i + k).argmax()) for k in range(1, 6)):
                return [*draft[:i], best], mismatches
            if -sum(x * math.log(x) for x in sorted(softmax(expert(i)))[-3:]) < alpha:
                return [*draft[:i], best], mismatches
            mismatches.append(i)
    return [*draft, int(expert(len(draft)).argmax())], mismatches


def flown(seed: int, alpha: float, block_size: int) -> list[tuple[int, int]]:
    """Holds every block to the plain loop; returns (position, length of the block) of each mismatch that was kept."""
    pair = wavering(seed)
    _, blocks, _ = run(pair, Fly(alpha), prompt=[1, 2], temperature=0, block_size=block_size, max_tokens=60, seed=seed)
    text, kept_mismatches = [1, 2], []
    for block in blocks:
        draft = block.draft.token_ids
        tokens, mismatches = plain_fly(text, draft, pair[1].row_of, alpha)
        assert list(block.verdict.token_ids) == tokens
        kept_mismatches += [(i, len(draft)) for i in mismatches]
        text += tokens
    return kept_mismatches


@given(st.integers(0, 200), st.sampled_from([0.0, 0.3, 0.95, 1.02]), st.integers(7, 12))
def test_fly_keeps_exactly_the_mismatches_that_a_plain_loop_over_the_block_keeps(seed, alpha, block_size):
    for position, length in flown(seed, alpha, block_size):
        assert position < length - 6


def test_fly_keeps_some_mismatches_and_fewer_the_surer_it_asks_the_expert_to_waver():
    counts = [sum(len(flown(seed, alpha, 10)) for seed in range(30)) for alpha in (0.0, 0.98, 1.2)]
    assert counts[0] > counts[1] > counts[2] == 0


@pytest.mark.parametrize("settings", [{"temperature": 0.5, "block_size": 8}, *({"block_size": size} for size in range(1, 7))], ids=str)
def test_fly_refuses_settings_under_which_it_means_nothing(demo, settings):
    message = "temperature is 0.5" if "temperature" in settings else f"block_size is {settings['block_size']}; give a block_size of 7"
    with pytest.raises(sc.SettingError, match=f"rule fly:0.3 .*{message}"):
        demo.chat(QUESTION, rule="fly:0.3", **settings)


def test_fly_says_that_it_has_no_distribution_at_a_single_position():
    with pytest.raises(sc.SettingError, match="rest of a drafted block"):
        target_probs("fly:0.3", np.zeros(3), np.zeros(3), temperature=0)


def test_fly_can_be_compared_with_the_others(demo):
    settings = Settings(block_size=8, max_tokens=12)
    rows = compare(demo, demo.chat_ids(QUESTION), few_arms(settings, Fly(0.3), 0.9), repeat=1)
    assert {str(row.reply.rule): row.block_size for row in rows}["fly:0.3"] == 8
    own = {name: arm for name, arm in all_arms(replace(settings, block_size=3), DEFAULT).items() if isinstance(arm.rule, Fly)}
    assert [(name, arm.block_size) for name, arm in own.items()] == [("fly:0.3 blocks of 10", 10)]
    assert not any(isinstance(arm.rule, Fly) for arm in all_arms(replace(settings, temperature=1.0), DEFAULT).values())


# ---------------------------------------------------------------------------------------------- decision tokens


@given(
    seed=st.integers(0, 50),
    tau=st.sampled_from([0.0, 1.0, 1.6]),
    lam=st.sampled_from([0.0, 0.9, 1.3]),
    window=st.integers(1, 6),
    block_size=st.integers(1, 5),
    mode=st.fixed_dictionaries(
        {
            "bonus": st.sampled_from(["expert", "cascade"]),
            "verification": st.sampled_from(["token", "block"]),
            "temperature": st.sampled_from([0.0, 1.0]),
        }
    ),
)
def test_decision_tokens_compares_with_exactly_the_last_tested_positions(seed, tau, lam, window, block_size, mode):
    """Tested: drafted tokens up to and with a rejected one; not what the expert adds alone, nor what was dropped unread."""
    pair = sometimes_accepts(seed=seed)
    _, blocks, _ = run(pair, DecisionTokens(tau, lam, window), block_size=block_size, max_tokens=30, seed=seed, **mode)
    text, seen = [1, 2], []
    for block in blocks:
        for j, deferred in enumerate(block.verdict.deferred):
            before = [*text, *block.draft.token_ids[:j]]
            q, p = (softmax(session.row_of(before).astype(np.float32)) for session in pair)
            surprise = -sum(x * math.log(y) for x, y in zip(q, p))
            usual = sum(seen[-window:]) / len(seen[-window:]) if seen else 0.0
            assume(abs(surprise - max(tau, lam * usual)) > 1e-9)
            assert deferred == (surprise > tau and surprise > lam * usual)
            assert block.verdict.trace[j] == pytest.approx(surprise)
            seen.append(surprise)
        assert len(block.verdict.trace) == len(block.verdict.deferred)
        text += block.verdict.token_ids


@pytest.mark.parametrize("name", ["flat drafter, sure expert", "sure drafter, flat expert"])
def test_decision_tokens_asks_where_the_drafters_tokens_surprise_the_expert_and_not_where_only_the_expert_wavers(name):
    """Both places differ by the same two rows. Exchanging the two models in the score would exchange the two answers."""
    flat, sure = np.zeros((1, 6)), np.array([[20.0, 0, 0, 0, 0, 0]])
    drafter, expert = (flat, sure) if name.startswith("flat") else (sure, flat)
    evidence = Evidence(Rows.of(drafter), Rows.of(expert), Sampler())
    expected = 5 / 6 * 20 if name.startswith("flat") else math.log(6)
    assert evidence.cross_entropy[0] == pytest.approx(expected, rel=1e-6)
    assert bool(DecisionTokens(3.0).defer(evidence)[0]) is name.startswith("flat")


@given(row_pairs(), st.floats(0, 3), st.floats(1, 9), st.lists(st.floats(0, 9), max_size=9))
def test_decision_tokens_asks_at_one_place_by_a_lam_of_1_wherever_it_does_by_a_larger_one(rows, tau, lam, trace):
    drafter, expert = rows
    evidence = Evidence(Rows.of(drafter), Rows.of(expert), Sampler(), Place(emitted=len(trace), trace=trace))
    usual, larger = (bool(DecisionTokens(tau, each).defer(evidence)[0]) for each in (1.0, lam))
    assert usual or not larger


def test_decision_tokens_is_tried_across_rejections_and_bonus_tokens():
    """What the test above relies on: such blocks come up with these toys."""
    _, blocks, stats = run(sometimes_accepts(), DecisionTokens(1.0, 0.9, 4), block_size=3, max_tokens=30)
    assert len(blocks) > 5
    assert stats.rejected
    assert stats.bonus
    assert 0 < stats.deferred < stats.tested


@given(
    seed=st.integers(0, 99),
    spread=st.sampled_from([(2, 0.5), (1, 0.01), (4, 4), (3, 0)]),
    masked=st.sampled_from(["", "q", "p", "qp"]),
    divergence=st.sampled_from([1e-6, 0.01, 0.1, 1.0, 50.0]),
)
@settings(deadline=None)
def test_mentored_finds_in_a_wide_row_by_groups_what_it_finds_token_by_token(seed, spread, masked, divergence):
    rng = np.random.default_rng(seed)
    scale, noise = spread
    rows = scale * rng.normal(size=6000) + noise * rng.normal(size=(2, 6000))
    for name, row in zip("qp", rows):
        if name in masked:
            row[rng.random(6000) < rng.choice([0.4, 0.99])] = -np.inf
            row[0] = 1
    assert len(rows[0]) > clipping._BUCKETS
    q, p = (Sampler().probs(row) for row in rows)
    by_groups = clipping.closest_to_drafter(q, p, divergence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clipping, "_bounds_by_groups", lambda *_: None)
        by_tokens = clipping.closest_to_drafter(q, p, divergence)
    np.testing.assert_allclose(by_groups, by_tokens, atol=1e-12)


@pytest.mark.parametrize(
    ("divergence", "masked", "apart"), [(0.001, 0, 0.4), (0.03, 0, 0.4), (0.1, 0, 0.4), (0.1, 0.4, 0.4), (50.0, 0.4, 2), (50.0, 0.99, 0.4)]
)
def test_no_row_such_as_models_give_has_to_be_sorted_whole(divergence, masked, apart, monkeypatch):
    sorted_lengths = []
    made = clipping._Clipping.__init__
    monkeypatch.setattr(clipping._Clipping, "__init__", lambda self, q, *rest: sorted_lengths.append(len(q)) or made(self, q, *rest))
    shared, *own = np.random.default_rng(3).normal(size=(3, 100_000))
    q, p = (2 * shared + apart * each for each in own)
    p[np.random.default_rng(4).random(len(p)) < masked] = -np.inf
    clipping.closest_to_drafter(Sampler().probs(q), Sampler().probs(p), divergence)
    assert len(sorted_lengths) == 2
    assert max(sorted_lengths) < 20_000
