from __future__ import annotations

import pytest

from speccascade_local.bench.grid import BASE, grid, parse_rules
from speccascade_local.bench.questions import Question, built_in_questions, in_turns
from speccascade_local.bench.run import COUNTS, key, measure, measuring_order, prompts_of
from speccascade_local.common.errors import PromptError
from speccascade_local.runtime.settings import Settings

QUESTIONS = in_turns(built_in_questions(), 1)[:3]
ARMS = grid(parse_rules("token_v3:0.8"), [4], [0.0, 1.0], Settings(max_tokens=12))
CLOCKS = {"wall_s", "first_s", "audit_s", "draft_s", "expert_s", "verify_s", "load_before"}


def measured(demo, done=(), stop_after=None, repetitions=1):
    rows = list(done)

    def write(row):
        rows.append(row)
        if len(rows) == stop_after:
            raise KeyboardInterrupt

    try:
        measure(demo, QUESTIONS, prompts_of(demo, QUESTIONS), ARMS, done=done, write=write, repetitions=repetitions)
    except KeyboardInterrupt:
        assert stop_after
    return rows


def repeatable(rows):
    return {key(row): {name: value for name, value in row.items() if name not in CLOCKS} for row in rows}


@pytest.mark.slow
def test_a_run_that_was_broken_off_gives_the_rows_of_one_that_was_not(demo):
    whole = measured(demo)
    assert len(whole) == len(repeatable(whole)) == len(QUESTIONS) * len(ARMS)
    for stop_after in (1, 7, 20):
        part = measured(demo, stop_after=stop_after)
        assert len(part) == stop_after
        assert repeatable(measured(demo, done=part)) == repeatable(whole)


def test_each_row_tells_what_was_asked_and_what_it_cost(demo):
    rows = {(row["arm"], row["temperature"]): row for row in measured(demo) if row["question"] == QUESTIONS[0].id}
    alone, cascade = rows[BASE, 0.0], rows["token_v3:0.8, blocks of 4", 0.0]
    assert alone["expert_calls"] == alone["tokens"] == sum(alone["yields"])
    assert alone["fidelity"]["mean_tv"] == 0
    assert cascade["expert_calls"] == len(cascade["yields"]) < cascade["tokens"] == sum(cascade["yields"])
    assert cascade["alpha"] == 0.8
    for row in rows.values():
        assert set(COUNTS) | CLOCKS <= set(row)
        assert row["quality"] in (0.0, 1.0)
        assert 0 < row["first_s"] <= row["wall_s"]
    assert len({row["seed"] for row in rows.values()}) == 1


def test_within_a_question_every_arm_has_its_turn_and_each_begins_once(demo):
    plan = list(measuring_order(ARMS, len(ARMS), 1))
    for place in range(len(ARMS)):
        assert sorted(arm.name for _, at, arm in plan if at == place) == sorted(arm.name for arm in ARMS)
    beginners = [next((arm.name, arm.settings.temperature) for _, at, arm in plan if at == place) for place in range(len(ARMS))]
    assert len(set(beginners)) == len(ARMS)


def test_a_question_that_cannot_be_asked_is_named_before_any_is(demo):
    long = Question(prompt="x" * 50_000, id="long")
    with pytest.raises(PromptError, match="question long: the prompt has"):
        prompts_of(demo, [*QUESTIONS, long])
