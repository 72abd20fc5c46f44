from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.common.errors import SettingError
from speccascade_local.decoding.fidelity import Recording
from speccascade_local.runtime.settings import DEFAULTS, Settings
from speccascade_local.tokens.rows import MAX_ROWS

no_number = st.sampled_from(["1", None, [], {}, True, False, 1j, object(), math.nan, math.inf, -math.inf, 10**400])
no_flag = st.sampled_from(["yes", None, 0, 1, [], 1.0])
no_choice = st.sampled_from(["", "tokens", None, 0, [], b"token", True])


def outside(low: float, high: float) -> st.SearchStrategy[float]:
    return st.one_of(st.floats(max_value=low, exclude_max=True), st.floats(min_value=high, exclude_min=True))


def not_whole(low: int, high: int) -> st.SearchStrategy[object]:
    """Numbers outside the range, and floats, whole ones too: how many tokens is no float."""
    return st.one_of(st.integers(max_value=low - 1), st.integers(min_value=high + 1), st.floats(0, 9), no_number)


def without(strategy: st.SearchStrategy[object], *allowed: object) -> st.SearchStrategy[object]:
    return strategy.filter(lambda value: not any(value is each for each in allowed))


#: For each setting: how its error calls it, and values that it does not take.
BAD = {
    "rule": ("rule", st.sampled_from(["", "chow", "chow:x", "no_such_rule", "strict:1", "strict+nothing:1"])),
    "temperature": ("temperature", st.one_of(st.floats(max_value=0, exclude_max=True), no_number)),
    "top_k": ("top_k", not_whole(0, 2**31 - 1)),
    "top_p": ("top_p", st.one_of(outside(0, 1), st.just(0.0), no_number)),
    "min_p": ("min_p", st.one_of(outside(0, 1), no_number)),
    "top_n_sigma": ("top_n_sigma", st.one_of(st.floats(max_value=0, exclude_max=True), no_number)),
    "stop_token_ids": (
        "stop_token_ids",
        st.one_of(st.sampled_from(["1", b"1", 5, None, {}.items]), st.lists(not_whole(0, 2**31 - 1), min_size=1)),
    ),
    "min_tokens": ("min_tokens", not_whole(0, DEFAULTS.max_tokens)),
    "ignore_eos": ("ignore_eos", no_flag),
    "block_size": ("block_size", not_whole(0, MAX_ROWS - 1)),
    "max_tokens": ("max_tokens", not_whole(1, 2**31 - 1)),
    "seed": ("seed", without(not_whole(0, 2**63 - 1), None)),
    "stop": ("stop", st.sampled_from(["text", b"text", 5, None, [""], ["a", ""], [1], [b"a"], [None]])),
    "strict_first": ("strict_first", not_whole(0, 2**31 - 1)),
    "thinking_rule": ("rule", st.sampled_from(["", "chow", "chow:x", "no_such_rule", "strict:1"])),
    "verification": ("verification", no_choice),
    "bonus": ("bonus", no_choice),
    "fidelity": ("fidelity", no_flag),
    "logprobs": ("logprobs", without(not_whole(0, 2**31 - 1), None)),
    "audit": ("audit", no_flag),
    "logprobs_of": ("logprobs_of", st.one_of(no_choice, st.just("raw"))),  # "raw" needs a number of logprobs
    "model_logprobs": ("model_logprobs", st.one_of(no_flag, st.just(True))),  # True needs a number of logprobs
    "presence_penalty": ("presence_penalty", st.one_of(outside(-2, 2), no_number)),
    "frequency_penalty": ("frequency_penalty", st.one_of(outside(-2, 2), no_number)),
    "repetition_penalty": ("repetition_penalty", st.one_of(outside(0, 1e3), st.just(0.0), no_number)),
    "logit_bias": (
        "logit_bias",
        st.one_of(
            st.sampled_from([None, [], [1, 2], "1", 3]),
            st.dictionaries(not_whole(0, 2**31 - 1).filter(lambda v: v.__hash__ is not None), st.just(0.0), min_size=1, max_size=1),
            st.dictionaries(
                st.integers(0, 99), st.one_of(outside(-100, 100), no_number).filter(lambda bias: bias != -math.inf), min_size=1, max_size=2
            ),
        ),
    ),
    "grammar": ("grammar", st.sampled_from(["", " ", 5, b"root ::= x", 'root ::= "a', "no rule here"])),
    "json_schema": ("JSON schema", st.sampled_from(["", "{", "5", 5, [], {"type": object()}])),
}


def test_every_setting_is_put_to_the_test():
    assert set(BAD) == {field.name for field in fields(Settings)}


@pytest.mark.parametrize("name", BAD)
@given(data=st.data())
def test_a_value_that_a_setting_does_not_take_is_refused_by_name(name, data):
    called, values = BAD[name]
    with pytest.raises(SettingError) as refusal:
        Settings(**{name: data.draw(values)})
    assert called in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@given(
    temperature=st.floats(0, 5),
    top_k=st.integers(0, 99),
    top_p=st.floats(1e-9, 1),
    min_p=st.floats(0, 1),
    top_n_sigma=st.floats(0, 9),
    block_size=st.integers(1, MAX_ROWS - 1),
    max_tokens=st.integers(99, 2**31 - 1),
    min_tokens=st.integers(0, 99),
    ignore_eos=st.booleans(),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1)),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(min_size=1)),
    strict_first=st.integers(0, 99),
    verification=st.sampled_from(["token", "block"]),
    bonus=st.sampled_from(["expert", "cascade"]),
    fidelity=st.booleans(),
    audit=st.booleans(),
    logprobs=st.integers(0, 20),
    model_logprobs=st.booleans(),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(1e-3, 1e3),
    logit_bias=st.dictionaries(st.integers(0, 99), st.floats(-100, 100) | st.just(-math.inf)),
)
def test_every_value_in_range_is_taken_and_kept(**values):
    settings = Settings(**values)
    assert settings.as_dict() == DEFAULTS.as_dict() | values | {name: tuple(values[name]) for name in ("stop", "stop_token_ids")}
    assert settings.sampler.probs(np.zeros(3)).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "recording"),
    [
        ({}, Recording()),
        ({"fidelity": False}, None),
        ({"fidelity": False, "logprobs": 0}, Recording(0)),
        ({"logprobs": 3, "model_logprobs": True}, Recording(3, models=True)),
    ],
    ids=str,
)
def test_what_is_recorded_of_a_token_follows_from_the_settings(values, recording):
    assert Settings(**values).recording == recording


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "omit the other"),
        ({"model_logprobs": True}, "set logprobs to a number"),
        ({"bonus": "cascade", "block_size": 0}, "block_size 0"),
        ({"audit": True, "fidelity": False}, "fidelity=False records none"),
        ({"min_tokens": 5, "max_tokens": 4}, "cannot have both"),
        ({"min_tokens": 5, "grammar": 'root ::= "a"'}, "min_tokens forbids the end"),
        ({"ignore_eos": True, "json_schema": {}}, "ignore_eos forbids the end"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(values, said):
    with pytest.raises(SettingError, match=said):
        Settings(**values)
