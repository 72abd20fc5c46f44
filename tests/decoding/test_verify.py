from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from exact import chain, courses, decisions_along
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from strategies import JUDGED_RULES, all_rules, judged_rules, logit_rows, row_pairs, sampler_settings
from toys import ScriptedRandom, one_by_one

from speccascade_local.common.errors import SettingError
from speccascade_local.decoding.fidelity import Recording
from speccascade_local.decoding.verify import Draft, Verdict
from speccascade_local.decoding.verify import verify as verify_rows
from speccascade_local.rules.combined import Budget
from speccascade_local.rules.lossy_acceptance import DecisionTokens, Fly, Lenience, Mentored
from speccascade_local.rules.position_rules import Chow, Never, Opt, Strict
from speccascade_local.rules.registry import target_probs
from speccascade_local.rules.rule import blend
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler


def drafted(token_ids, logits) -> Draft:
    return Draft(token_ids, one_by_one(logits))


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


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Never(), *JUDGED_RULES], ids=str)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}], ids=str)
def test_emitted_tokens_follow_the_target(rule, settings):
    rng = np.random.default_rng(5)
    drafter, expert = 1.5 * rng.normal(size=(2, 1, 6))
    sampler = Sampler(**settings)
    target = target_probs(rule, drafter, expert, **settings)[0]
    q = sampler.probs(drafter)[0]
    n = 2_000
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


def test_a_block_whose_residual_has_no_mass_goes_on_with_the_target():
    """The same in a block: the coin falls above a chance of 1 - ε, and nothing is left over."""
    rows = np.log(np.array([[0.5, 0.5]]))
    coins = ScriptedRandom(1.0, 0.75, 0.0)  # the block's, the target's, and one that nobody tosses
    verdict = verify(drafted([0], rows), np.vstack([rows, rows]), Strict(), Sampler(), coins, verification="block")
    assert verdict.token_ids == (1,)
    assert coins.values == [0.0]


def test_the_handed_over_mass_is_given_out_over_every_token_also_the_trusted_ones():
    """η·p belongs to every token; dropping it for trusted ones is a known mistake of public implementations."""
    q, p = np.array([[0.6, 0.3, 0.1]]), np.array([[0.5, 0.3, 0.2]])
    defer = np.array([[False, True, True]])
    np.testing.assert_allclose(blend(defer, q, p), [[0.6 + 0.4 * 0.5, 0.4 * 0.3, 0.4 * 0.2]])


@given(all_rules, st.integers(1, 3), sampler_settings)
def test_cutting_a_verdict_never_tells_of_what_lies_behind_the_cut(rule, length, settings):
    rng = np.random.default_rng(length)
    drafter, expert = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    verdict = verify(drafted([0, 1, 2], drafter), expert, rule, Sampler(**settings), rng, recording=Recording())
    length = min(length, len(verdict.token_ids))
    cut = verdict.cut(length)
    for name in ("token_ids", "origins", "deferred", "trace", "entries"):
        assert getattr(cut, name) == getattr(verdict, name)[:length]
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


