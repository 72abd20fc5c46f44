"""What a user asks ``tune`` for, as limits, and whether an arm keeps them: as measured, and with confidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import pstdev

from ..common.errors import SettingError
from ..rules.position_rules import Strict
from .grid import BASE
from .intervals import Estimate, Z, quality_change
from .rows import Row
from .summary import ArmSummary, summarize

#: An arm breaks a limit only after this many questions; also the number of questions in a round of the search.
ROUND = 8
#: More questions than this are not feasible.
MOST_QUESTIONS = 1_000_000


@dataclass(frozen=True)
class Measurement:
    """One arm on the questions that it and the expert alone have answered. Of strict, gain and tv are 0 by definition."""

    summary: ArmSummary  # speed and quality
    gain: Estimate | None  # right answers more than the expert's, as a share; None without references
    tv: Estimate | None  # mean distance of an answer from the expert; None unless the expert was asked about each token
    calls: Estimate  # mean expert calls per token of an answer
    spread: dict[str, float]  # by limit, the standard deviation over questions of the figure that it limits

    @classmethod
    def of(cls, rows: Sequence[Row], arm: str, farthest: float = 1.0) -> Measurement:
        """Measure an arm by rows of it and of the expert alone, one of each question; no answer can be farther than ``farthest``."""
        here = [row for row in rows if row["arm"] in (BASE, arm)]
        (summaries,) = summarize(here).by_temperature.values()
        summary = next(each for each in summaries if each.arm == arm)
        mine, base = ({row["question"]: row for row in here if row["arm"] == name} for name in (arm, BASE))
        calls = [min(1.0, row["expert_calls"] / row["tokens"]) for row in mine.values()]
        if summary.about["rule"] == Strict.name:
            zero = Estimate(0.0, 0.0, 0.0, 0.0, summary.n)
            return cls(summary, zero, zero, _bounded_mean(calls, 1.0), {"expert_share": pstdev(calls)})
        distances = [distance_of(row) for row in mine.values()]
        known = [distance for distance in distances if distance is not None]
        tv = _bounded_mean(known, max(farthest, *known)) if len(known) == len(distances) else None
        changes = [row["quality"] - base[question]["quality"] for question, row in mine.items() if row["quality"] is not None]
        figures = {"max_quality_loss": changes, "budget": known, "expert_share": calls}
        spread = {name: pstdev(values) for name, values in figures.items() if values}
        return cls(summary, summary.quality_gain, tv, _bounded_mean(calls, 1.0), spread)


@dataclass(frozen=True)
class Goal:
    """What matters to the user, as limits. Raises SettingError for none, or for one that makes no sense.

    With one of the first two the fastest arm within the limits wins, else the arm with the best answers.

    Raises:
        SettingError: For no limit, or one that makes no sense.
    """

    # share of right answers that may be lost; without references, of answers that agree with the expert's
    max_quality_loss: float | None = None
    budget: float | None = None  # largest mean total variation from the expert
    expert_share: float | None = None  # largest number of expert calls per token
    min_speedup: float | None = None  # smallest speed relative to the expert alone

    def __post_init__(self) -> None:
        limits = {name: value for name, value in vars(self).items() if value is not None}
        if not limits:
            raise SettingError("no limit is set; give --max-quality-loss, --expert-share, --budget or --min-speedup")
        for name, value in limits.items():
            high, allowed = (math.inf, "0 or more") if name == "min_speedup" else (1, "from 0 to 1, or in percent")
            if not (math.isfinite(value) and 0 <= value <= high):
                raise SettingError(f"{name} is {value!r:.20}; it must be a number {allowed}")
        if self.expert_share == 0 and self.budget is not None:
            raise SettingError("expert_share 0 and a budget contradict each other: the distance is known only if the expert is asked")

    @property
    def wants_speed(self) -> bool:
        """Whether a faster arm is better within the limits; else better answers are."""
        return self.max_quality_loss is not None or self.budget is not None

    def merit(self, result: Measurement) -> Estimate:
        """Return the figure by which arms are ranked; the largest wins."""
        return result.summary.speedup if self.wants_speed or result.gain is None else result.gain

    def is_met(self, result: Measurement) -> bool:
        """Return whether each measured figure keeps its limit: enough to choose an arm, but no proof."""
        return all(excess.value <= 0 for excess in self.excesses(result).values())

    def is_confirmed(self, result: Measurement) -> bool:
        """Return whether the whole interval of each figure keeps its limit."""
        return all(excess.high <= 0 for excess in self.excesses(result).values())

    def is_broken(self, result: Measurement) -> bool:
        """Return whether the whole interval of a figure is beyond its limit."""
        return result.summary.n >= ROUND and any(excess.low > 0 for excess in self.excesses(result).values())

    def excesses(self, result: Measurement) -> dict[str, Estimate]:
        """Return by limit how far the figure is beyond it; 0 or less keeps it."""
        excesses = {}
        if self.max_quality_loss is not None and result.gain is not None:
            excesses["max_quality_loss"] = _shortfall(result.gain, -self.max_quality_loss)
        if self.expert_share is not None:
            excesses["expert_share"] = _excess(result.calls, self.expert_share)
        if self.budget is not None:  # without the expert's view of each token the distance may be the largest possible
            unknown = Estimate(math.inf, math.inf, math.inf, math.inf, result.summary.n)
            excesses["budget"] = unknown if result.tv is None else _excess(result.tv, self.budget)
        if self.min_speedup is not None:
            excesses["min_speedup"] = _shortfall(result.summary.speedup, self.min_speedup)
        return excesses

    def questions_needed(self, result: Measurement) -> int | None:
        """Return about how many questions like these would confirm each limit; None if no number would."""
        needed = [_questions_needed(excess, result.spread.get(name)) for name, excess in self.excesses(result).items()]
        return None if None in needed else max(filter(None, needed), default=1)


def distance_of(row: Row) -> float | None:
    """Return an answer's distance from the expert per token; None unless the expert was asked about each."""
    fidelity = row["fidelity"]
    return fidelity["mean_tv"] if fidelity and fidelity["judged"] == row["tokens"] else None


