"""Search the rule and dial that give what a user asks for: choose on some questions, confirm on others.

In each round every arm still in the race answers a few more questions. An arm leaves when its interval shows that it breaks a limit, or
that another arm is better. The best of those that keep the limits then answer questions that took no part in the choice. There a limit
counts as kept only if the whole interval keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import SettingError
from .goal import ROUND, Goal, Measurement, distance_of, fewest_questions
from .grid import BASE, Arm
from .intervals import FEW, quality_change
from .rows import Row

#: Most arms to confirm.
TRIALS = 3
#: Most questions to choose by. All others confirm, because their number decides what can be shown.
MOST_TO_CHOOSE_BY = 80
#: Asks the question at an index in one way, and returns the row.
Ask = Callable[[Arm, int], Row]
_NONE_LEFT = "no arm keeps the limits"


@dataclass(frozen=True)
class Trial:
    """An arm on the questions that confirm."""

    arm: Arm
    result: Measurement  # its measurement there
    is_faster: bool  # whether its whole interval is above the expert's speed
    is_confirmed: bool  # whether the whole interval of each figure keeps its limit
    questions_needed: int | None  # about how many such questions would confirm the limits; None if no number would


@dataclass(frozen=True)
class Choice:
    """The outcome of a search."""

    arm: Arm | None  # the best arm; None if none is confirmed to keep the limits and to be faster than the expert alone
    reason: str  # why, in words
    trials: tuple[Trial, ...]  # in their order
    answers: int  # number of answers of the search
    finalists: int  # number of arms in the race at its end

    @property
    def winner(self) -> Trial | None:
        """The trial of the best arm."""
        return next((trial for trial in self.trials if trial.arm is self.arm), None)


def split(n: int, families: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Return indices of questions to choose by and to confirm by, with the same share of each family, in random order.

    A third is to choose by, but at least FEW and at most MOST_TO_CHOOSE_BY. Raises SettingError for fewer than 2 * FEW questions.
    """
    if n < 2 * FEW:
        raise SettingError(f"{n} questions are too few to choose by some and confirm by others; give at least {2 * FEW}")
    rng = np.random.default_rng(seed)
    parts: tuple[list[int], list[int]] = ([], [])
    share = _number_to_choose_by(n)
    for at, index in enumerate(sorted(rng.permutation(n).tolist(), key=lambda index: families[index])):
        parts[(at + 1) * share // n == at * share // n].append(index)
    for part in parts:
        rng.shuffle(part)
    return parts


def total_questions(to_confirm_by: int) -> int:
    """Return how many questions are needed in all to leave this many to confirm by."""
    fewest, most = max(2 * FEW, to_confirm_by + FEW), to_confirm_by + MOST_TO_CHOOSE_BY
    return next(n for n in range(fewest, most + 1) if n - _number_to_choose_by(n) >= to_confirm_by)


def require_enough(goal: Goal, to_confirm_by: int) -> None:
    """Raise SettingError if this many questions cannot confirm the limit on right answers, even if no answer is lost."""
    limit = goal.max_quality_loss
    if limit is None or _loss_of_ties(to_confirm_by) <= limit:
        return
    needed = fewest_questions(lambda n: _loss_of_ties(n) <= limit)
    if needed is None:
        raise SettingError(
            f"a loss of at most {limit:.2g} can never be shown; allow more, or use strict, which has the expert's own quality"
        )
    raise SettingError(
        f"a loss of at most {100 * limit:.3g}% cannot be shown with {to_confirm_by} questions to confirm by, even if none is lost; "
        f"give {total_questions(needed)} questions in all, or allow {math.ceil(1000 * _loss_of_ties(to_confirm_by)) / 10:.1f}% or more"
    )


def tune(
    arms: Sequence[Arm],
    choose_by: Sequence[int],
    confirm_by: Sequence[int],
    ask: Ask,
    goal: Goal,
    on_step: Callable[[str, float], None] = lambda work, fraction: None,
) -> Choice:
    """Return the best arm, chosen by some questions and confirmed by others.

    Args:
        arms: The candidates, and the expert alone.
        choose_by: Indices of the questions to choose by.
        confirm_by: Indices of the questions to confirm by.
        ask: Answers a question in one way.
        goal: The limits.
        on_step: Called with the current work and the fraction of it that is done.
    """
    base = next(arm for arm in arms if arm.name == BASE)
    racing = [arm for arm in arms if arm is not base]
    rows: list[Row] = []
    results: dict[str, Measurement] = {}
    for start in range(0, len(choose_by), ROUND):
        for index in choose_by[start : start + ROUND]:
            rows += [ask(arm, index) for arm in (base, *racing)]
            on_step(f"choosing among {len(racing)}", len(rows) / (len(choose_by) * (len(racing) + 1)))
        results = {arm.name: Measurement.of(rows, arm.name, _farthest(rows)) for arm in racing}
        racing = _still_racing(racing, results, goal)
        if not racing:
            break
    within = [arm for arm in racing if goal.is_met(results[arm.name])]
    within.sort(key=lambda arm: (goal.merit(results[arm.name]).value, results[arm.name].summary.speedup.value), reverse=True)
    if not within:
        return Choice(None, _NONE_LEFT, (), len(rows), len(racing))
    # The safest first, and among equally safe ones the one of the least merit, because the first failure ends the tests.
    merits = {arm.name: goal.merit(results[arm.name]).value for arm in within}
    worst = {arm.name: max(excess.high for excess in goal.excesses(results[arm.name]).values()) for arm in within}
    order = sorted(within[:TRIALS], key=lambda arm: (worst[arm.name], merits[arm.name]))
    arm, reason, trials = confirm(base, order, merits, confirm_by, ask, goal, _farthest(rows), on_step)
    return Choice(arm, reason, trials, len(rows), len(racing))


def confirm(
    base: Arm,
    order: Sequence[Arm],
    merits: Mapping[str, float],
    indices: Sequence[int],
    ask: Ask,
    goal: Goal,
    farthest: float = 1.0,
    on_step: Callable[[str, float], None] = lambda work, fraction: None,
) -> tuple[Arm | None, str, tuple[Trial, ...]]:
    """Return the best arm that is confirmed to keep the limits and to be faster than the expert alone, the reason, and all trials.

    The arms are tested in the order given, which must not depend on these questions, until one fails to keep the limits. So each test has
    the full level, and still the chance that an arm passes which breaks a limit is that of one test (fixed-sequence testing; Angelopoulos
    et al. 2021, "Learn then Test", limit risks by it).

    Args:
        base: The expert alone.
        order: The candidates. One with no more merit than an arm that has passed is skipped.
        merits: Of each candidate by name.
        indices: The questions to ask.
        ask: Answers a question in one way.
        goal: The limits.
        farthest: The largest distance that an answer can have.
        on_step: Called with the current work and the fraction of it that is done.
    """
    best: Arm | None = None
    reason, trials = "", []
    for arm in order:
        if best is not None and merits[arm.name] <= merits[best.name]:
            continue
        rows = []
        for i, index in enumerate(indices, start=1):
            rows += [ask(each, index) for each in (base, arm)]
            on_step(f"confirming {arm.name}", i / len(indices))
        result = Measurement.of(rows, arm.name, farthest)
        trial = Trial(arm, result, result.summary.speedup.low > 1, goal.is_confirmed(result), goal.questions_needed(result))
        trials.append(trial)
        if not trial.is_confirmed:
            reason = f"{arm.method}: not confirmed to keep the limits with {len(indices)} questions"
            break
        if trial.is_faster:
            best = arm
        else:
            reason = f"{arm.method}: not confirmed to be faster than the expert alone"
    if best is not None:
        reason = f"{'the fastest' if goal.wants_speed else 'the best answers'} of those confirmed to keep the limits"
    return best, reason, tuple(trials)


def _still_racing(racing: Sequence[Arm], results: dict[str, Measurement], goal: Goal) -> list[Arm]:
    """Return the arms without those that break a limit, and those that are worse than one that keeps them all."""
    possible = [arm for arm in racing if not goal.is_broken(results[arm.name])]
    safe = [
        goal.merit(results[arm.name]).low for arm in possible if goal.is_met(results[arm.name]) and results[arm.name].summary.n >= ROUND
    ]
    best = max(safe, default=-math.inf)
    return [arm for arm in possible if goal.merit(results[arm.name]).high >= best]


def _farthest(rows: Sequence[Row]) -> float:
    """Return the largest known distance of an answer from the expert; 1 if none is known."""
    return max(filter(None, map(distance_of, rows)), default=1.0)


def _loss_of_ties(n: int) -> float:
    """Return the largest loss that ``n`` questions cannot exclude if every answer is as good as the expert's."""
    return -quality_change([1.0] * n, [1.0] * n).low


def _number_to_choose_by(n: int) -> int:
    return max(FEW, min(n // 3, MOST_TO_CHOOSE_BY))
