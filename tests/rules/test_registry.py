from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import EVERY_RULE, all_rules, dial_values, row_pairs, rules_of

from speccascade_local.common.errors import SettingError
from speccascade_local.rules import registry
from speccascade_local.rules.combined import ADJUSTABLE, Budget, RegionalRule
from speccascade_local.rules.lossy_acceptance import DecisionTokens, Fly, Typical
from speccascade_local.rules.position_rules import Never, Opt, OptLog
from speccascade_local.rules.registry import METHODS, combine, describe, parse, target_probs
from speccascade_local.rules.routes import Route, TokenCascade
from speccascade_local.rules.rule import AlphaRule
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.tokens.rows import total_variation
from speccascade_local.tokens.sampler import Sampler

DIALS = [(method, name) for method in registry.METHODS.values() for name in method.dials]


@pytest.mark.parametrize(("method", "dial"), DIALS, ids=lambda value: getattr(value, "name", value))
@given(data=st.data())
def test_a_dial_outside_its_range_is_refused_with_the_range(method, dial, data):
    good = {name: data.draw(dial_values(method, name)) for name in method.dials}
    assert getattr(method(**good), dial) == good[dial]
    allowed = method.dials[dial]
    outside = [math.nan, math.inf, -math.inf]
    outside += [allowed.low - 1] if math.isfinite(allowed.low) else []
    outside += [allowed.high + 1] if math.isfinite(allowed.high) else []
    wrong = data.draw(st.sampled_from(outside))
    with pytest.raises(SettingError, match=f"{dial} of {method.name}") as caught:
        method(**(good | {dial: wrong}))
    assert str(wrong) in str(caught.value)
    assert allowed.allowed() in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("token_v4:0.3", "did you mean 'token_v3'"),
        ("nonsense", "known are strict, never, chow:ALPHA"),
        ("", "known are"),
        ("token_v3", "needs an alpha, a number from -1 to 1, such as 'token_v3:0.3'"),
        ("token_v3:", "needs an alpha"),
        ("token_v3:much", "needs an alpha.*got 'much'"),
        ("token_v3:0.3,0.4", "needs an alpha"),
        ("strict:0.3", "has no alpha"),
        ("chow:1.5", "0 to 1"),
        ("typical:0,0.3", "epsilon of typical is 0.0; it must be above 0"),
        ("typical:0.09,-1", "delta of typical is -1.0; it must be above 0"),
        ("budget:0.02,opt", "cannot move 'opt'"),
        ("budget:2", "limit of budget"),
        ("decision_tokens:1,1,2.5", "window of decision_tokens"),
        ("chow_quantile:-1,2", "quantile of chow_quantile"),
        ("mine:Short", "needs both its parentheses, such as 'mine:Short\\(\\)'"),
        ("mine:Short(3", "needs both its parentheses"),
        (0.3, "it must be a text"),
        (None, "it must be a text"),
    ],
)
def test_an_unknown_rule_is_refused_with_what_is_allowed(spec, message):
    with pytest.raises(SettingError, match=message):
        parse(spec)


# ---------------------------------------------------------------------------------------------- the text of a method

#: All but calibrated, which reads a file.
FREE_METHODS = [method for method in METHODS.values() if method is not registry.Calibrated]
composable = st.one_of(all_rules, rules_of(Fly)).filter(lambda rule: rule.asks_expert and not isinstance(rule, TokenCascade))


@pytest.mark.parametrize("method", FREE_METHODS, ids=lambda method: method.name)
@given(data=st.data())
def test_every_method_prints_as_what_it_is_parsed_from(method, data):
    made = method(**{name: data.draw(dial_values(method, name)) for name in method.dials})
    again = parse(str(made))
    assert again == made
    assert type(again) is method
    assert hash(again) == hash(made)
    assert str(again) == str(made)


@given(composable, st.integers(0, 9), st.none() | composable)
def test_a_regional_rule_prints_as_what_it_is_parsed_from(rule, first, thinking):
    if isinstance(rule, Budget) or (thinking and rule.remembers and thinking.remembers):
        thinking = None
    made = combine(rule, first, thinking)
    again = parse(str(made))
    assert (again, hash(again), str(again)) == (made, hash(made), str(made))
    assert parse(made) is made


