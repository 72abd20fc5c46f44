from __future__ import annotations

import random

import pytest
from benchmark_rows import row

from speccascade_local.bench.grid import BASE
from speccascade_local.bench.summary import summarize
from speccascade_local.common.errors import CatalogError


def of(rows, arm, temperature=0.0):
    return next(each for each in summarize(rows).by_temperature[temperature] if each.arm == arm)


def test_a_planted_speed_up_and_quality_loss_are_found():
    rng = random.Random(2)
    rows = []
    for i in range(80):
        slow = rng.lognormvariate(0, 0.6)
        rows.append(row(f"q{i}", BASE, wall=slow, quality=float(i % 10 > 0)))
        rows.append(row(f"q{i}", "fast", wall=slow / 2 * rng.lognormvariate(0, 0.05), quality=float(i % 10 > 2), tv=0.1))
    fast = of(rows, "fast")
    assert fast.speedup.low < 2.0 < fast.speedup.high
    assert fast.speedup.low > 1.9
    assert fast.quality == pytest.approx(0.7)
    assert fast.quality_gain.value == pytest.approx(-0.2)
    assert fast.quality_gain.high < 0
    assert fast.mean_tv == pytest.approx(0.1)
    assert fast.logprob == pytest.approx(-0.5)
    base = of(rows, BASE)
    assert (base.speedup.value, base.speedup.low, base.speedup.high) == (1, 1, 1)
    assert base.n == 80


def test_a_longer_text_does_not_look_faster():
    rows = [row(f"q{i}", arm, wall=wall, tokens=tokens) for i in range(5) for arm, wall, tokens in ((BASE, 1.0, 10), ("long", 2.0, 40))]
    long = of(rows, "long")
    assert long.speedup.value == 0.5
    assert long.speedup_per_token.value == 2.0
    assert long.tokens == 40


def test_time_per_solved_task_counts_the_wrong_answers_time_too():
    rows = [row(f"q{i}", arm, wall=1.0, quality=float(arm == BASE or i == 0)) for i in range(4) for arm in (BASE, "bad", "hopeless")]
    rows = [each | ({"quality": 0.0} if each["arm"] == "hopeless" else {}) for each in rows]
    assert of(rows, BASE).solved_s == 1.0
    assert of(rows, "bad").solved_s == 4.0
    assert of(rows, "hopeless").solved_s is None


def test_repetitions_are_one_observation():
    rows = [row("q", BASE, wall=wall, repetition=i) for i, wall in enumerate((1.0, 1.2, 9.0))]
    rows += [row("q", "x", wall=0.6, repetition=i) for i in range(3)]
    assert of(rows, "x").n == 1
    assert of(rows, "x").speedup.value == pytest.approx(2.0)


def test_without_references_there_is_no_quality_and_without_the_expert_no_distance():
    rows = [
        row(f"q{i}", arm, quality=None, judged=0 if arm == "drafter alone" else None) for i in range(3) for arm in (BASE, "drafter alone")
    ]
    alone = of(rows, "drafter alone")
    assert (alone.quality, alone.quality_gain, alone.solved_s, alone.mean_tv, alone.logprob) == (None,) * 5
    assert of(rows, BASE).mean_tv == 0


def test_only_questions_that_every_arm_has_answered_are_compared():
    rows = [row(f"q{i}", arm) for i in range(4) for arm in (BASE, "x") if (i, arm) != (3, "x")]
    summary = summarize(rows)
    assert summary.left_out == 1
    assert [each.n for each in summary.by_temperature[0.0]] == [3, 3]


def test_temperatures_are_apart_and_what_cannot_be_compared_is_refused():
    rows = [row("q", arm, temperature=temperature) for arm in (BASE, "x") for temperature in (0.0, 1.0)]
    assert list(summarize(rows).by_temperature) == [0.0, 1.0]
    with pytest.raises(CatalogError, match="no rows of 'expert alone' at temperature 0"):
        summarize([row("q", "x")])
    with pytest.raises(CatalogError, match="no question is answered by every arm yet"):
        summarize([row("q", BASE), row("p", "x")])


def test_a_flat_row_has_every_figure_with_its_interval():
    rows = [row(f"q{i}", arm) for i in range(3) for arm in (BASE, "x")]
    flat = of(rows, "x").as_dict()
    assert {"arm", "rule", "speedup", "speedup_low", "speedup_high", "quality_gain_low", "solved_s"} <= set(flat)
    assert not any(isinstance(value, (dict, list)) for value in flat.values())


def test_a_distance_is_unknown_unless_the_expert_was_asked_about_every_token():
    rows = [row(f"q{i}", arm, tv=0.0 if arm == BASE else 0.1, judged=1 if (i, arm) == (2, "cascade") else None)
            for i in range(5) for arm in (BASE, "cascade", "whole")]  # fmt: skip
    assert (of(rows, "cascade").mean_tv, of(rows, "cascade").logprob) == (None, None), "9 tokens of one answer are not judged"
    assert (of(rows, "whole").mean_tv, of(rows, "whole").logprob) == (pytest.approx(0.1), pytest.approx(-0.5))


def test_the_expert_beside_itself_is_exact_and_ties_of_another_arm_are_not():
    rows = [row(f"q{i}", arm) for i in range(20) for arm in (BASE, "strict")]
    for some in (rows, rows[:2]):
        assert of(some, BASE).quality_gain.exact
        assert of(some, BASE).speedup.exact
        assert of(some, BASE).speedup_per_token.exact
    gain = of(rows, "strict").quality_gain
    assert gain.value == 0
    assert gain.low < -0.1, "20 ties leave room for a loss of 14 points by the rule of three"


def test_where_strict_differs_from_the_experts_text_is_counted_at_temperature_0():
    own = list(range(10))
    texts = [own, [*own[:4], 99, *own[5:]], [*own[:6], 99], [*own, 99]]
    rows = [row(f"q{i}", BASE, token_ids=own, rule="strict") for i in range(4)]
    rows += [row(f"q{i}", "strict, auto blocks", token_ids=ids, rule="strict") for i, ids in enumerate(texts)]
    rows += [row(f"q{i}", "opt:0.1", token_ids=[99], rule="opt:0.1") for i in range(4)]
    strict = of(rows, "strict, auto blocks")
    assert (strict.parted, strict.parted_at) == (0.75, 7), "at tokens 5, 7 and 11"
    assert (of(rows, "opt:0.1").parted, of(rows, BASE).parted) == (None, None), "one promises no text, the other is the text"
    warm = [{**each, "temperature": 1.0} for each in rows]
    assert of(warm, "strict, auto blocks", 1.0).parted is None
    same = [each for each in rows if each["question"] == "q0"]
    assert (of(same, "strict, auto blocks").parted, of(same, "strict, auto blocks").parted_at) == (0, None)


def test_each_repetition_is_compared_with_the_experts_answer_of_the_same_repetition():
    rows = [row("q", arm, token_ids=[i], rule="strict", repetition=i) for i in range(3) for arm in (BASE, "strict")]
    rows.append(row("q", "strict", token_ids=[7], rule="strict", repetition=3))
    assert of(rows, "strict").parted == 0, "the fourth has nothing to be held against"
