"""What a method is, and what follows from any rule's answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import all_rules, row_pairs, sampler_settings

import speccascade_local as sc
from speccascade_local.rules.evidence import Evidence
from speccascade_local.rules.lossy_acceptance import Lenience, Mentored
from speccascade_local.rules.position_rules import Never, Strict
from speccascade_local.rules.rule import Decision, Dial, Rule, blend
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler


@dataclass(frozen=True)
class Masked(Rule):
    """Defers the ids that it is given."""

    ids: tuple[int, ...] = ()
    whole: float = 1

    name: ClassVar[str] = "masked"
    dials: ClassVar[Mapping[str, Dial]] = {"whole": Dial(1, 8, whole=True)}

    def defer(self, evidence):
        return np.isin(np.arange(evidence.drafter.logits.shape[-1]), self.ids)[None]


def evidence_of(rows, settings) -> Evidence:
    return Evidence(*map(Rows.of, rows), Sampler(**settings))


@given(row_pairs(), sampler_settings, st.sets(st.integers(0, 8)))
def test_the_drafter_keeps_its_mass_on_trusted_tokens_and_the_rest_is_given_out_as_the_expert_would(rows, settings, ids):
    evidence = evidence_of(rows, settings)
    q, p = evidence.drafter_probs[0], evidence.expert_probs[0]
    trusted = [v not in ids and bool(evidence.expert_support[0, v]) for v in range(len(q))]
    left = math.fsum(q[v] for v in range(len(q)) if not trusted[v])
    decision = Decision(Masked(tuple(ids)), evidence)
    np.testing.assert_allclose(decision.target[0], [trusted[v] * q[v] + left * p[v] for v in range(len(q))], atol=1e-12)
    assert decision.deferred[0].tolist() == [not each for each in trusted]
    assert decision.tv[0] == pytest.approx(0.5 * np.abs(decision.target[0] - p).sum(), abs=1e-12)


@given(row_pairs(n_rows=3), sampler_settings)
def test_where_everything_is_deferred_the_target_is_the_expert_to_the_last_bit(rows, settings):
    evidence = evidence_of(rows, settings)
    decision = Decision(Strict(), evidence)
    np.testing.assert_array_equal(decision.target, evidence.expert_probs)
    assert not decision.tv.any()


def test_each_row_is_blended_for_itself():
    q, p = np.array([[0.5, 0.5]] * 2), np.array([[0.9, 0.1]] * 2)
    np.testing.assert_allclose(blend(np.array([[True, True], [False, True]]), q, p), [[0.9, 0.1], [0.95, 0.05]])


@given(row_pairs(), sampler_settings)
def test_never_leaves_even_the_filters_to_the_drafter(rows, settings):
    evidence = evidence_of(rows, settings)
    decision = Decision(Never(), evidence)
    np.testing.assert_array_equal(decision.target, evidence.drafter_probs)
    assert not decision.deferred.any()


@given(row_pairs(), sampler_settings, st.sampled_from([Lenience(0.5), Mentored(0.2)]))
def test_a_target_rule_defers_the_tokens_that_it_does_not_keep_with_certainty(rows, settings, rule):
    evidence = evidence_of(rows, settings)
    target = rule.target(evidence)
    decision = Decision(rule, evidence)
    np.testing.assert_array_equal(decision.target, target)
    for deferred in (decision.deferred, rule.defer(evidence)):
        np.testing.assert_array_equal(deferred, target < evidence.drafter_probs)


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3)])
def test_a_whole_dial_takes_a_whole_number_however_it_is_typed(value):
    assert str(Masked(whole=value)) == "masked:3"
    assert Masked(whole=value) == Masked(whole=3)


@pytest.mark.parametrize("value", [2.5, 0, 9, True, "3", None, math.nan, math.inf])
def test_a_whole_dial_refuses_anything_else_with_its_range(value):
    with pytest.raises(sc.SettingError, match=r"whole of masked .* it must be a whole number from 1 to 8"):
        Masked(whole=value)


def test_a_method_is_a_value_that_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Lenience(0.5).alpha = 0.7
    assert Lenience(1) == Lenience(1.0)
    assert repr(Lenience(np.float32(0.5)).alpha) == "0.5"


@given(all_rules, row_pairs(), sampler_settings)
def test_what_a_decision_says_of_single_tokens_and_distances_is_what_its_target_says(rule, rows, settings):
    evidence = evidence_of(rows, settings)
    decision, whole = (Decision(rule.at(evidence), evidence) for _ in range(2))  # the first has no target computed yet
    tv = float(decision.tv[0])
    for token in range(rows[0].shape[1]):
        assert decision.prob(token) == pytest.approx(float(whole.target[0, token]), abs=1e-15)
        assert decision.defers(token) == bool(whole.deferred[0, token])
    assert tv == pytest.approx(float(np.maximum(whole.target - evidence.expert_probs, 0).sum()), abs=1e-12)
