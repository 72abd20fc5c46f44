"""How sure a figure is: means over prompts with 95 % intervals, and what may be claimed of them. Knows nothing of what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
#: Below so many prompts an interval is wide, and its own width unsure.
FEW = 20


@dataclass(frozen=True)
class Estimate:
    """A mean over n prompts with its 95 % interval, and the median."""

    value: float
    low: float
    high: float
    median: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimated(values: Sequence[float], draws: int = DRAWS) -> Estimate:
    """The mean, prompts being drawn with replacement; the same draws for every call with as many values.

    The percentiles are set a little wider than 2.5 and 97.5, because means of few values vary less than they should (the expanded
    percentile interval, Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.3). One value has no interval.
    """
    data = np.asarray(values, dtype=np.float64)
    n, mean, middle = len(data), float(data.mean()), float(np.median(data))
    if n < 2:
        return Estimate(mean, -math.inf, math.inf, middle, n)
    low, high = np.quantile(_counts(n, draws) @ data / n, [_level(n), 1 - _level(n)])
    return Estimate(mean, min(float(low), mean), max(float(high), mean), middle, n)  # equal values would miss it by rounding


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Prompt by prompt."""
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def differences(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Prompt by prompt."""
    return [a - b for a, b in zip(mine, theirs, strict=True)]


def surely(estimate: Estimate, neutral: float, above: str, below: str) -> str | None:
    """The word that the interval supports: ``above`` or ``below`` if all of it lies there, else None."""
    if estimate.low > neutral:
        return above
    return below if estimate.high < neutral else None


def too_few(estimate: Estimate) -> str | None:
    """A warning where there are too few prompts."""
    return f"only {estimate.n} questions: too few to tell much; {FEW} or more are better" if estimate.n < FEW else None


@lru_cache(maxsize=4)
def _counts(n: int, draws: int) -> NDArray[np.float64]:
    """[draw, place]: how often each value is drawn."""
    drawn = np.random.default_rng(0).integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _level(n: int) -> float:
    """The lower percentile: 0.025 for many values, less for few."""
    normal = NormalDist()
    z, freedom = normal.inv_cdf(0.975), n - 1
    # Student's quantile by Cornish and Fisher's expansion.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return normal.cdf(-math.sqrt(n / (n - 1)) * t)
