"""Every course that a random computation can take, with its exact probability: tests of distributions that need no luck."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest
from toys import RowOf

from speccascade_local.decoding.verify import Draft, Verification, verify
from speccascade_local.rules.evidence import Evidence, Place
from speccascade_local.rules.position_rules import Strict
from speccascade_local.rules.rule import Decision, Rule
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler

T = TypeVar("T")

#: Where tokens are drawn; looked up as modules, because the package's own names may hide them.
DRAWING = [importlib.import_module(f"speccascade_local.{name}") for name in ("decoding.verify", "tokens.rows")]


class Ways:
    """Stands for numpy's Generator: follows one course of events, and knows how probable it is."""

    def __init__(self, course: list[int]) -> None:
        self.course, self.options, self.chance = course, [], 1.0

    def random(self) -> Coin:
        return Coin(self, 1.0)

    def choose(self, chances: Sequence[float]) -> int:
        possible = [i for i, chance in enumerate(chances) if chance > 0]
        if len(self.options) == len(self.course):
            self.course.append(0)
        choice = possible[self.course[len(self.options)]]
        self.options.append(len(possible))
        self.chance *= float(chances[choice])
        return choice


class Coin:
    """A number in [0, scale) that is not known until it is compared with something."""

    def __init__(self, ways: Ways | Heads, scale: float) -> None:
        self.ways, self.scale = ways, scale

    def __mul__(self, factor: float) -> Coin:
        return Coin(self.ways, self.scale * factor)

    def __lt__(self, threshold: float) -> bool:
        below = min(max(threshold / self.scale, 0.0), 1.0)
        return self.ways.choose([below, 1 - below]) == 0

    def __ge__(self, threshold: float) -> bool:
        return not self < threshold


def _draw(weights: np.ndarray, ways: Ways) -> int:
    return ways.choose(weights / weights.sum())


def courses(run: Callable[[Ways], T]) -> list[tuple[float, T]]:
    """``run`` with every outcome of every coin and draw that it asks for: (probability, result)."""
    found, course = [], []
    with pytest.MonkeyPatch.context() as patch:
        for module in DRAWING:
            patch.setattr(module, "draw", _draw)
        while True:
            ways = Ways(course)
            result = run(ways)
            found.append((ways.chance, result))
            while course and course[-1] + 1 == ways.options[len(course) - 1]:
                course.pop()
            if not course:
                return found
            course[-1] += 1


def decisions_along(
    rule: Rule, drafter: RowOf, expert: RowOf, sampler: Sampler, reply: Sequence[int], prompt: Sequence[int] = ()
) -> list[Decision]:
    """What the rule decides before each token of a reply whose tokens are all tested, its past included."""
    decisions: list[Decision] = []
    trace: list[float] = []
    for j in range(len(reply)):
        text = [*prompt, *reply[:j]]
        rows = [Rows.of(np.array(row(text), np.float32)[None]) for row in (drafter, expert)]
        evidence = Evidence(*rows, sampler, Place(text=text, emitted=j, trace=tuple(trace)))
        decisions.append(Decision(rule.at(evidence), evidence))
        trace += [rule.remember(decisions[-1])] if rule.remembers else []
    return decisions


def chain(rule: Rule, drafter: RowOf, expert: RowOf, sampler: Sampler, reply: Sequence[int], prompt: Sequence[int] = ()) -> float:
    """The probability of a reply as the product of the rule's targets."""
    decisions = decisions_along(rule, drafter, expert, sampler, reply, prompt)
    return float(np.prod([decision.target[0, token] for decision, token in zip(decisions, reply)]))


class Heads:
    """Stands for numpy's Generator: every coin falls so that a token is kept, and it is noted how probable that was."""

    def __init__(self) -> None:
        self.chances: list[float] = []

    def random(self) -> Coin:
        return Coin(self, 1.0)

    def choose(self, chances: Sequence[float]) -> int:
        self.chances.append(chances[0])
        return 0


def expected_kept(draft: Draft, expert: Rows, sampler: Sampler, verification: Verification) -> float:
    """How many tokens of a draft strict keeps, on average over all coins."""
    heads = Heads()
    verify(draft, expert, Strict(), sampler, heads, verification=verification)
    chances = np.array(heads.chances)
    # Token by token all coins up to a token must fall well; over a block, one of those from it on.
    return float(np.cumprod(chances).sum() if verification == "token" else (1 - np.cumprod(1 - chances[::-1])).sum())
