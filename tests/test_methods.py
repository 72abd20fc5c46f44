from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import dial_values

from speccascade_local import methods
from speccascade_local.errors import SettingError
from speccascade_local.methods import parse

DIALS = [(method, name) for method in methods.METHODS.values() for name in method.dials]


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
    ("spec", "said"),
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
        (0.3, "written as text"),
        (None, "written as text"),
    ],
)
def test_what_is_not_a_rule_is_refused_with_what_is(spec, said):
    with pytest.raises(SettingError, match=said):
        parse(spec)
