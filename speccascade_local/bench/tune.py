"""Which rule, at which dial, gives what the user asked for: searched on some questions, confirmed on others.

Round by round every arm that is still in the race answers a few questions more; an arm leaves as soon as its interval says that it breaks
the user's limit or that another is better. The best of those that keep the limits are then measured on questions that took no part in
the choice. There a limit counts as kept only where the whole interval keeps it. Knows nothing of models.yaml and terminals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import pstdev

import numpy as np

from ..common.errors import SettingError
from ..rules.position_rules import Strict
from .grid import BASE, Arm
from .intervals import FEW, Estimate, Z, quality_change
from .rows import Row
from .summary import ArmSummary, summarize

#: Questions of each round.
ROUND = 8
#: Most arms that are measured on the other questions.
TRIALS = 3
#: Most questions to choose by: all others confirm, because what can be shown depends on how many they are.
MOST_TO_CHOOSE_BY = 80
#: More questions than this show nothing in practice.
MOST_QUESTIONS = 1_000_000
#: Asks one question, by its place, in one way; the answer as a row.
Ask = Callable[[Arm, int], Row]


@dataclass(frozen=True)
class Measured:
    """One arm on the questions that it and the expert alone have answered.

    gain: right answers more than the expert's, as a share. tv, calls: means over questions of an answer's distance from the expert and of
    its expert calls per token; tv is None unless the expert was asked about each token. Both gain and tv of strict are 0 by definition.
    spread: by limit, the standard deviation over questions of what it limits.
    """

    summary: ArmSummary
    gain: Estimate | None
    tv: Estimate | None
    calls: Estimate
    spread: dict[str, float]

    @classmethod
    def of(cls, rows: Sequence[Row], arm: str, farthest: float = 1.0) -> Measured:
        """From rows of the arm and of the expert alone, one of each question. farthest: the largest distance that an answer may have."""
        here = [row for row in rows if row["arm"] in (BASE, arm)]
        (summaries,) = summarize(here).by_temperature.values()
        summary = next(each for each in summaries if each.arm == arm)
        mine, base = ({row["question"]: row for row in here if row["arm"] == name} for name in (arm, BASE))
        calls = [min(1.0, row["expert_calls"] / row["tokens"]) for row in mine.values()]
        if summary.about["rule"] == Strict.name:
            nothing = Estimate(0.0, 0.0, 0.0, 0.0, summary.n)
            return cls(summary, nothing, nothing, _mean_of(calls, 1.0), {"expert_share": pstdev(calls)})
        distances = [_distance(row) for row in mine.values()]
        known = [distance for distance in distances if distance is not None]
        tv = _mean_of(known, max(farthest, *known)) if len(known) == len(distances) else None
        changes = [row["quality"] - base[question]["quality"] for question, row in mine.items() if row["quality"] is not None]
        spreads = {"max_quality_loss": changes, "budget": known, "expert_share": calls}
        spread = {name: pstdev(values) for name, values in spreads.items() if values}
        return cls(summary, summary.quality_gain, tv, _mean_of(calls, 1.0), spread)


@dataclass(frozen=True)
class Goal:
    """What matters to the user, as limits that must be kept. Raises SettingError for what means nothing.

    max_quality_loss: right answers that may be lost, as a share; without references, agreement with the expert takes their place.
    budget: mean total variation from the expert, at most. Under these the fastest arm wins. expert_share: expert calls per token, at
    most. min_speedup: at least. Where only these limit what an answer may cost, the arm with the best answers wins.
    """

    max_quality_loss: float | None = None
    expert_share: float | None = None
    budget: float | None = None
    min_speedup: float | None = None

    def __post_init__(self) -> None:
        limits = {"max_quality_loss": (0, 1), "expert_share": (0, 1), "budget": (0, 1), "min_speedup": (0, math.inf)}
        given = {name: getattr(self, name) for name in limits if getattr(self, name) is not None}
        if not given:
            raise SettingError("nothing was asked for; give --max-quality-loss, --expert-share, --budget or --min-speedup")
        for name, value in given.items():
            low, high = limits[name]
            if not (math.isfinite(value) and low <= value <= high):
                allowed = "0 or more" if high == math.inf else "from 0 to 1, or in percent"
                raise SettingError(f"{name} is {value!r:.20}; it must be a number {allowed}")
        if self.expert_share == 0 and self.budget is not None:
            raise SettingError("expert_share 0 and a budget contradict each other: without asking the expert no distance from it is known")

    @property
    def wants_speed(self) -> bool:
        """Whether, within the limits, faster is better; else better answers are."""
        return self.max_quality_loss is not None or self.budget is not None

    def merit(self, arm: Measured) -> Estimate:
        """What the arm with most of wins."""
        return arm.summary.speedup if self.wants_speed or arm.gain is None else arm.gain

    def kept(self, arm: Measured) -> bool:
        """Whether the arm keeps every limit, as far as was measured. Enough to choose by, and not to promise."""
        return all(excess.value <= 0 for excess in self.excesses(arm).values())

    def shown(self, arm: Measured) -> bool:
        """Whether the whole interval of each figure keeps its limit."""
        return all(excess.high <= 0 for excess in self.excesses(arm).values())

    def broken(self, arm: Measured) -> bool:
        """Whether it surely breaks a limit: all of an interval lies beyond."""
        return any(excess.low > 0 and arm.summary.n >= ROUND for excess in self.excesses(arm).values())

    def excesses(self, arm: Measured) -> dict[str, Estimate]:
        """By limit: how far the figure is beyond it; kept where that is 0 or less."""
        found = {}
        if self.max_quality_loss is not None and arm.gain is not None:
            found["max_quality_loss"] = _beyond(arm.gain, -self.max_quality_loss, least=True)
        if self.expert_share is not None:
            found["expert_share"] = _beyond(arm.calls, self.expert_share)
        if self.budget is not None:  # an arm that did not ask the expert about each token may be as far from it as can be
            unknown = Estimate(math.inf, math.inf, math.inf, math.inf, arm.summary.n)
            found["budget"] = unknown if arm.tv is None else _beyond(arm.tv, self.budget)
        if self.min_speedup is not None:
            found["min_speedup"] = _beyond(arm.summary.speedup, self.min_speedup, least=True)
        return found

    def enough(self, arm: Measured) -> int | None:
        """About how many questions would show that each limit is kept, if they went as these did; None where no number would."""
        needed = [_enough(excess, arm.spread.get(name)) for name, excess in self.excesses(arm).items()]
        return None if None in needed else max(filter(None, needed), default=1)


@dataclass(frozen=True)
class Trial:
    """An arm on the questions that took no part in the choice.

    faster: surely faster than the expert alone. shown: it surely keeps each limit. enough: about how many such questions would show that it
    keeps them; None where no number would.
    """

    arm: Arm
    measured: Measured
    faster: bool
    shown: bool
    enough: int | None


@dataclass(frozen=True)
class Choice:
    """What was found. arm: None where nothing is shown to keep the limits and to beat the expert alone.

    why: in words. trials: in their order. asked: answers of the search. left: how many arms were in the race to its end.
    """

    arm: Arm | None
    why: str
    trials: tuple[Trial, ...]
    asked: int
    left: int

    @property
    def chosen(self) -> Trial | None:
        """What the chosen arm showed."""
        return next((trial for trial in self.trials if trial.arm is self.arm), None)


def split(n: int, families: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Places of the questions to choose by and of those to confirm by, the same share of each family; in an order that mixes families.

    A third is to choose by, but at least FEW and at most MOST_TO_CHOOSE_BY. Raises SettingError where there are too few to tell anything.
    """
    if n < 2 * FEW:
        raise SettingError(f"{n} questions are too few to choose by some and confirm by others; give at least {2 * FEW}")
    rng = np.random.default_rng(seed)
    parts: tuple[list[int], list[int]] = ([], [])
    share = _to_choose_by(n)
    for at, place in enumerate(sorted(rng.permutation(n).tolist(), key=lambda place: families[place])):
        parts[(at + 1) * share // n == at * share // n].append(place)
    for part in parts:
        rng.shuffle(part)
    return parts


def in_all(to_confirm_by: int) -> int:
    """How many questions to give so that so many are left to confirm by."""
    return next(
        n for n in range(max(2 * FEW, to_confirm_by + FEW), to_confirm_by + MOST_TO_CHOOSE_BY + 1) if n - _to_choose_by(n) >= to_confirm_by
    )


def require_enough(goal: Goal, to_confirm_by: int) -> None:
    """Refuse a limit on right answers that so many questions cannot show, even if no answer is lost. Raises SettingError."""
    limit = goal.max_quality_loss
    if limit is None or _loss_of_ties(to_confirm_by) <= limit:
        return
    needed = _fewest(lambda n: _loss_of_ties(n) <= limit)
    if needed is None:
        raise SettingError(
            f"a loss of at most {limit:.2g} can never be shown; ask for more, or use strict, which has the expert's own quality"
        )
    raise SettingError(
        f"a loss of at most {100 * limit:.3g}% cannot be shown with {to_confirm_by} questions to confirm by, even if none is lost; "
        f"give {in_all(needed)} questions in all, or ask for {math.ceil(1000 * _loss_of_ties(to_confirm_by)) / 10:.1f}% or more"
    )


def tune(
    arms: Sequence[Arm],
    choose_by: Sequence[int],
    confirm_by: Sequence[int],
    ask: Ask,
    goal: Goal,
    on_step: Callable[[str, float], None] = lambda doing, fraction: None,
) -> Choice:
    """Search and confirm. ``arms`` must hold the expert alone, which is no candidate."""
    base = next(arm for arm in arms if arm.name == BASE)
    racing = [arm for arm in arms if arm is not base]
    rows: list[Row] = []
    found: dict[str, Measured] = {}
    for start in range(0, len(choose_by), ROUND):
        places = choose_by[start : start + ROUND]
        for place in places:
            rows += [ask(arm, place) for arm in (base, *racing)]
            on_step(f"choosing among {len(racing)}", len(rows) / (len(choose_by) * (len(racing) + 1)))
        found = {arm.name: Measured.of(rows, arm.name, _farthest(rows)) for arm in racing}
        racing = _still_racing(racing, found, goal)
        if not racing:
            return Choice(None, "no way of answering keeps the limits", (), len(rows), 0)
    kept = [arm for arm in racing if goal.kept(found[arm.name])]
    kept.sort(key=lambda arm: (goal.merit(found[arm.name]).value, found[arm.name].summary.speedup.value), reverse=True)
    if not kept:
        return Choice(None, "no way of answering keeps the limits", (), len(rows), len(racing))
    # The safest first; where they are alike in that, the one that promises least.
    merits = {arm.name: goal.merit(found[arm.name]).value for arm in kept}
    worst = {arm.name: max(excess.high for excess in goal.excesses(found[arm.name]).values()) for arm in kept}
    order = sorted(kept[:TRIALS], key=lambda arm: (worst[arm.name], merits[arm.name]))
    arm, why, trials = confirm(base, order, merits, confirm_by, ask, goal, _farthest(rows), on_step)
    return Choice(arm, why, trials, len(rows), len(racing))


def confirm(
    base: Arm,
    order: Sequence[Arm],
    merits: Mapping[str, float],
    places: Sequence[int],
    ask: Ask,
    goal: Goal,
    farthest: float = 1.0,
    on_step: Callable[[str, float], None] = lambda doing, fraction: None,
) -> tuple[Arm | None, str, tuple[Trial, ...]]:
    """The best of the arms that surely keep the limits and are surely faster than the expert alone; why; and what was measured.

    The arms are tested in the order given, which must not depend on these questions, until one is not shown to keep the limits. So each
    test has the full level, and still the chance that any arm passes which breaks a limit is that of one test (fixed-sequence testing;
    Angelopoulos et al. 2021, "Learn then Test", limit risks by it). An arm with less merit than one that has passed is left out.
    """
    best: Arm | None = None
    why, trials = "", []
    for arm in order:
        if best is not None and merits[arm.name] <= merits[best.name]:
            continue
        rows = []
        for i, place in enumerate(places, start=1):
            rows += [ask(each, place) for each in (base, arm)]
            on_step(f"confirming {arm.name}", i / len(places))
        measured = Measured.of(rows, arm.name, farthest)
        faster = measured.summary.speedup.low > 1
        trials.append(Trial(arm, measured, faster, goal.shown(measured), goal.enough(measured)))
        if not trials[-1].shown:
            why = f"{arm.method}: not shown to keep the limits with {len(places)} questions"
            break
        if faster:
            best = arm
        else:
            why = f"{arm.method} is not surely faster than the expert alone"
    if best is not None:
        why = f"{'the fastest' if goal.wants_speed else 'the best answers'} of those shown to keep the limits"
    return best, why, tuple(trials)


def _still_racing(racing: Sequence[Arm], found: dict[str, Measured], goal: Goal) -> list[Arm]:
    """Without those that surely break a limit, and those that are surely not as good as one that keeps them all."""
    possible = [arm for arm in racing if not goal.broken(found[arm.name])]
    safe = [goal.merit(found[arm.name]).low for arm in possible if goal.kept(found[arm.name]) and found[arm.name].summary.n >= ROUND]
    best = max(safe, default=-math.inf)
    return [arm for arm in possible if goal.merit(found[arm.name]).high >= best]


def _distance(row: Row) -> float | None:
    """Of one answer from the expert, per token; None unless the expert was asked about each."""
    fidelity = row["fidelity"]
    return fidelity["mean_tv"] if fidelity and fidelity["judged"] == row["tokens"] else None


def _farthest(rows: Sequence[Row]) -> float:
    """The largest distance of any answer in any way: what one more answer is reckoned with at most. 1 where none is known."""
    return max(filter(None, map(_distance, rows)), default=1.0)


def _mean_of(values: Sequence[float], most: float) -> Estimate:
    """Of values from 0 to ``most``; each end reckons with one more value, the worst for it."""
    shares = [value / most for value in values]
    above, below = (quality_change(each, [0.0] * len(each)) for each in (shares, [1 - share for share in shares]))
    return Estimate(above.value * most, (1 - below.high) * most, above.high * most, above.median * most, above.n)


def _beyond(figure: Estimate, limit: float, *, least: bool = False) -> Estimate:
    """How far a figure is above what it may be at most, or below what it must be at least."""
    if least:
        return replace(figure, value=limit - figure.value, low=limit - figure.high, high=limit - figure.low, median=limit - figure.median)
    return replace(figure, value=figure.value - limit, low=figure.low - limit, high=figure.high - limit, median=figure.median - limit)


def _enough(excess: Estimate, spread: float | None) -> int | None:
    """For how many questions the upper end is 0, if mean and spread stay as they are.

    The upper end lies Z standard errors above the mean, and further by what an interval adds where few differ, which falls as 1 / n.
    """
    if not excess.value < 0:
        return None
    width, n = excess.high - excess.value, excess.n
    spread = width * math.sqrt(n) / Z if spread is None else spread
    added = max(0.0, width - Z * spread / math.sqrt(n)) * (n + Z**2)
    return _fewest(lambda m: Z * spread / math.sqrt(m) + added / (m + Z**2) <= -excess.value)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest number of questions that is enough, if more are enough too; None where MOST_QUESTIONS are not."""
    if not enough(MOST_QUESTIONS):
        return None
    low, high = 0, MOST_QUESTIONS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _loss_of_ties(n: int) -> float:
    """The largest loss that ``n`` questions cannot exclude, if every answer is as good as the expert's."""
    return -quality_change([1.0] * n, [1.0] * n).low


def _to_choose_by(n: int) -> int:
    return max(FEW, min(n // 3, MOST_TO_CHOOSE_BY))