@pytest.mark.parametrize(
    ("spec", "made"),
    [
        ("token_v3:0.3+strict_first:8+thinking:opt:0.5", RegionalRule(TokenV3(0.3), 8, Opt(0.5))),
        ("token_v3:0.3+thinking:opt:0.5+strict_first:8", RegionalRule(TokenV3(0.3), 8, Opt(0.5))),
        ("token_v3:0.3+strict_first:0", TokenV3(0.3)),
        ("budget:0.02,diff", Budget(0.02, "diff")),
        ("budget:0.02,token_v3", Budget(0.02)),
        ("typical:0.1,0.4", Typical(0.1, 0.4)),
        ("typical:0.1", Typical(0.1)),
        ("decision_tokens:1,1.5,8", DecisionTokens(1.0, 1.5, 8)),
    ],
)
def test_the_spellings_of_rules_with_several_parts(spec, made):
    assert parse(spec) == made
    assert parse(str(made)) == made


@given(st.sampled_from([*ADJUSTABLE]), st.floats(0, 1))
def test_a_budget_names_the_rule_that_it_moves_unless_that_is_the_usual_one(inner, limit):
    assert parse(str(Budget(limit, inner))) == Budget(limit, inner)
    assert ("," in str(Budget(limit, inner))) == (inner != "token_v3")


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_every_method_fills_every_column_of_the_table_of_methods(method):
    row = describe(method)
    assert [*row] == ["method", "what it does", "range", "lossless", "keeps every draft", "at temperature 0", "source"]
    assert row["what it does"].endswith(".")
    assert all(text and "\n" not in text for text in row.values())
    assert row["method"].split(":")[0] == method.name
    assert all(name in row["range"] and dial.allowed() in row["range"] for name, dial in method.dials.items())


@pytest.mark.parametrize("method", [*METHODS.values(), RegionalRule], ids=lambda method: method.name)
def test_every_method_says_in_one_line_what_it_trades(method):
    assert 20 <= len(method.trade) <= 130
    assert "\n" not in method.trade


@pytest.mark.parametrize("spec", [*registry.examples()])
def test_every_example_is_a_method(spec):
    assert parse(spec).name == spec.split(":")[0]


def test_methods_have_distinct_names():
    names = [method.name for method in METHODS.values()]
    assert len({*names}) == len(names)
    assert {rule.name for rule in EVERY_RULE} | {name for name, method in METHODS.items() if issubclass(method, Route)} == {*names}


# ---------------------------------------------------------------------------------------------- the ends of the dials

ALPHA_RULES = [method for method in METHODS.values() if issubclass(method, AlphaRule)]


@pytest.mark.parametrize("method", ALPHA_RULES, ids=lambda method: method.name)
@given(row_pairs(masked=False), st.sampled_from([0.0, 0.3, 1.0, 2.0]))
@example((np.array([[0.0, 1.0]]), np.zeros((1, 2))), 0.0)  # the drafter's token is a favorite of the expert's, and not its answer
def test_the_ends_that_a_dial_states_are_the_experts_distribution_and_the_drafters(method, rows, temperature):
    """An end at infinity is approached: 1e9 is as good as that."""
    p, q = (Sampler(temperature).probs(row) for row in reversed(rows))
    assume(p.shape[-1] > 1)  # with a single id no model is unsure
    distance = total_variation(p, q)[0]
    assume(not (issubclass(method, Opt | OptLog) and 0 < distance < 1e-6))
    lossless, lenient = (max(min(end, 1e9), -1e9) for end in method.ends())
    np.testing.assert_allclose(target_probs(method(lossless), *rows, temperature=temperature), p, atol=1e-9)
    if (
        method is not registry.position_rules.Fuzzy or distance < 1 - 1e-6
    ):  # its docstring says so: two that share nothing are as far as can be
        np.testing.assert_allclose(target_probs(method(lenient), *rows, temperature=temperature), q, atol=1e-9)


@pytest.mark.parametrize("method", ALPHA_RULES, ids=lambda method: method.name)
def test_the_ends_of_a_dial_are_values_that_it_takes_or_approaches(method):
    lossless, lenient = method.ends()
    assert lossless < lenient
    for end in (lossless, lenient):
        assert not math.isfinite(end) or method(end).alpha == end
    if method.name in ADJUSTABLE:
        assert math.isfinite(lossless)
        assert math.isfinite(lenient)


def test_only_never_leaves_the_expert_unasked():
    assert [method for method in METHODS.values() if not method.asks_expert] == [Never]
