from __future__ import annotations

import json

import pytest

from speccascade_local.rules import registry
from speccascade_local.rules.position_rules import Opt, Strict
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.runtime.compare import all_arms, compare, few_arms
from speccascade_local.runtime.settings import Settings

QUESTION = [{"role": "user", "content": "Write FizzBuzz for 15."}]
TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 1.0])


@TEMPERATURES
@pytest.mark.parametrize("rule", [registry.DEFAULT, Opt(0.2), TokenV3(-1)], ids=str)
def test_no_two_arms_are_the_same_and_every_method_is_one(temperature, rule):
    settings = Settings(temperature=temperature)
    arms = all_arms(settings, rule)
    described = [repr((str(arm.rule), arm.as_dict() | {"rule": None})) for arm in arms.values()]
    assert len(set(described)) == len(arms)
    names = {arm.rule.name for arm in arms.values()}
    known = {spec.split(":")[0] for spec in registry.examples()}
    assert names == known - ({"fly"} if temperature else set())
    assert str(rule) in arms
    for arm in arms.values():
        arm.rule.check(arm.sampler, arm.block_size)


def test_the_control_asks_the_expert_and_strict_under_the_truncation_that_the_rule_amounts_to():
    for rule, control in ((TokenV3(0.4), 0.6), (TokenV3(-1), 1.0), (Opt(0.2), 1 - registry.DEFAULT.alpha)):
        arms = all_arms(Settings(temperature=1.0, block_size=5), rule)
        controls = {name: arm for name, arm in arms.items() if arm.min_p}
        assert list(controls) == [f"expert min-p {control:.3g}", f"strict min-p {control:.3g}"]
        assert {arm.min_p for arm in controls.values()} == {control}
        assert all(arm.rule == Strict() for arm in controls.values())
        assert [arm.block_size for arm in controls.values()] == [0, 5]


def test_the_few_arms_ask_the_paper_rule_once_also_where_it_is_the_pairs_own():
    assert list(few_arms(Settings(), Opt(0.2), 0.9)) == [
        "drafter alone", "expert alone", "sequential cascade", "speculative decoding", "cascade opt:0.2"
    ]  # fmt: skip


@pytest.mark.slow
@TEMPERATURES
def test_every_arm_answers_on_the_real_pair_and_can_be_written_to_a_file(demo, temperature):
    arms = all_arms(Settings(temperature=temperature, seed=1, max_tokens=12), demo.rule)
    done: list[float] = []
    rows = compare(demo, demo.chat_ids(QUESTION), arms, repeat=2, on_step=done.append)
    assert [row.name for row in rows] == list(arms)
    assert done == pytest.approx([(i + 1) / (2 * len(arms)) for i in range(2 * len(arms))])
    by_name = {row.name: row for row in rows}
    assert by_name["expert alone"].speedup == 1.0
    assert by_name["drafter alone"].reply.stats.expert_calls == 0
    assert set(by_name["expert alone"].reply.origins) == {"expert"}
    assert "bonus" not in by_name[f"{demo.rule} cascade bonus"].reply.origins
    for row in rows:
        assert row.reply.stats.cached_tokens == 0, "every arm starts with cold caches"
        told = json.loads(json.dumps(row.as_dict(), allow_nan=False))
        assert (told["arm"], told["block_size"]) == (row.name, arms[row.name].block_size)
        assert len(told["dropped"]) == sum(token.dropped is not None for token in row.reply.tokens)
    if temperature == 0:
        texts = {by_name[name].reply.text for name in ("expert alone", "strict", "strict block")}
        assert len(texts) == 1
