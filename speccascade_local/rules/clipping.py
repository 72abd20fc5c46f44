"""Of all distributions within a divergence of the expert's, the one that is closest to the drafter's.

It is the drafter's, clipped by the expert's: p/A where q exceeds that, p/B where q falls below it, q in between (Tran-Thien). Bisection
finds A and B, for wide rows over groups of tokens first. Notation: q = drafter, p = expert; divergences in nats.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..tokens.rows import Float

#: The number of buckets of log(p/q) that group the tokens of a wide row, and of buckets per nat. The outermost take all the rest. The
#: first is for tokens that p rules out.
_BUCKETS, _PER_NAT = 4096, 256
#: How far from the expected A and B the exact ones are searched for, in buckets.
_NEAR = 2
#: Steps of a bisection that finds a bucket, and of one that is exact to the last bit.
_FEW_STEPS, _ALL_STEPS = 18, 60


class _Clipping:
    """Clips q for any A, over tokens or over groups of tokens that lie on the same side of A and B.

    With the tokens sorted by p/q, those below A get p/A, those above B get p/B, and those between keep q. All sums are differences of
    cumulative sums, so trying an A costs a few binary searches.
    """

    def __init__(self, q: Float, p: Float, gain: Float) -> None:
        """Sort the tokens. gain: p * log(p/q). All [n]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(q > 0, p / q, np.where(p > 0, np.inf, 0.0))
        order = np.argsort(ratio)
        self._ratio = ratio = ratio[order]
        self._p_below, self._q_below, self._gain_below = (np.concatenate([[0.0], np.cumsum(values[order])]) for values in (p, q, gain))
        p_above, q_above = self._p_below[-1] - self._p_below[1:], self._q_below[-1] - self._q_below[1:]
        # The mass that tokens above B take beyond q, with B at each ratio; it falls as B, which is at least 1, grows.
        with np.errstate(invalid="ignore"):
            taken = np.where(np.isinf(ratio) | (ratio == 0), 0.0, p_above / np.where(ratio > 0, ratio, 1.0) - q_above)
        self._first = int(np.searchsorted(ratio, 1.0, side="right"))
        self._left = -taken[self._first :]  # rising, for a binary search
        possible = ratio[(ratio > 0) & np.isfinite(ratio)]
        #: log A where no token that p allows is clipped
        self.lowest = math.log(min(1.0, possible[0])) if len(possible) else 0.0

    def upper(self, a: float) -> tuple[float, float]:
        """Return B for this A, and KL(p || π)."""
        low = int(np.searchsorted(self._ratio, a, side="left"))
        p_below, q_below, gain_below = self._p_below, self._q_below, self._gain_below
        free = max(q_below[low] - p_below[low] / a, 0.0)  # the mass that the tokens below A lose
        high = self._first + int(np.searchsorted(self._left, -free, side="left"))
        p_above, q_above = p_below[-1] - p_below[high], q_below[-1] - q_below[high]
        b = max(p_above / (free + q_above), 1.0) if free + q_above > 0 else math.inf
        if p_above <= 0:
            return 1.0, math.log(a) * p_below[low] + gain_below[-1] - gain_below[low]
        return b, math.log(a) * p_below[low] + gain_below[high] - gain_below[low] + math.log(b) * p_above

    def within(self, log_a: float, divergence: float) -> bool:
        """Return whether KL(p || π) is at most ``divergence``."""
        return self.upper(math.exp(log_a))[1] <= divergence

    def bounds(self, divergence: float, near: float, far: float, steps: int) -> tuple[float, float]:
        """Return the smallest A within the divergence, and its B. log A lies between ``near``, which is within it, and ``far``."""
        if self.within(far, divergence):
            near = far
        for _ in range(steps):
            middle = (near + far) / 2
            near, far = (middle, far) if self.within(middle, divergence) else (near, middle)
        a = math.exp(near)
        return a, self.upper(a)[0]


def closest_to_drafter(q: Float, p: Float, divergence: float) -> Float:
    """Return π = clip(q, p/B, p/A) with the smallest A whose KL(p || π) <= divergence. One row, [n_vocab]."""
    if divergence == 0:
        return p
    with np.errstate(divide="ignore", over="ignore"):
        level = np.maximum(q, 1e-300)
        np.divide(p, level, out=level)
        np.log(level, out=level)
    np.clip(level, -1e3, 1e3, out=level)  # finite where p or q is 0
    gain = p * level
    if q.all():
        if p.all() and gain.sum() <= divergence:
            return q
    else:
        gain[q == 0] = 0.0
    bounds = _bounds_by_groups(q, p, gain, level, divergence) if len(q) > _BUCKETS else None
    if bounds is None:
        tokens = _Clipping(q, p, gain)
        bounds = tokens.bounds(divergence, 0.0, tokens.lowest, _ALL_STEPS)
    a, b = bounds
    target: Float = p / b if math.isfinite(b) else np.zeros(len(p))
    np.maximum(target, q, out=target)
    np.minimum(target, p / a, out=target)
    target /= target.sum()
    return target


def _bounds_by_groups(q: Float, p: Float, gain: Float, level: Float, divergence: float) -> tuple[float, float] | None:
    """Return A and B of a wide row, which is slow to sort; None where this way does not find them. level: log(p/q), overwritten.

    Tokens that lie on the same side of A and B count like one. So tokens are put into buckets of p/q. A first search takes each bucket as
    one token; a second one, which is exact, takes the tokens of the nearby buckets one by one.
    """
    bucket = _bucket(level)
    bucket[p == 0] = 0
    groups = [np.bincount(bucket, weights=each, minlength=_BUCKETS).astype(np.float64) for each in (q, p, gain)]
    alike = _Clipping(*groups)
    rough = alike.bounds(divergence, 0.0, alike.lowest, _FEW_STEPS)

    expected = [_bucket_of(bound) for bound in rough]
    apart = np.zeros(_BUCKETS, dtype=bool)
    for middle in expected:
        apart[max(middle - _NEAR, 1) : middle + _NEAR + 1] = True
    ids = np.flatnonzero(apart[bucket])
    mixed = _Clipping(*(np.concatenate([alone[ids], group[~apart]]) for alone, group in zip((q, p, gain), groups)))
    near = min(math.log(rough[0]) + _NEAR / _PER_NAT, 0.0)
    far = mixed.lowest if expected[0] == 1 else max(math.log(rough[0]) - _NEAR / _PER_NAT, mixed.lowest)
    if not mixed.within(near, divergence):
        return None
    bounds = mixed.bounds(divergence, near, far, _ALL_STEPS)
    # Both must lie well inside the buckets that were taken apart, or a group might lie on both sides.
    return bounds if all(abs(_bucket_of(bound) - middle) < _NEAR for bound, middle in zip(bounds, expected)) else None


def _bucket(level: Float) -> NDArray[np.intp]:
    """Return the bucket of each log(p/q). The array is overwritten."""
    level *= _PER_NAT
    level += _BUCKETS // 2
    np.clip(level, 1, _BUCKETS - 1, out=level)
    return level.astype(np.intp)


def _bucket_of(ratio: float) -> int:
    return int(_bucket(np.array([math.log(ratio) if math.isfinite(ratio) else 1e3]))[0])
