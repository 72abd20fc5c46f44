from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import EVERY_RULE, POSITION_RULES, all_rules, row_pairs, rules_of, sampler_settings

from speccascade_local.rules import registry
from speccascade_local.rules.combined import Budget
from speccascade_local.rules.evidence import Evidence
from speccascade_local.rules.lossy_acceptance import Fly, Lenience, Mentored, Typical
from speccascade_local.rules.position_rules import Chow, ChowLog, Diff, DiffLog, Fuzzy, Never, Opt, OptLog, Strict
from speccascade_local.rules.registry import parse, target_probs
from speccascade_local.rules.rule import Decision
from speccascade_local.rules.token_rules import Bild, TokenV1, TokenV2, TokenV3
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler


def evidence_of(drafter: np.ndarray, expert: np.ndarray, sampler: Sampler) -> Evidence:
    return Evidence(Rows.of(drafter), Rows.of(expert), sampler)


def dials_of(rule) -> list:
    return [getattr(rule, name) for name in rule.dials] + ([rule.inner] if isinstance(rule, Budget) else [])


def near_a_threshold(rule, drafter_row: np.ndarray, expert_row: np.ndarray, settings: dict) -> bool:
    """Whether a test of the rule lies within rounding of its threshold, where two correct computations may differ."""
    evidence = evidence_of(drafter_row[None], expert_row[None], Sampler(**settings))
    if isinstance(rule, Budget):
        inner = rule.at(evidence)
        middle = sum(registry.RULES[rule.inner].ends()) / 2
        spent = Decision(registry.RULES[rule.inner](middle), evidence).tv[0]
        return abs(spent - rule.limit) < 1e-9 or near_a_threshold(inner, drafter_row, expert_row, settings)
    first = (dials_of(rule) or [0.0])[0]
    e = evidence
    gaps = {
        "chow": lambda: e.drafter_doubt - first,
        "token_cascade": lambda: e.drafter_doubt - first,
        "chow_log": lambda: e.drafter_entropy - first,
        "diff": lambda: e.drafter_max - e.expert_max + first,
        "diff_log": lambda: e.drafter_entropy - e.expert_entropy - first,
        "opt": lambda: e.drafter_max - e.expert_max + first * e.tv,
        "opt_log": lambda: e.drafter_entropy - e.expert_entropy - first * e.tv,
        "fuzzy": lambda: e.js - first,
        "token_v1": lambda: e.drafter_plain - e.expert_max + first,
        "token_v2": lambda: e.expert_plain - e.expert_max + first,
        "token_v3": lambda: e.expert_plain - (1 - first) * e.expert_max,
        "lenience": lambda: e.expert_plain - (1 - first) * e.expert_max if settings["temperature"] == 0 else np.ones(1),
        "bild": lambda: -np.log(np.maximum(e.expert_plain, 1e-300)) - first,
        "typical": lambda: e.expert_plain - min(rule.epsilon, rule.delta * float(np.exp(-e.expert_entropy[0]))),
        "decision_tokens": lambda: e.cross_entropy - first,
    }
    gap = gaps.get(rule.name, lambda: np.ones(1))()
    return bool((np.abs(gap) < 1e-9).any())


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("kind", POSITION_RULES, ids=lambda kind: kind.name)
@settings(max_examples=40)
@given(data=st.data(), rows=row_pairs(), filters=sampler_settings)
def test_the_target_equals_an_independent_computation_from_the_formulas(kind, temperature, data, rows, filters):
    rule, settings = data.draw(rules_of(kind)), filters | {"temperature": temperature}
    drafter, expert = rows
    assume(not near_a_threshold(rule, drafter[0], expert[0], settings))
    expected = oracle.target(rule.name, dials_of(rule), [float(x) for x in drafter[0]], [float(x) for x in expert[0]], settings)
    tolerance = 1e-6 if isinstance(rule, Mentored) else 1e-9  # found by bisection, in both
    np.testing.assert_allclose(target_probs(rule, drafter, expert, **settings)[0], expected, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in EVERY_RULE if not isinstance(rule, Fly | Mentored)], ids=str)
