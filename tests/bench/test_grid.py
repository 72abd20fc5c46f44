from __future__ import annotations

import pytest

from speccascade_local.bench.grid import BASE, grid, parse_list, parse_rules
from speccascade_local.common.errors import SettingError
from speccascade_local.rules import registry


def names(arms, temperature):
    return [arm.name for arm in arms if arm.settings.temperature == temperature]


def test_every_rule_is_asked_at_every_block_size_and_temperature_after_the_controls():
    arms = grid(parse_rules("token_v3:0.3,opt:0.2"), [5, "auto"], [0.0, 1.0])
    assert names(arms, 1.0) == [
        *(BASE, "drafter alone", "expert min-p 0.7", "strict, blocks of 5", "strict, auto blocks"),
        *("token_v3:0.3, blocks of 5", "token_v3:0.3, auto blocks", "opt:0.2, blocks of 5", "opt:0.2, auto blocks"),
    ]
    assert names(arms, 0.0) == [name for name in names(arms, 1.0) if "min-p" not in name]


def test_no_two_arms_are_the_same():
    arms = grid(parse_rules("strict,opt:0.2,opt:0.20,margin:0.9,never"), [3, 3, 5], [0.0, 0.0])
    assert names(arms, 0.0) == [
        *(BASE, "drafter alone", "strict, blocks of 3", "strict, blocks of 5", "opt:0.2, blocks of 3", "opt:0.2, blocks of 5"),
        "margin:0.9",  # and never is the drafter alone, whatever the blocks
    ]
    described = [tuple(sorted(map(str, arm.as_dict().items()))) for arm in arms]
    assert len(set(described)) == len(described)


def test_a_rule_without_meaning_under_the_settings_is_refused():
    with pytest.raises(SettingError, match="temperature 0 only"):
        grid(parse_rules("fly:0.3"), [10], [1.0])


def test_alphas_go_to_names_without_dials():
    found = parse_rules("token_v3,opt:0.2,strict,typical:0.09,0.3", [0.0, 0.5])
    assert list(map(str, found)) == ["token_v3:0.0", "token_v3:0.5", "opt:0.2", "strict", "typical:0.09,0.3"]
    with pytest.raises(SettingError, match="margin needs"):  # its dial is no alpha
        parse_rules("margin", [0.5])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: parse_rules(""), "names no rule"),
        (lambda: parse_rules("bogus"), "unknown rule"),
        (lambda: parse_list("3,x", int, "--block-size", "3,5"), "--block-size: 'x' in '3,x' is not allowed; separate values by commas"),
        (lambda: parse_list("1,", float, "--temperature", "0,1"), "--temperature: '' in '1,' is not allowed"),
    ],
)
def test_invalid_lists_are_refused(call, said):
    with pytest.raises(SettingError, match=said):
        call()


def test_every_method_can_stand_in_a_grid():
    arms = grid([registry.parse(spec) for spec in registry.examples()], [10], [0.0])
    assert {str(arm.method) for arm in arms} >= set(map(str, (registry.parse(spec) for spec in registry.examples())))
