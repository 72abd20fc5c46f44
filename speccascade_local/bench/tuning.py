"""Which rule, at which dial, gives what the user asked for: searched on some questions, confirmed on others.

Round by round every arm that is still in the race answers a few questions more; an arm leaves as soon as its interval says that it breaks
the user's limit or that another is better. The best of those that keep the limits is then measured on questions that took no part in
the choice, and only what it shows there is told; if it does not keep them there, the next is tried, and how many were is told too.
Knows nothing of models.yaml and terminals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import SettingError
from .grid import BASE, Arm
from .intervals import FEW, Estimate
from .rows import Row
from .summary import ArmSummary, summarized

#: Questions of each round.
ROUND = 8
#: So many are tried on the other questions at most: whoever tries often enough finds one that passes by luck.
TRIALS = 3
#: Asks one question, by its place, in one way; the answer as a row.
Ask = Callable[[Arm, int], Row]


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

    def merit(self, arm: ArmSummary) -> Estimate:
        """What the arm with most of wins."""
        return arm.speedup if self.wants_speed or arm.quality_gain is None else arm.quality_gain

    def kept(self, arm: ArmSummary) -> bool:
        """Whether the arm keeps every limit, as far as was measured."""
        return all(worst <= 0 for worst, _ in self._excesses(arm))

    def broken(self, arm: ArmSummary) -> bool:
        """Whether it surely breaks one: all of an interval lies beyond the limit."""
        return any(surely > 0 for _, surely in self._excesses(arm))

    def _excesses(self, arm: ArmSummary) -> list[tuple[float, float]]:
        """By limit: how far the figure itself is beyond it, and how far the near end of its interval is."""
        found = []
        if self.max_quality_loss is not None and arm.quality_gain is not None:
            gain = arm.quality_gain
            found.append((-gain.value - self.max_quality_loss, -gain.high - self.max_quality_loss))
        if self.expert_share is not None:
            found.append((arm.expert_calls_per_token - self.expert_share,) * 2)
        if self.budget is not None:  # the drafter alone is never compared with the expert: who knows how far it is
            found.append(((math.inf if arm.mean_tv is None else arm.mean_tv) - self.budget,) * 2)
        if self.min_speedup is not None:
            found.append((self.min_speedup - arm.speedup.value, self.min_speedup - arm.speedup.high))
        return [(value, surely if arm.n >= ROUND else -math.inf) for value, surely in found]


@dataclass(frozen=True)
class Choice:
    """What was found. arm: None where nothing beats the expert alone.

    measured: of the chosen arm, or the one that was tried last, on questions that took no part in the choice. why: in words. asked:
    answers of the search. left: how many arms were in the race to its end. tried: how many were measured on the other questions.
    """

    arm: Arm | None
    measured: ArmSummary | None
    why: str
    asked: int
    left: int
    tried: int = 0


def split(n: int, families: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Places of the questions to choose by and of those to confirm by, half of each family; in an order that mixes families.

    Raises SettingError where there are too few to tell anything.
    """
    if n < 2 * FEW:
        raise SettingError(f"{n} questions are too few to choose by some and confirm by others; give at least {2 * FEW}")
    rng = np.random.default_rng(seed)
    halves: tuple[list[int], list[int]] = ([], [])
    for at, place in enumerate(sorted(rng.permutation(n).tolist(), key=lambda place: families[place])):
        halves[at % 2].append(place)
    for half in halves:
        rng.shuffle(half)
    return halves


def tuned(
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
    for start in range(0, len(choose_by), ROUND):
        places = choose_by[start : start + ROUND]
        for place in places:
            rows += [ask(arm, place) for arm in (base, *racing)]
            on_step(f"choosing among {len(racing)}", len(rows) / (len(choose_by) * (len(racing) + 1)))
        racing = _still_racing(racing, _by_name(rows, racing), goal)
        if not racing:
            return Choice(None, None, "no way of answering keeps the limits", len(rows), 0)
    found = _by_name(rows, racing)
    kept = [arm for arm in racing if goal.kept(found[arm.name])]
    kept.sort(key=lambda arm: (goal.merit(found[arm.name]).value, found[arm.name].speedup.value), reverse=True)
    measured, why = None, "no way of answering keeps the limits"
    for tried, arm in enumerate(kept[:TRIALS], start=1):
        measured = _confirmed(base, arm, confirm_by, ask, on_step)
        if measured.speedup.low <= 1:
            why = f"{arm.name} is not surely faster than the expert alone"
        elif goal.kept(measured):
            best = "the fastest" if goal.wants_speed else "the best answers"
            return Choice(arm, measured, f"{best} within the limits", len(rows), len(racing), tried)
        else:
            why = f"{arm.name} did not keep the limits on other questions"
    return Choice(None, measured, why, len(rows), len(racing), len(kept[:TRIALS]))


def _confirmed(base: Arm, arm: Arm, places: Sequence[int], ask: Ask, on_step: Callable[[str, float], None]) -> ArmSummary:
    rows = []
    for i, place in enumerate(places, start=1):
        rows += [ask(each, place) for each in (base, arm)]
        on_step(f"confirming {arm.name}", i / len(places))
    return _by_name(rows, [arm])[arm.name]


def _by_name(rows: Sequence[Row], arms: Sequence[Arm]) -> dict[str, ArmSummary]:
    names = {BASE, *(arm.name for arm in arms)}
    (summaries,) = summarized(row for row in rows if row["arm"] in names).by_temperature.values()
    return {summary.arm: summary for summary in summaries}


def _still_racing(racing: Sequence[Arm], found: dict[str, ArmSummary], goal: Goal) -> list[Arm]:
    """Without those that surely break a limit, and those that are surely not as good as one that keeps them all."""
    possible = [arm for arm in racing if not goal.broken(found[arm.name])]
    safe = [goal.merit(found[arm.name]).low for arm in possible if goal.kept(found[arm.name]) and found[arm.name].n >= ROUND]
    best = max(safe, default=-math.inf)
    return [arm for arm in possible if goal.merit(found[arm.name]).high >= best]
