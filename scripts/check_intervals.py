"""How often 95 % intervals of the benchmark hold the truth, and how often equal arms are called different.

    python scripts/check_intervals.py [--trials 4000]

Writes docs/results/coverage.txt. Right and wrong answers are summed over every outcome, which is exact; grades and seconds are drawn, and a
share of 4,000 trials is right to 0.7 points. tests/bench/test_intervals.py holds the same functions against the limits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speccascade_local.bench.intervals import DRAWS, quality_change, speed_ratio, surely

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "coverage.txt"
Float = NDArray[np.float64]
#: Shares of questions at which exactly one of two arms is right, and shares of these at which the other one is.
DISCORDANCE, LOSSES = (0.01, 0.02, 0.05), (1.0, 0.75, 0.5)
QUALITY_SIZES, SPEED_SIZES = (20, 40, 100, 474), (20, 40, 100)
#: Standard deviation of an arm's seconds over their mean.
SPREADS = (0.1, 0.3, 0.5)
#: Outcomes that are rarer than this, all together, do not count as covered.
RARE = 1e-6


def right_or_wrong(discordance: float, losses: float, n: int) -> tuple[float, float]:
    """How often the interval holds the truth, and its mean width, summed over every outcome of n questions."""
    lost, won = discordance * losses, discordance * (1 - losses)
    covered = width = 0.0
    for wins, defeats, share in _outcomes(n, won, lost):
        found = quality_change([1] * wins + [0] * defeats + [1] * (n - wins - defeats), [0] * wins + [1] * (n - wins))
        covered += share * (found.low <= won - lost <= found.high)
        width += share * (found.high - found.low)
    return covered, width


def _outcomes(n: int, won: float, lost: float) -> Iterator[tuple[int, int, float]]:
    """Wins, losses and how likely they are."""
    for wins in range(n + 1 if won else 1):
        for defeats in range(n + 1 - wins):
            ties = n - wins - defeats
            ways = math.lgamma(n + 1) - math.lgamma(wins + 1) - math.lgamma(defeats + 1) - math.lgamma(ties + 1)
            share = math.exp(ways + (wins * math.log(won) if won else 0) + defeats * math.log(lost) + ties * math.log(1 - won - lost))
            if share > RARE / (n + 1):
                yield wins, defeats, share


def _rare_loss(rng: np.random.Generator, n: int) -> tuple[Float, Float]:
    theirs = np.full(n, 1.0)
    return np.where(rng.random(n) < 0.02, rng.random(n), theirs), theirs


def _thirds(rng: np.random.Generator, n: int) -> tuple[Float, Float]:
    """Three repetitions of each question; the arm is right a little less often."""
    return rng.binomial(3, 0.93, n) / 3, rng.binomial(3, 0.95, n) / 3


def _overlap(rng: np.random.Generator, n: int) -> tuple[Float, Float]:
    """Like ROUGE: nearly all grades differ, by little."""
    theirs = rng.beta(4, 3, n)
    return theirs * (1 - 0.2 * rng.beta(1, 3, n)), theirs


#: Grades of two arms, and the true mean difference.
GRADES: dict[str, tuple[Callable[[np.random.Generator, int], tuple[Float, Float]], float]] = {
    "2 % of answers lose a part": (_rare_loss, -0.02 * 0.5),
    "three repetitions, 93 and 95 % right": (_thirds, -0.02),
    "overlap with a text": (_overlap, -4 / 7 * 0.2 / 4),
}


def graded(kind: str, n: int, trials: int, draws: int = DRAWS) -> tuple[float, float]:
    """How often the interval holds the truth, and its mean width."""
    draw, truth = GRADES[kind]
    rng = np.random.default_rng(n)
    found = [quality_change(*draw(rng, n), draws=draws) for _ in range(trials)]
    return float(np.mean([each.low <= truth <= each.high for each in found])), float(np.mean([each.high - each.low for each in found]))


#: Seconds of answers with mean 1 and a given spread.
SECONDS: dict[str, Callable[[np.random.Generator, float, int], Float]] = {
    "lognormal": lambda rng, cv, n: rng.lognormal(0.0, math.sqrt(math.log1p(cv**2)), n),
    "gamma": lambda rng, cv, n: rng.gamma(cv**-2, cv**2, n),
}


def false_verdicts(kind: str, cv: float, n: int, trials: int, draws: int = DRAWS) -> float:
    """How often one of two equal arms is called faster or slower."""
    rng = np.random.default_rng(1)
    draw = SECONDS[kind]
    found = [speed_ratio(draw(rng, cv, n), draw(rng, cv, n), draws=draws) for _ in range(trials)]
    return float(np.mean([surely(each, 1.0, "faster", "slower") is not None for each in found]))
