from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import all_rules, alphas, row_pairs, sampler_settings
from test_sampling import reference_probs

from speccascade_local import rules
from speccascade_local.errors import SettingError
from speccascade_local.rules import Chow, Diff, Evidence, Never, Opt, Strict, TokenV1, TokenV2, TokenV3, parse
from speccascade_local.sampling import Sampler
from speccascade_local.verify import target_probs


def reference_target(rule: rules.Rule, drafter_row: list[float], expert_row: list[float], settings: dict) -> list[float]:
    """The target distribution written from the formulas, one token at a time, sharing no code with the package."""
    vocabulary = range(len(drafter_row))
    q, p = reference_probs(drafter_row, **settings), reference_probs(expert_row, **settings)
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    qu, pu = reference_probs(drafter_row, **plain), reference_probs(expert_row, **plain)
    tv = sum(max(0.0, p[v] - q[v]) for v in vocabulary)
    alpha = getattr(rule, "alpha", None)
    match rule.name:
        case "never":
            return q
        case "strict":
            trusted = set()
        case "chow":
            trusted = set() if max(qu) < 1 - alpha else set(vocabulary)
        case "diff":
            trusted = set() if max(qu) < max(pu) - alpha else set(vocabulary)
        case "opt":
            trusted = set() if max(qu) < max(pu) - alpha * tv else set(vocabulary)
        case "token_v1":
            trusted = {v for v in vocabulary if qu[v] >= max(pu) - alpha}
        case "token_v2":
            trusted = {v for v in vocabulary if pu[v] >= max(pu) - alpha}
        case "token_v3":
            trusted = {v for v in vocabulary if pu[v] >= (1 - alpha) * max(pu)}
    allowed = reference_probs(expert_row, **(settings | {"temperature": settings["temperature"] or 1.0}))
    trusted = {v for v in trusted if allowed[v] > 0}
    eta = sum(q[v] for v in vocabulary if v not in trusted)
    return [(q[v] if v in trusted else 0.0) + eta * p[v] for v in vocabulary]


def _near_a_threshold(rule: rules.Rule, drafter_row: np.ndarray, expert_row: np.ndarray, settings: dict) -> bool:
    """Whether a test of the rule lies within rounding of its threshold, where two correct computations may differ."""
    evidence = Evidence(drafter_row[None], expert_row[None], Sampler(**settings))
    alpha = getattr(rule, "alpha", 0.0)
    gaps = {
        "chow": lambda: evidence.drafter_doubt - alpha,
        "diff": lambda: evidence.drafter_max - evidence.expert_max + alpha,
        "opt": lambda: evidence.drafter_max - evidence.expert_max + alpha * evidence.tv,
        "token_v1": lambda: evidence.drafter_plain - evidence.expert_max + alpha,
        "token_v2": lambda: evidence.expert_plain - evidence.expert_max + alpha,
        "token_v3": lambda: evidence.expert_plain - (1 - alpha) * evidence.expert_max,
    }
    gap = gaps.get(rule.name, lambda: np.ones(1))()
    return bool((np.abs(gap) < 1e-9).any())


@given(all_rules, row_pairs(), sampler_settings)
def test_the_target_equals_an_independent_computation_from_the_formulas(rule, rows, settings):
    drafter, expert = rows
    assume(not _near_a_threshold(rule, drafter[0], expert[0], settings))
    expected = reference_target(rule, [float(x) for x in drafter[0]], [float(x) for x in expert[0]], settings)
    np.testing.assert_allclose(target_probs(rule, drafter, expert, **settings)[0], expected, atol=1e-9)


@given(all_rules, row_pairs(n_rows=3), sampler_settings)
def test_every_target_is_a_distribution(rule, rows, settings):
    target = target_probs(rule, *rows, **settings)
    assert (target >= 0).all()
    np.testing.assert_allclose(target.sum(axis=-1), 1.0)


@given(all_rules.filter(lambda rule: rule.asks_expert), row_pairs(), sampler_settings)
def test_no_rule_but_never_emits_what_the_filters_deny_the_expert(rule, rows, settings):
    drafter, expert = rows
    denied = ~Sampler(**settings).probs_and_support(expert)[1]
    assert not target_probs(rule, drafter, expert, **settings)[denied].any()


LOSSLESS = [Strict(), Chow(0), Diff(-1), Opt(-1e9), TokenV1(-1), TokenV2(-1), TokenV2(-1e-6), TokenV3(-1), TokenV3(-1e-6)]
DRAFTER_ONLY = [Never(), Chow(1), Diff(1), Opt(1e9), TokenV1(1), TokenV2(1), TokenV3(1)]


