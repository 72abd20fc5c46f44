"""Paired comparisons over prompts with 95 % intervals, and what these support."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
#: The probability beyond each end of a 95 % interval, and the distance of that end in standard deviations.
TAIL = 0.025
Z = NormalDist().inv_cdf(1 - TAIL)
#: With fewer prompts an interval is wide, and its width is itself uncertain.
FEW = 20


@dataclass(frozen=True)
class Estimate:
    """A mean over n prompts with its 95 % interval, and the median. If the value holds by definition, both ends equal it."""

    value: float
    low: float
    high: float
    median: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.exact else f" [{self.low:.2f}, {self.high:.2f}]")

    @property
    def exact(self) -> bool:
        """Whether the value holds by definition, as for the expert alone compared with itself."""
        return self.low == self.value == self.high


def speed_ratio(base_seconds: Sequence[float], seconds: Sequence[float], draws: int = DRAWS) -> Estimate:
    """Return the speed relative to the base: the geometric mean of ``base_seconds / seconds``, pair by pair.

    The interval is a bootstrap of the logarithms of the ratios, with the same draws for every call of the same size. Exchanging the sides
    therefore gives the reciprocal of each figure, and of two equal sides neither comes out ahead, unlike with a mean of ratios. The
    percentiles lie a little further out than 2.5 and 97.5, because means of few values vary too little (the expanded percentile interval,
    Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.3). The interval of one pair is 0 to infinity.

    Args:
        base_seconds: Seconds of the base, above 0.
        seconds: Seconds of the other side, above 0, in the same order.
        draws: Number of bootstrap draws.
    """
    logs = np.log([base / mine for base, mine in zip(base_seconds, seconds, strict=True)])
    n, mean = len(logs), float(logs.mean())
    low, high = -math.inf, math.inf
    if n > 1:
        low, high = np.quantile(_counts(n, draws) @ logs / n, [_level(n), 1 - _level(n)]).tolist()
        low, high = min(low, mean), max(high, mean)  # equal values would miss it by rounding
    value, low, high, middle = (math.exp(each) for each in (mean, low, high, float(np.median(logs))))
    return Estimate(value, low, high, middle, n)


def quality_change(mine: Sequence[float], theirs: Sequence[float], draws: int = DRAWS) -> Estimate:
    """Return the mean of ``mine - theirs``, pair by pair. Its interval always has a width, because finitely many ties prove no equality.

    Right and wrong answers (0 and 1) have the score interval of Tango (1998, "Equivalence test and confidence interval for the difference
    in proportions for the paired-sample design", Statistics in Medicine 17). Grades between have the interval of Gaffke (2005, "Three test
    statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable", Mathematical Methods of Statistics 14): a
    Bayesian bootstrap of all differences and one more, the worst possible for the lower end and the best possible for the upper one. For a
    proportion that is the interval of Clopper and Pearson.

    Args:
        mine: Grades from 0 to 1.
        theirs: Grades to compare with, in the same order.
        draws: Number of bootstrap draws.
    """
    change = np.array([a - b for a, b in zip(mine, theirs, strict=True)])
    n, value, middle = len(change), float(change.mean()), float(np.median(change))
    if {*mine, *theirs} <= {0, 1}:
        low, high = _score_interval(int((change > 0).sum()), int((change < 0).sum()), n)
    else:
        low, high = (float(np.quantile(_weights(n + 1, draws) @ [*change, most], at)) for most, at in ((-1, TAIL), (1, 1 - TAIL)))
    return Estimate(value, max(-1.0, min(low, value)), min(1.0, max(high, value)), middle, n)  # weights may sum to a little above 1


def wilson(successes: int, n: int) -> tuple[float, float, float]:
    """Return a share and the ends of its Wilson 95 % interval."""
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def significant(estimate: Estimate, neutral: float, above: str, below: str) -> str | None:
    """Return ``above`` or ``below`` if the whole interval lies there, else None."""
    if estimate.low > neutral:
        return above
    return below if estimate.high < neutral else None


def too_few(estimate: Estimate) -> str | None:
    """Return a warning if there are too few prompts."""
    return f"only {estimate.n} questions: too few for reliable figures; use {FEW} or more" if estimate.n < FEW else None


def _score_interval(wins: int, losses: int, n: int) -> tuple[float, float]:
    """Return the ends of all differences of two shares of right answers that a score test accepts.

    In ``wins`` of the n pairs only the first side is right, in ``losses`` only the second.
    """

    def plausible(change: float) -> bool:
        # The likeliest share of losses if ``change`` were the truth.
        linear, constant = (2 * n - wins + losses) * change - wins - losses, -losses * change * (1 - change)
        lost = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        return (wins - losses - n * change) ** 2 <= Z**2 * n * (2 * lost + change * (1 - change))

    value = (wins - losses) / n
    return _edge(plausible, value, -1.0), _edge(plausible, value, 1.0)


def _edge(plausible: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where plausible values end between inside and outside."""
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if plausible(middle) else (inside, middle)
    return outside


@lru_cache(maxsize=4)
def _weights(n: int, draws: int) -> NDArray[np.float64]:
    """Return the weight of each value, of shape [draws, n]; all divisions of 1 into n parts are equally likely."""
    return np.random.default_rng(0).dirichlet(np.ones(n), draws)


@lru_cache(maxsize=4)
def _counts(n: int, draws: int) -> NDArray[np.float64]:
    """Return how often each value is drawn, of shape [draws, n]."""
    drawn = np.random.default_rng(0).integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _level(n: int) -> float:
    """Return the lower percentile: 0.025 for many values, less for few."""
    z, freedom = Z, n - 1
    # Student's quantile by Cornish and Fisher's expansion.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)