def test_the_target_equals_an_independent_computation_over_a_vocabulary_as_wide_as_they_come(rule):
    """Mentored, whose reference would take hours, is held to its bound over such a row in test_lossy_acceptance."""
    n_vocab = 151_936
    rng = np.random.default_rng(11)
    drafter, expert = (4 * rng.normal(size=(2, n_vocab))).astype(np.float32)
    expert[rng.random(n_vocab) < 0.3] = -np.inf
    drafter[:50], expert[:50] = 12.0, 11.0  # ties at the top
    for chosen in (
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    ):
        expected = oracle.target(rule.name, dials_of(rule), drafter.tolist(), expert.tolist(), chosen)
        np.testing.assert_allclose(target_probs(rule, drafter, expert, **chosen)[0], expected, atol=1e-9)


@given(all_rules, row_pairs(n_rows=3), sampler_settings)
def test_every_target_is_a_distribution(rule, rows, settings):
    target = target_probs(rule, *rows, **settings)
    assert (target >= 0).all()
    np.testing.assert_allclose(target.sum(axis=-1), 1.0)


@given(all_rules.filter(lambda rule: rule.in_blocks), row_pairs(), sampler_settings)
def test_no_rule_that_settles_blocks_emits_what_the_filters_deny_the_expert(rule, rows, settings):
    drafter, expert = rows
    denied = ~Sampler(**settings).probs_and_support(expert)[1]
    assert not target_probs(rule, drafter, expert, **settings)[denied].any()


@given(row_pairs(masked=False))
def test_at_its_very_threshold_an_entropy_keeps_and_a_divergence_defers(rows):
    """Chow's log rule defers above alpha, the fuzzy one from alpha on: their papers' inequalities."""
    evidence = Evidence(*map(Rows.of, rows), Sampler())
    entropy, divergence = float(evidence.drafter_entropy[0]), float(evidence.js[0])
    assert not ChowLog(entropy).defer(evidence)[0]
    assume(0 <= divergence <= math.log(2))
    assert Fuzzy(divergence).defer(evidence)[0]


def test_bild_trusts_the_least_probable_token_at_a_dial_that_is_large_enough():
    rows = np.array([[0.0, -80.0]])
    evidence = Evidence(Rows.of(rows), Rows.of(rows), Sampler())
    assert Bild(79).defer(evidence).tolist() == [[False, True]]
    assert Bild(81).defer(evidence).tolist() == [[False, False]]


FAR = 1e9
LOSSLESS = [
    *(Strict(), Chow(0), ChowLog(0), Diff(-1), DiffLog(-FAR), Opt(-FAR), OptLog(-FAR), Fuzzy(0), TokenV1(-1), TokenV2(-1), TokenV2(-1e-6)),
    *(TokenV3(-1), TokenV3(-1e-6), Bild(0), Lenience(0), Mentored(0), Typical(1, 9), parse("decision_tokens:0,0"), Budget(0)),
    parse("token_cascade:0"),
]
DRAFTER_ONLY = [
    *(Never(), Chow(1), ChowLog(FAR), Diff(1), DiffLog(FAR), Opt(FAR), OptLog(FAR), TokenV1(1), TokenV2(1), TokenV3(1), Bild(FAR)),
    *(Lenience(1), Typical(1e-300, 9), parse("decision_tokens:1e9"), parse("token_cascade:1")),
]


@given(row_pairs(masked=False), sampler_settings)
@pytest.mark.parametrize("rule", LOSSLESS, ids=str)
def test_the_lossless_end_of_each_dial_is_the_experts_distribution(rule, rows, settings):
    drafter, expert = rows
    assume(drafter.shape[1] > 1)  # with a single id every rule is lossless and no model is unsure
    assume(not (isinstance(rule, Opt | OptLog) and evidence_of(*rows, Sampler(**settings)).tv < 1e-6))  # TV 0: q and p are the same already
    np.testing.assert_allclose(target_probs(rule, drafter, expert, **settings), Sampler(**settings).probs(expert), atol=1e-9)


@given(row_pairs(masked=False), st.sampled_from([0.0, 0.3, 1.0, 2.0]))
@pytest.mark.parametrize("rule", DRAFTER_ONLY, ids=str)
def test_the_other_end_of_each_dial_is_the_drafters_distribution(rule, rows, temperature):
    drafter, expert = rows
    if isinstance(rule, Opt | OptLog):
        assume(evidence_of(*rows, Sampler(temperature)).tv > 1e-6)
    expected = Sampler(temperature).probs(drafter)
    np.testing.assert_allclose(target_probs(rule, drafter, expert, temperature=temperature), expected, atol=1e-9)