@given(row_pairs(masked=False), sampler_settings)
@pytest.mark.parametrize("rule", LOSSLESS, ids=str)
def test_the_lossless_end_of_each_dial_is_the_experts_distribution(rule, rows, settings):
    drafter, expert = rows
    assume(drafter.shape[1] > 1)  # with a single id every rule is lossless and nobody is unsure
    assume(not (isinstance(rule, Opt) and Evidence(*rows, Sampler(**settings)).tv < 1e-6))  # TV 0: q and p are the same already
    np.testing.assert_allclose(target_probs(rule, drafter, expert, **settings), Sampler(**settings).probs(expert), atol=1e-9)


@given(row_pairs(masked=False), st.sampled_from([0.0, 0.3, 1.0, 2.0]))
@pytest.mark.parametrize("rule", DRAFTER_ONLY, ids=str)
def test_the_other_end_of_each_dial_is_the_drafters_distribution(rule, rows, temperature):
    drafter, expert = rows
    if isinstance(rule, Opt):
        assume(Evidence(*rows, Sampler(temperature)).tv > 1e-6)
    expected = Sampler(temperature).probs(drafter)
    np.testing.assert_allclose(target_probs(rule, drafter, expert, temperature=temperature), expected, atol=1e-9)


@given(row_pairs(masked=False), st.floats(0, 1))
def test_at_temperature_zero_each_rule_keeps_the_draft_exactly_when_its_table_says_so(rows, alpha):
    drafter, expert = rows
    a, b = int(np.argmax(drafter)), int(np.argmax(expert))
    assume(a != b)
    qu, pu = (np.exp(r[0].astype(float)) / np.exp(r[0].astype(float)).sum() for r in rows)
    table = {
        Chow(alpha): max(qu) - (1 - alpha),
        Diff(alpha): max(qu) - (max(pu) - alpha),
        Opt(alpha): max(qu) - (max(pu) - alpha),
        TokenV1(alpha): max(qu) - (max(pu) - alpha),
        TokenV2(alpha): pu[a] - (max(pu) - alpha),
        TokenV3(alpha): pu[a] - (1 - alpha) * max(pu),
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
    evidence = Evidence(same, same, Sampler())
    for rule in (Chow(0.5), Diff(0), Opt(0), TokenV1(0), TokenV2(0), TokenV3(0)):
        assert not rule.defer(evidence).any(), rule


def test_opt_defers_less_where_the_models_disagree_more():
    drafter = np.log(np.array([[0.55, 0.45]]))
    agreeing, disagreeing = np.log(np.array([[0.65, 0.35]])), np.log(np.array([[0.35, 0.65]]))
    rule = Opt(0.6)
    assert rule.defer(Evidence(drafter, agreeing, Sampler())).all()
    assert not rule.defer(Evidence(drafter, disagreeing, Sampler())).any()


def test_confidence_is_read_from_the_raw_logits_whatever_the_temperature():
    drafter, expert = np.log(np.array([[0.6, 0.4]])), np.log(np.array([[0.9, 0.1]]))
    for temperature in (0.3, 1.0, 3.0):
        evidence = Evidence(drafter, expert, Sampler(temperature))
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


@pytest.mark.parametrize("rule", rules.ALPHA_RULES.values(), ids=lambda rule: rule.name)
@given(data=st.data())
def test_alpha_outside_its_range_is_refused_with_the_range(rule, data):
    inside = data.draw(alphas(rule))
    assert rule(inside).alpha == inside
    outside = [math.nan, math.inf, -math.inf] + ([] if math.isinf(rule.low) else [rule.low - 1e-6, rule.high + 1e-6, 7.5])
    wrong = data.draw(st.sampled_from(outside))
    with pytest.raises(SettingError, match=rule.name) as caught:
        rule(wrong)
    assert str(wrong) in str(caught.value)
    assert rule.allowed() in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("token_v4:0.3", "did you mean 'token_v3'"),
        ("nonsense", "known are strict, never, chow:ALPHA"),
        ("", "known are"),
        ("token_v3", "needs an alpha"),
        ("token_v3:", "needs an alpha"),
        ("token_v3:much", "needs an alpha"),
        ("strict:0.3", "has no alpha"),
        ("chow:1.5", "0 to 1"),
        (0.3, "written as text"),
        (None, "written as text"),
    ],
)
def test_what_is_not_a_rule_is_refused_with_what_is(spec, said):
    with pytest.raises(SettingError, match=said):
        parse(spec)


def test_every_rule_says_in_one_line_what_it_trades():
    for rule in (*rules.PLAIN_RULES.values(), *rules.ALPHA_RULES.values()):
        assert 20 < len(rule.trade) < 120
        assert "\n" not in rule.trade
