"""Toy arms with a known trade-off: the search must find the best of them, and say so only where it can be told."""

from __future__ import annotations

import random

import pytest
from test_summary import row

from speccascade_local.bench.grid import BASE, Arm
from speccascade_local.bench.summary import summarized
from speccascade_local.bench.tuning import ROUND, TRIALS, Goal, split, tuned
from speccascade_local.errors import SettingError
from speccascade_local.rules import Strict
from speccascade_local.settings import DEFAULTS
from speccascade_local.token_rules import TokenV3

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8)
#: By alpha: how many times as fast as the expert, share of right answers lost, mean TV.
TRADE = {0.0: (1.1, 0.0, 0.0), 0.2: (1.5, 0.0, 0.01), 0.4: (2.0, 0.0, 0.03), 0.6: (2.5, 0.3, 0.1), 0.8: (3.0, 0.7, 0.3)}
BASE_ARM = Arm(BASE, Strict(), DEFAULTS)


def arms(alphas=ALPHAS):
    return [BASE_ARM, *(Arm(f"token_v3:{alpha}", TokenV3(alpha), DEFAULTS) for alpha in alphas)]


def asker(trade=TRADE, noise=0.1):
    rng, asked = random.Random(1), []

    def ask(arm, place):
        asked.append((arm.name, place))
        slow = random.Random(place).lognormvariate(0, 0.5)
        if arm is BASE_ARM:
            return row(f"q{place}", BASE, wall=slow)
        speed, loss, tv = trade[arm.method.alpha]
        wall = slow / speed * rng.lognormvariate(0, noise)
        return row(f"q{place}", arm.name, wall=wall, quality=float(rng.random() >= loss), tv=tv, expert_calls=10 / (speed * 3))

    return ask, asked


def choice(goal, trade=TRADE, n=120, alphas=ALPHAS):
    ask, asked = asker(trade)
    halves = split(n, ["f"] * n, seed=0)
    return tuned(arms(alphas), *halves, ask, goal), asked, halves


def test_the_fastest_that_loses_no_quality_is_found_and_confirmed_on_other_questions():
    found, asked, (choose_by, confirm_by) = choice(Goal(max_quality_loss=0.01))
    assert found.arm.method.alpha == 0.4
    assert found.measured.n == len(confirm_by)
    assert found.measured.speedup.low < 2.0 < found.measured.speedup.high * 1.02
    confirmed = {place for name, place in asked[found.asked :]}
    assert confirmed == set(confirm_by)
    assert not confirmed & set(choose_by)


def test_each_goal_has_its_own_best():
    assert choice(Goal(budget=0.02))[0].arm.method.alpha == 0.2
    assert choice(Goal(max_quality_loss=0.5))[0].arm.method.alpha == 0.6
    assert choice(Goal(expert_share=0.12))[0].arm.method.alpha == 0.8
    assert choice(Goal(min_speedup=2.7))[0].arm.method.alpha == 0.8


def test_where_only_the_cost_is_limited_the_best_answers_win_and_not_the_fastest():
    assert choice(Goal(expert_share=0.15))[0].arm.method.alpha == 0.6, "0.8 asks still less, and is wrong more often"
    assert choice(Goal(min_speedup=1.2))[0].arm.method.alpha == 0.4, "as right as 0.2, and faster"
    assert choice(Goal(min_speedup=1.2, max_quality_loss=0.4))[0].arm.method.alpha == 0.6


def test_who_was_never_compared_with_the_expert_keeps_no_limit_on_the_distance_from_it():
    measured = summarized([row(f"q{i}", arm, judged=judged) for i in range(9) for arm, judged in ((BASE, 10), ("never", 0))])
    never = measured.by_temperature[0.0][1]
    assert not Goal(budget=1.0).kept(never)
    assert Goal(budget=1.0).broken(never)
    assert Goal(max_quality_loss=0.0).kept(never)


def test_what_fails_on_other_questions_makes_room_for_the_next_but_not_for_ever():
    ask, _ = asker(dict.fromkeys(ALPHAS, (2.0, 0.0, 0.0)))
    halves = split(120, ["f"] * 120, seed=0)

    def lucky(*names):  # right wherever it is chosen by, wrong elsewhere
        return lambda arm, place: {**ask(arm, place), "quality": float(place in halves[0] or arm.name not in names)}

    found = tuned(arms(), *halves, lucky("token_v3:0.4"), Goal(max_quality_loss=0.01))
    assert found.arm is not None
    assert found.arm.method.alpha != 0.4
    assert found.tried == 2
    every = tuned(arms(), *halves, lucky(*(arm.name for arm in arms()[1:])), Goal(max_quality_loss=0.01))
    assert every.arm is None
    assert every.tried == TRIALS


def test_what_is_hopeless_is_not_asked_to_the_end():
    found, asked, (choose_by, _) = choice(Goal(max_quality_loss=0.01))
    times = {f"token_v3:{alpha}": sum(name == f"token_v3:{alpha}" for name, _ in asked[: found.asked]) for alpha in ALPHAS}
    assert times["token_v3:0.4"] == len(choose_by)
    assert times["token_v3:0.8"] <= 2 * ROUND, "it surely loses too much"
    assert times["token_v3:0.0"] <= 2 * ROUND, "it is surely slower"


def test_where_nothing_is_faster_the_expert_stays_and_it_is_said_why():
    slow = dict.fromkeys(ALPHAS, (0.7, 0.0, 0.0))
    found, *_ = choice(Goal(max_quality_loss=0.01), slow)
    assert found.arm is None
    assert "not surely faster than the expert alone" in found.why
    found, *_ = choice(Goal(min_speedup=9))
    assert found.arm is None
    assert found.why == "no way of answering keeps the limits"


def test_luck_on_the_first_half_does_not_count():
    ask, _ = asker()
    halves = split(120, ["f"] * 120, seed=0)

    def lucky(arm, place):  # right wherever it is chosen by, wrong elsewhere
        answer = ask(arm, place)
        return answer if arm is BASE_ARM else {**answer, "quality": float(place in halves[0])}

    found = tuned(arms(), *halves, lucky, Goal(max_quality_loss=0.01))
    assert found.arm is None
    assert "did not keep the limits on other questions" in found.why


def test_families_are_halved_and_mixed():
    families = ["a"] * 30 + ["b"] * 50
    one, other = split(80, families, seed=3)
    assert sorted([*one, *other]) == list(range(80))
    for half in (one, other):
        assert [sum(families[place] == family for place in half) for family in "ab"] == [15, 25]
        assert len({families[place] for place in half[:12]}) == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Goal(), "nothing was asked for"),
        (lambda: Goal(max_quality_loss=1.5), "max_quality_loss is 1.5; it must be a number from 0 to 1"),
        (lambda: Goal(budget=-0.1), "budget is -0.1"),
        (lambda: Goal(min_speedup=float("nan")), "min_speedup is nan"),
        (lambda: Goal(expert_share=0, budget=0.5), "expert_share 0 and a budget contradict each other"),
        (lambda: split(39, ["f"] * 39, 0), "39 questions are too few to choose by some and confirm by others; give at least 40"),
    ],
)
def test_what_cannot_be_told_is_refused(make, said):
    with pytest.raises(SettingError, match=said):
        make()