@given(row_pairs(masked=False), st.floats(0, 1))
def test_at_temperature_zero_each_rule_keeps_the_draft_exactly_when_its_table_says_so(rows, alpha):
    drafter, expert = rows
    a, b = int(np.argmax(drafter)), int(np.argmax(expert))
    assume(a != b)

    def entropy(probs):
        return -sum(x * math.log(x) for x in probs if x > 0)

    qu, pu = (np.exp(r[0].astype(float)) / np.exp(r[0].astype(float)).sum() for r in rows)
    table = {
        Chow(alpha): max(qu) - (1 - alpha),
        Diff(alpha): max(qu) - (max(pu) - alpha),
        Opt(alpha): max(qu) - (max(pu) - alpha),
        TokenV1(alpha): max(qu) - (max(pu) - alpha),
        TokenV2(alpha): pu[a] - (max(pu) - alpha),
        TokenV3(alpha): pu[a] - (1 - alpha) * max(pu),
        Lenience(alpha): pu[a] - (1 - alpha) * max(pu),
        Bild(alpha): alpha + math.log(pu[a]),
        Typical(alpha + 1e-3, 1): pu[a] - min(alpha + 1e-3, math.exp(-entropy(pu))),
        ChowLog(alpha): alpha - entropy(qu),
        DiffLog(alpha): entropy(pu) + alpha - entropy(qu),
        OptLog(alpha): entropy(pu) + alpha - entropy(qu),
        Fuzzy(min(alpha, 0.69)): -1.0,
        Mentored(alpha): -1.0,
    }
    for rule, margin in table.items():
        if abs(margin) > 1e-9:
            target = target_probs(rule, drafter, expert, temperature=0)[0]
            assert target[a if margin > 0 else b] == 1.0, rule


def test_the_lossless_end_of_chow_holds_for_a_drafter_that_is_as_sure_as_floats_can_be():
    drafter, expert = np.array([[60.0, 0.0, 0.0]]), np.array([[1.0, 2.0, 0.0]])
    np.testing.assert_allclose(target_probs("chow:0", drafter, expert), Sampler().probs(expert))


def test_ties_keep_the_draft():
    same = np.log(np.array([[0.5, 0.5]], np.float32))
    evidence = evidence_of(same, same, Sampler())
    for rule in (Chow(0.5), Diff(0), DiffLog(0), Opt(0), OptLog(0), TokenV1(0), TokenV2(0), TokenV3(0), Bild(-math.log(0.5))):
        assert not rule.defer(evidence).any(), rule


def test_opt_defers_less_where_the_models_disagree_more():
    drafter = np.log(np.array([[0.55, 0.45]]))
    agreeing, disagreeing = np.log(np.array([[0.65, 0.35]])), np.log(np.array([[0.35, 0.65]]))
    rule = Opt(0.6)
    assert rule.defer(evidence_of(drafter, agreeing, Sampler())).all()
    assert not rule.defer(evidence_of(drafter, disagreeing, Sampler())).any()


def test_confidence_is_read_from_the_raw_logits_whatever_the_temperature():
    drafter, expert = np.log(np.array([[0.6, 0.4]])), np.log(np.array([[0.9, 0.1]]))
    for temperature in (0.3, 1.0, 3.0):
        evidence = evidence_of(drafter, expert, Sampler(temperature))
        assert Chow(0.39).defer(evidence).all()
        assert not Chow(0.41).defer(evidence).any()


@given(all_rules)
def test_a_rule_is_a_value_that_prints_and_parses_back_to_itself(rule):
    assert parse(str(rule)) == rule
    assert parse(rule) is rule
    assert hash(parse(str(rule))) == hash(rule)


def test_the_documented_spelling_is_what_a_rule_prints():
    assert str(TokenV3(0.3)) == "token_v3:0.3"
    assert str(Diff(1)) == str(Diff(1.0)) == "diff:1.0"
    assert str(Strict()) == "strict"