def fewest_questions(is_enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number that is enough, if more are enough too; None if MOST_QUESTIONS are not."""
    if not is_enough(MOST_QUESTIONS):
        return None
    low, high = 0, MOST_QUESTIONS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _bounded_mean(values: Sequence[float], most: float) -> Estimate:
    """Return the mean of values from 0 to ``most``; each end of its interval counts one more value, the worst for it."""
    shares = [value / most for value in values]
    above, below = (quality_change(each, [0.0] * len(each)) for each in (shares, [1 - share for share in shares]))
    return Estimate(above.value * most, (1 - below.high) * most, above.high * most, above.median * most, above.n)


def _excess(figure: Estimate, limit: float) -> Estimate:
    """Return how far a figure is above its upper limit."""
    return replace(figure, value=figure.value - limit, low=figure.low - limit, high=figure.high - limit, median=figure.median - limit)


def _shortfall(figure: Estimate, limit: float) -> Estimate:
    """Return how far a figure is below its lower limit."""
    return replace(figure, value=limit - figure.value, low=limit - figure.high, high=limit - figure.low, median=limit - figure.median)


def _questions_needed(excess: Estimate, spread: float | None) -> int | None:
    """Return for how many questions the upper end is 0, if mean and spread stay the same.

    The upper end lies Z standard errors above the mean, and further by what an interval adds where few answers differ; that falls as 1 / n.
    """
    if not excess.value < 0:
        return None
    width, n = excess.high - excess.value, excess.n
    spread = width * math.sqrt(n) / Z if spread is None else spread
    added = max(0.0, width - Z * spread / math.sqrt(n)) * (n + Z**2)
    return fewest_questions(lambda m: Z * spread / math.sqrt(m) + added / (m + Z**2) <= -excess.value)
