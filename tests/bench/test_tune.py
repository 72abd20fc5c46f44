"""Toy arms with a known trade-off: the search must find the best of them, and say so only if the questions confirm it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from benchmark_rows import row
from hypothesis import given
from hypothesis import strategies as st
from tuning import passing

from speccascade_local.bench.goal import ROUND, Goal, Measurement
from speccascade_local.bench.grid import BASE, Arm
from speccascade_local.bench.tune import MOST_TO_CHOOSE_BY, TRIALS, confirm, require_enough, split, total_questions, tune
from speccascade_local.common.errors import SettingError
from speccascade_local.rules.position_rules import Strict
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.runtime.settings import DEFAULTS

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


def choice(goal, trade=TRADE, n=600, alphas=ALPHAS):
    ask, asked = asker(trade)
    halves = split(n, ["f"] * n, seed=0)
    return tune(arms(alphas), *halves, ask, goal), asked, halves


def measured(n, farthest=1.0, **more):
    """Of an arm that differs from the expert as ``more`` says; a list has one value for each question."""
    values = [{name: value[i] if isinstance(value, list) else value for name, value in more.items()} for i in range(n)]
    rows = [row(f"q{i}", BASE) for i in range(n)]
    return Measurement.of(rows + [row(f"q{i}", "x", **{"wall": 0.5} | each) for i, each in enumerate(values)], "x", farthest)


def test_the_fastest_that_loses_no_quality_is_found_and_confirmed_on_other_questions():
    found, asked, (choose_by, confirm_by) = choice(Goal(max_quality_loss=0.01))
    assert found.arm.method.alpha == 0.4
    summary = found.winner.result.summary
    assert summary.n == len(confirm_by)
    assert summary.speedup.low < 2.0 < summary.speedup.high * 1.02
    later = {place for name, place in asked[found.answers :]}
    assert later == set(confirm_by)
    assert not later & set(choose_by)


@pytest.mark.slow
def test_each_goal_has_its_own_best():
    assert choice(Goal(budget=0.02))[0].arm.method.alpha == 0.2
    assert choice(Goal(max_quality_loss=0.5))[0].arm.method.alpha == 0.6
    assert choice(Goal(expert_share=0.12))[0].arm.method.alpha == 0.8
    assert choice(Goal(min_speedup=2.7))[0].arm.method.alpha == 0.8


@pytest.mark.slow
def test_with_limits_on_the_cost_only_the_best_answers_win():
    assert choice(Goal(expert_share=0.15))[0].arm.method.alpha == 0.6, "0.8 asks still less, and is wrong more often"
    assert choice(Goal(min_speedup=1.2))[0].arm.method.alpha == 0.4, "as right as 0.2, and faster"
    assert choice(Goal(min_speedup=1.2, max_quality_loss=0.4))[0].arm.method.alpha == 0.6


def test_who_was_not_compared_with_the_expert_at_every_token_keeps_no_limit_on_the_distance_from_it():
    for judged in (0, 1, [0] * 8 + [10], [9] + [10] * 8):
        seldom = measured(9, judged=judged)
        assert seldom.tv is None
        assert not Goal(budget=1.0).is_met(seldom)
        assert not Goal(budget=1.0).is_confirmed(seldom)
        assert Goal(budget=1.0).is_broken(seldom)
        assert Goal(budget=1.0).questions_needed(seldom) is None
        assert Goal(max_quality_loss=0.0).is_met(seldom)
    assert Goal(budget=1.0).is_confirmed(measured(9, judged=10))


def test_a_budget_never_chooses_an_arm_that_did_not_ask_the_expert():
    """A sequential cascade that asks the expert about one token of ten, and is right by luck."""
    ask, _ = asker(dict.fromkeys(ALPHAS, (2.0, 0.0, 0.0)))
    halves = split(60, ["f"] * 60, seed=0)
    found = tune(arms(), *halves, lambda arm, place: {**ask(arm, place), **unjudged(arm)}, Goal(budget=0.5))
    assert found.arm is None
    assert found.trials == ()


def unjudged(arm):
    return {} if arm is BASE_ARM else {"fidelity": {"mean_tv": 0.0, "max_tv": 0.0, "expert_logprob": None, "judged": 1}}


# --------------------------------------------------------------------------- confirmation


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 67, 240])
@pytest.mark.parametrize("wins", [0.0, 0.02])
@pytest.mark.parametrize("candidates", [1, 3])
def test_ways_that_lose_5_percent_pass_a_limit_of_1_percent_in_at_most_5_percent_of_trials(n, wins, candidates):
    assert passing(n, 0.01, 0.05, wins, candidates, trials=100) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("candidates", [1, 3])
def test_ways_that_lose_a_little_more_than_the_limit_pass_in_at_most_5_percent_of_trials(candidates):
    """The hardest case, for any number of arms on the same questions."""
    assert passing(67, 0.08, 0.08, 0.0, candidates, trials=600) <= 0.05


@pytest.mark.slow
def test_arms_that_lose_nothing_pass_if_there_are_enough_questions():
    assert passing(394, 0.01, 0.0, trials=10) == 1
    assert passing(67, 0.01, 0.0, trials=10) == 0
    assert passing(394, 0.03, 0.005, 0.005, trials=40) > 0.8


@given(st.integers(1, 60), st.integers(0, 3), st.sampled_from([0.05, 0.1, 0.3]))
def test_a_limit_is_shown_only_where_the_whole_interval_keeps_it(n, lost, limit):
    found = measured(n + lost, quality=[0.0] * lost + [1.0] * n)
    goal = Goal(max_quality_loss=limit)
    assert goal.is_confirmed(found) == (-found.summary.quality_gain.low <= limit)
    assert goal.is_met(found) or not goal.is_confirmed(found)
    speed = Goal(min_speedup=1.5)
    assert speed.is_confirmed(found) == (found.summary.speedup.low >= 1.5)


def test_a_mean_distance_and_a_share_of_calls_have_intervals_too():
    distances = [0.02 * (i % 4) for i in range(40)]  # 0.03 on average
    found = measured(40, 0.06, tv=distances)
    assert found.tv.value == pytest.approx(0.03)
    assert 0.02 < found.tv.low < 0.03 < found.tv.high < 0.04
    assert Goal(budget=0.031).is_met(found)
    assert not Goal(budget=0.031).is_confirmed(found)
    assert Goal(budget=found.tv.high).is_confirmed(found)
    shares = measured(40, expert_calls=[2 + i % 3 for i in range(40)])
    assert shares.calls.low < 0.3 < shares.calls.high
    assert Goal(expert_share=0.3).is_met(shares)
    assert not Goal(expert_share=0.3).is_confirmed(shares)


def test_no_distance_on_a_few_questions_proves_none_on_all():
    """The bound is the farthest answer of any arm."""
    rows = [row(f"q{i}", arm) for i in range(20) for arm in (BASE, "x")]
    assert Measurement.of(rows, "x", farthest=0.4).tv.high == pytest.approx(0.4 * 0.161, abs=1e-3)
    assert Measurement.of(rows, "x").tv.high == pytest.approx(0.161, abs=1e-3)


def test_the_safest_is_confirmed_first_and_the_first_failure_ends_it():
    ask, _ = asker(dict.fromkeys(ALPHAS, (2.0, 0.0, 0.0)))
    slow, middle, fast = arms()[1:4]
    merits = {slow.name: 1.5, middle.name: 2.0, fast.name: 2.5}

    def failing(*bad):
        def answer(arm, place):
            return {**ask(arm, place), "quality": float(arm not in bad)}

        return confirm(BASE_ARM, [slow, middle, fast], merits, range(60), answer, Goal(max_quality_loss=0.1))

    arm, reason, trials = failing()
    assert (arm, [trial.is_confirmed for trial in trials]) == (fast, [True, True, True])
    assert reason == "the fastest of those confirmed to keep the limits"
    arm, reason, trials = failing(fast)
    assert (arm, [trial.is_confirmed for trial in trials]) == (middle, [True, True, False])
    arm, reason, trials = failing(slow)
    assert (arm, [trial.arm for trial in trials]) == (None, [slow])
    assert reason == f"{slow.method}: not confirmed to keep the limits with 60 questions"
    assert trials[0].questions_needed is None


def test_strict_loses_nothing_by_definition_and_does_not_end_the_tests_where_it_is_slow():
    ask, _ = asker(dict.fromkeys(ALPHAS, (2.0, 0.0, 0.0)))
    strict, lossy = Arm("strict, auto blocks", TokenV3(0.0), DEFAULTS), arms()[1]

    def answer(arm, place):  # under temperature 1, other words with the same seed
        more = {"rule": "strict", "wall": 9.0, "quality": float(place % 3 > 0)} if arm is strict else {}
        return {**ask(arm, place), **{"wall_s" if name == "wall" else name: value for name, value in more.items()}}

    arm, _, trials = confirm(BASE_ARM, [strict, lossy], {strict.name: 1.1, lossy.name: 2.0}, range(60), answer, Goal(max_quality_loss=0.1))
    assert [(trial.is_confirmed, trial.is_faster) for trial in trials] == [(True, False), (True, True)]
    assert arm is lossy
    assert trials[0].result.gain.exact


def test_an_arm_of_less_merit_than_a_confirmed_one_is_not_measured():
    ask, asked = asker(dict.fromkeys(ALPHAS, (2.0, 0.0, 0.0)))
    first, second = arms()[1:3]
    arm, _, trials = confirm(BASE_ARM, [first, second], {first.name: 2.0, second.name: 1.5}, range(60), ask, Goal(max_quality_loss=0.1))
    assert (arm, len(trials)) == (first, 1)
    assert {name for name, _ in asked} == {BASE, first.name}


def test_at_most_three_are_confirmed():
    found, asked, _ = choice(Goal(max_quality_loss=0.05), dict.fromkeys(ALPHAS, (2.0, 0.0, 0.0)))
    assert found.arm is not None
    assert 1 <= len(found.trials) <= TRIALS
    assert len({name for name, _ in asked[found.answers :]}) == len(found.trials) + 1


def test_the_number_of_questions_needed_is_exact_if_all_tie():
    enough = Goal(max_quality_loss=0.01).questions_needed(measured(20, quality=1.0))
    assert enough == 381
    require_enough(Goal(max_quality_loss=0.01), enough)
    with pytest.raises(SettingError, match="cannot be shown"):
        require_enough(Goal(max_quality_loss=0.01), enough - 1)


@pytest.mark.parametrize("limit", [1, 2, 3, 6])
def test_the_documents_say_how_many_questions_a_limit_takes(limit):
    enough = Goal(max_quality_loss=limit / 100).questions_needed(measured(20, quality=1.0))
    page = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    assert f"| {limit} % | {enough} | {total_questions(enough)} |" in page


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (1, 1), (2, 2)])
def test_the_number_of_questions_needed_confirms_the_limit(lost, won):
    """100 questions, and the same shares of the number needed."""
    goal = Goal(max_quality_loss=0.02)

    def of(n):
        lose, win = round(n * lost / 100), round(n * won / 100)
        rows = [row(f"q{i}", BASE, quality=float(not lose <= i < lose + win)) for i in range(n)]
        return Measurement.of(rows + [row(f"q{i}", "x", wall=0.5, quality=float(i >= lose)) for i in range(n)], "x")

    enough = goal.questions_needed(of(100))
    assert goal.is_confirmed(of(round(1.15 * enough)))
    assert not goal.is_confirmed(of(round(0.85 * enough)))


def test_the_number_of_questions_needed_confirms_a_distance_and_a_speed():
    rng = random.Random(4)
    few, many = ([rng.random() * 0.04 for _ in range(n)] for n in (40, 4000))
    goal = Goal(budget=0.023)
    enough = goal.questions_needed(measured(40, 0.04, tv=few))
    assert goal.is_confirmed(measured(2 * enough, 0.04, tv=many[: 2 * enough]))
    walls = [0.5 * rng.lognormvariate(0, 0.3) for _ in range(4000)]
    goal = Goal(min_speedup=1.9)
    enough = goal.questions_needed(measured(40, wall=walls[:40]))
    assert goal.is_confirmed(measured(2 * enough, wall=walls[: 2 * enough]))


@pytest.mark.slow
def test_too_few_questions_for_a_limit_are_refused_before_anything_is_asked():
    for n in (20, 67, 380):
        with pytest.raises(
            SettingError, match=f"a loss of at most 1% cannot be shown with {n} questions to confirm by.* give 461 questions"
        ):
            require_enough(Goal(max_quality_loss=0.01), n)
    require_enough(Goal(max_quality_loss=0.01), 381)
    require_enough(Goal(budget=0.01), 20)
    with pytest.raises(SettingError, match=r"allow 16\.2% or more"):
        require_enough(Goal(max_quality_loss=0.01), 20)
    require_enough(Goal(max_quality_loss=0.162), 20)
    with pytest.raises(SettingError, match="a loss of at most 0 can never be shown"):
        require_enough(Goal(max_quality_loss=0.0), 10_000)


@given(st.integers(20, 3000))
def test_the_total_leaves_enough_questions_to_confirm_by(wanted):
    total = total_questions(wanted)
    assert len(split(total, [""] * total, 0)[1]) >= wanted
    assert total == 40 or len(split(total - 1, [""] * total, 0)[1]) < wanted


# --------------------------------------------------------------------------- search


def test_a_hopeless_arm_leaves_the_race_early():
    found, asked, (choose_by, _) = choice(Goal(max_quality_loss=0.01))
    times = {f"token_v3:{alpha}": sum(name == f"token_v3:{alpha}" for name, _ in asked[: found.answers]) for alpha in ALPHAS}
    assert times["token_v3:0.4"] == len(choose_by)
    assert times["token_v3:0.8"] <= 2 * ROUND, "it surely loses too much"
    assert times["token_v3:0.0"] <= 2 * ROUND, "it is surely slower"


def test_without_a_faster_arm_the_choice_is_none_with_a_reason():
    slow = dict.fromkeys(ALPHAS, (0.7, 0.0, 0.0))
    found, *_ = choice(Goal(max_quality_loss=0.01), slow)
    assert found.arm is None
    assert "not confirmed to be faster than the expert alone" in found.reason
    found, *_ = choice(Goal(min_speedup=9))
    assert found.arm is None
    assert found.reason == "no arm keeps the limits"


def test_luck_on_the_first_part_does_not_count():
    ask, _ = asker()
    halves = split(120, ["f"] * 120, seed=0)

    def lucky(arm, place):  # right wherever it is chosen by, wrong elsewhere
        answer = ask(arm, place)
        return answer if arm is BASE_ARM else {**answer, "quality": float(place in halves[0])}

    found = tune(arms(), *halves, lucky, Goal(max_quality_loss=0.05))
    assert (found.arm, found.winner) == (None, None)
    assert found.reason.endswith("not confirmed to keep the limits with 80 questions")


@pytest.mark.parametrize(("n", "to_choose_by"), [(40, 20), (60, 20), (90, 30), (474, MOST_TO_CHOOSE_BY)])
def test_families_are_parted_alike_and_mixed(n, to_choose_by):
    families = ["a"] * (n // 3) + ["b"] * (n - n // 3)
    parts = split(n, families, seed=3)
    assert sorted([*parts[0], *parts[1]]) == list(range(n))
    assert [len(part) for part in parts] == [to_choose_by, n - to_choose_by]
    for part in parts:
        assert abs(sum(families[place] == "a" for place in part) - len(part) / 3) <= 1
        assert len({families[place] for place in part[:12]}) == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Goal(), "no limit is set"),
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