def test_target_probs_of_no_rows_is_no_rows():
    assert target_probs("chow:0.5", np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


def test_target_probs_takes_a_single_row_too():
    assert target_probs("chow:0.5", np.zeros(3), np.zeros(3)).shape == (1, 3)


# ---------------------------------------------------------------------- whole blocks, exactly

#: Rules of every kind: masks of positions and of tokens, named targets, and two whose past matters on the trees below.
KINDS = [
    Strict(),
    Chow(0.5),
    Opt(0.3),
    TokenV3(0.6),
    Lenience(0.5),
    Mentored(0.1),
    DecisionTokens(0.0, 1.0),
    Budget(0.2),
    Budget(0.1, "diff"),
]

TEXTS = [text for length in range(3) for text in itertools.product(range(3), repeat=length)]


class Tree:
    """Two models over three ids, one row for each text of up to two ids."""

    def __init__(self, drafter: np.ndarray, expert: np.ndarray) -> None:
        self.rows = {text: (drafter[i], expert[i]) for i, text in enumerate(TEXTS)}

    @classmethod
    def random(cls, seed: int) -> Tree:
        shared, own = np.random.default_rng(seed).normal(size=(2, len(TEXTS), 3))
        return cls(1.5 * shared + 1.2 * own, 1.5 * shared)

    def drafter(self, text):
        return self.rows[tuple(text)][0]

    def expert(self, text):
        return self.rows[tuple(text)][1]

    def drafts(self, length: int, sampler: Sampler):
        """Every draft with its probability."""
        for tokens in itertools.product(range(3), repeat=length):
            chance = chain(Never(), self.drafter, self.expert, sampler, tokens)
            if chance > 0:
                yield chance, list(tokens)

    def outcomes(self, tokens: list[int], rule, sampler: Sampler, verification: str):
        """Every verdict on one draft, with its probability, by the package's own code; there is no row for a bonus."""
        rows = [[model(tokens[:j]) for j in range(len(tokens))] for model in (self.drafter, self.expert)]
        draft = drafted(tokens, np.array(rows[0], np.float32))
        return courses(lambda ways: verify(draft, np.array(rows[1], np.float32), rule, sampler, ways, verification=verification))

    def decisions(self, rule, sampler: Sampler, tokens):
        return decisions_along(rule, self.drafter, self.expert, sampler, tokens)


trees = st.builds(Tree, logit_rows(len(TEXTS), 3), logit_rows(len(TEXTS), 3))


def block_verification(tokens: list[int], q: list[list[float]], target: list[list[float]]) -> Counter:
    """Sun et al. 2403.10444, Algorithm 2, a second time in plain Python: {emitted tokens: probability}."""
    shares = [1.0]
    for x, below, above in zip(tokens, q, target):
        shares.append(min(1.0, shares[-1] * above[x] / below[x]))
    residuals = [[max(0.0, share * above - below) for above, below in zip(*rows)] for share, rows in zip(shares, zip(target, q))]
    chances = [1.0]
    for i in range(1, len(tokens)):
        chances.append(1.0 if shares[i] == 1 else sum(residuals[i]) / (sum(residuals[i]) + 1 - shares[i]))
    chances.append(shares[-1])
    found, later_coins_fell = Counter(), 1.0
    for kept in range(len(tokens), -1, -1):
        chance = later_coins_fell * chances[kept]
        later_coins_fell *= 1 - chances[kept]
        if kept == len(tokens):
            found[tuple(tokens)] = chance
        elif chance > 0:
            residual = residuals[kept] if sum(residuals[kept]) else target[kept]
            for token, weight in enumerate(residual):
                found[(*tokens[:kept], token)] += chance * weight / sum(residual)
    return found


def joint(tree: Tree, rule, sampler: Sampler, length: int, verification: str) -> Counter:
    """The distribution of the first ``length`` tokens: every draft, every verdict, and the chain of targets after a correction."""
    found = Counter()
    for drafting, tokens in tree.drafts(length, sampler):
        for chance, verdict in tree.outcomes(tokens, rule, sampler, verification):
            said = verdict.token_ids
            before = chain(rule, tree.drafter, tree.expert, sampler, said)
            for rest in itertools.product(range(3), repeat=length - len(said)):
                whole = chain(rule, tree.drafter, tree.expert, sampler, (*said, *rest))
                found[(*said, *rest)] += drafting * chance * (whole / before if before else 0.0)
    return found


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("rule", KINDS, ids=str)
def test_summed_over_all_drafts_and_coins_the_first_tokens_have_exactly_the_product_of_targets(rule, verification, length):
    for seed, sampler in enumerate([Sampler(), Sampler(0.7, top_k=2)]):
        tree = Tree.random(seed)
        found = joint(tree, rule, sampler, length, verification)
        for text in itertools.product(range(3), repeat=length):
            assert found[text] == pytest.approx(chain(rule, tree.drafter, tree.expert, sampler, text), abs=1e-12)


@pytest.mark.parametrize("rule", [rule for rule in KINDS if rule.remembers], ids=str)
def test_on_these_trees_the_past_of_such_a_rule_matters(rule):
    """Or the exact test above would not see whether a verdict uses it."""
    tree, sampler = Tree.random(0), Sampler()
    with_past = [tree.decisions(rule, sampler, text)[2].target for text in itertools.product(range(3), repeat=3)]
    without = [target_probs(rule, tree.drafter(text[:2]), tree.expert(text[:2])) for text in itertools.product(range(3), repeat=3)]
    assert not np.allclose(with_past, without, atol=1e-3)


@given(trees, judged_rules, sampler_settings, st.integers(1, 3))
def test_block_verification_is_the_published_algorithm_with_the_rules_target(tree, rule, settings, length):
    sampler = Sampler(**settings)
    for _, tokens in tree.drafts(length, sampler):
        decisions = tree.decisions(rule, sampler, tokens)
        expected = block_verification(
            tokens,
            [decision.evidence.drafter_probs[0].tolist() for decision in decisions],
            [decision.target[0].tolist() for decision in decisions],
        )
        found = Counter()
        for chance, verdict in tree.outcomes(tokens, rule, sampler, "block"):
            found[verdict.token_ids] += chance
        assert {text: found[text] for text in expected | found} == pytest.approx(
            {text: expected[text] for text in expected | found}, abs=1e-9
        )


@given(trees, judged_rules, sampler_settings, st.integers(1, 3))
def test_block_verification_keeps_at_least_as_many_tokens_on_average(tree, rule, settings, length):
    sampler = Sampler(**settings)

    def kept(verification: str) -> float:
        return sum(
            drafting * chance * (len(verdict.token_ids) - ("corrected" in verdict.origins))
            for drafting, tokens in tree.drafts(length, sampler)
            for chance, verdict in tree.outcomes(tokens, rule, sampler, verification)
        )

    assert kept("block") >= kept("token") - 1e-9


def test_block_verification_keeps_more_where_a_later_token_makes_up_for_an_earlier_one():
    """The paper's example: q = (2/3, 1/3), p = (1/3, 2/3), two tokens: 10/9 kept against 11/9."""
    tree = Tree(*(np.log(np.array([row] * len(TEXTS))) for row in ([2 / 3, 1 / 3, 1e-300], [1 / 3, 2 / 3, 1e-300])))

    def kept(verification: str) -> float:
        return sum(
            drafting * chance * sum(origin == "matched" for origin in verdict.origins)
            for drafting, tokens in tree.drafts(2, Sampler())
            for chance, verdict in tree.outcomes(tokens, Strict(), Sampler(), verification)
        )

    assert kept("token") == pytest.approx(10 / 9)
    assert kept("block") == pytest.approx(11 / 9)


@given(st.one_of(judged_rules, st.builds(Fly, st.sampled_from([0.0, 0.3, 1.0]))), row_pairs(n_rows=8), st.integers(0, 99))
def test_at_temperature_zero_both_verifications_give_the_same_verdict_whatever_the_coins(rule, rows, seed):
    drafter, expert = rows
    draft = drafted(drafter.argmax(axis=-1).tolist(), drafter)
    verdicts = [
        verify(draft, np.vstack([expert, expert[:1]]), rule, Sampler(0), np.random.default_rng([seed, i]), verification=verification)
        for i, verification in enumerate(["token", "block"])
    ]
    assert verdicts[0] == verdicts[1]


@given(judged_rules, row_pairs(n_rows=3), st.integers(0, 99))
def test_a_rule_remembers_each_tested_token_of_a_block_once_and_nothing_behind_a_rejection(rule, rows, seed):
    rng = np.random.default_rng(seed)
    drafter, expert = rows
    tokens = [int(rng.choice(len(q), p=q)) for q in Sampler().probs(drafter)]
    for verification in ("token", "block"):
        verdict = verify(drafted(tokens, drafter), expert, rule, Sampler(), rng, verification=verification)
        assert len(verdict.deferred) == len(verdict.token_ids)
        assert len(verdict.trace) == (len(verdict.token_ids) if rule.remembers else 0)
        kept = sum(origin in ("accepted", "matched") for origin in verdict.origins)
        assert verdict.token_ids[:kept] + verdict.dropped_ids == tuple(tokens)
        assert [origin == "matched" for origin in verdict.origins[:kept]] == list(verdict.deferred[:kept])


@pytest.mark.parametrize(
    ("guesses", "tokens", "origins", "dropped"),
    [
        ([1, 2, 6, 4], (0, 1, 2, 3), ("matched", "matched", "matched", "corrected"), (6, 4)),
        ([6], (0, 1), ("matched", "corrected"), (6,)),
        ([1, 2], (0, 1, 2, 3), ("matched", "matched", "matched", "bonus"), ()),
        ([], (0, 1), ("matched", "bonus"), ()),
    ],
)
def test_guesses_behind_a_draft_are_the_experts_to_decide_and_what_follows_a_wrong_one_is_dropped(guesses, tokens, origins, dropped):
    says = np.where(np.eye(7) > 0, 0.0, -np.inf).astype(np.float32)  # the expert writes 0, 1, 2, ...
    draft = Draft([0], one_by_one(says[:1]), guesses=guesses)
    verdict = verify_rows(draft, Rows.of(says[: len(guesses) + 2]), Strict(), Sampler(1.0), np.random.default_rng(0))
    assert (verdict.token_ids, verdict.origins, verdict.dropped_ids) == (tokens, origins, dropped)
    assert verdict.deferred == (True,) * (len(tokens) - (origins[-1] == "bonus"))
    if origins[-1] == "bonus":  # without the row that it is drawn from there is none, and nothing else changes
        short = verify_rows(draft, Rows.of(says[: len(guesses) + 1]), Strict(), Sampler(1.0), np.random.default_rng(0))
        assert (short.token_ids, short.origins, short.dropped_ids) == (tokens[:-1], origins[:-1], ())
