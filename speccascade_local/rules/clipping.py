"""Of all distributions within a divergence of the expert's, the one that is closest to the drafter's.

It is the expert's, clipped: p/A where q exceeds that, p/B where q falls below it, q in between (Tran-Thien). Found by bisection, for wide
rows over groups of tokens first. Notation: q = drafter, p = expert; divergences in nats. Knows nothing of rules.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..tokens.rows import Float

#: Buckets of log(p/q) by which the tokens of a wide row are grouped, and how many of them make a nat; the outermost take all the rest.
#: The first is for what p rules out.
_BUCKETS, _PER_NAT = 4096, 256
#: How far from where they are expected A and B are looked for, in buckets.
_NEAR = 2
#: Steps of a bisection to a bucket, and to the last bit.
_FEW_STEPS, _ALL_STEPS = 18, 60


class _Clipping:
    """Which A and B clip q to what, for tokens, or groups of tokens that lie on the same side of both.

    With the tokens sorted by p/q, those below A get p/A, those above B get p/B, and those between keep q; all sums come from cumulative
    ones, so that trying an A costs a few binary searches.
    """

    def __init__(self, q: Float, p: Float, gain: Float) -> None:
        """All [n]; gain: p * log(p/q)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(q > 0, p / q, np.where(p > 0, np.inf, 0.0))
        order = np.argsort(ratio)
        self._ratio = ratio = ratio[order]
        self._p_below, self._q_below, self._gain_below = (np.concatenate([[0.0], np.cumsum(values[order])]) for values in (p, q, gain))
        p_above, q_above = self._p_below[-1] - self._p_below[1:], self._q_below[-1] - self._q_below[1:]
        # What the tokens above B take beyond q, with B at each ratio; it falls as B, which is at least 1, grows.
        with np.errstate(invalid="ignore"):
            taken = np.where(np.isinf(ratio) | (ratio == 0), 0.0, p_above / np.where(ratio > 0, ratio, 1.0) - q_above)
        self._first = int(np.searchsorted(ratio, 1.0, side="right"))
        self._left = -taken[self._first :]  # it rises, as a binary search wants it
        possible = ratio[(ratio > 0) & np.isfinite(ratio)]
        #: log A where no token that p allows is clipped
        self.lowest = math.log(min(1.0, possible[0])) if len(possible) else 0.0

    def upper(self, a: float) -> tuple[float, float]:
        """B for this A, and KL(p || π)."""
        low = int(np.searchsorted(self._ratio, a, side="left"))
        p_below, q_below, gain_below = self._p_below, self._q_below, self._gain_below
        free = max(q_below[low] - p_below[low] / a, 0.0)  # the mass that the tokens below A lose
        high = self._first + int(np.searchsorted(self._left, -free, side="left"))
        above, behind = p_below[-1] - p_below[high], q_below[-1] - q_below[high]
        b = max(above / (free + behind), 1.0) if free + behind > 0 else math.inf
        if above <= 0:
            return 1.0, math.log(a) * p_below[low] + gain_below[-1] - gain_below[low]
        return b, math.log(a) * p_below[low] + gain_below[high] - gain_below[low] + math.log(b) * above

    def within(self, log_a: float, divergence: float) -> bool:
        """Whether KL(p || π) is at most ``divergence``."""
        return self.upper(math.exp(log_a))[1] <= divergence

    def bounds(self, divergence: float, near: float, far: float, steps: int) -> tuple[float, float]:
        """The smallest A within the divergence and its B; log A lies between ``near``, which is within it, and ``far``."""
        if self.within(far, divergence):
            near = far
        for _ in range(steps):
            middle = (near + far) / 2
            near, far = (middle, far) if self.within(middle, divergence) else (near, middle)
        a = math.exp(near)
        return a, self.upper(a)[0]


def closest_to_drafter(q: Float, p: Float, divergence: float) -> Float:
    """clip(q, p/B, p/A) with the smallest A whose KL(p || π) <= divergence. One row; [n_vocab]."""
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
    found = _bounds_by_groups(q, p, gain, level, divergence) if len(q) > _BUCKETS else None
    if found is None:
        tokens = _Clipping(q, p, gain)
        found = tokens.bounds(divergence, 0.0, tokens.lowest, _ALL_STEPS)
    a, b = found
    target: Float = p / b if math.isfinite(b) else np.zeros(len(p))
    np.maximum(target, q, out=target)
    np.minimum(target, p / a, out=target)
    target /= target.sum()
    return target


def _bounds_by_groups(q: Float, p: Float, gain: Float, level: Float, divergence: float) -> tuple[float, float] | None:
    """A and B of a wide row, which is slow to sort; None where they are not found in this way. level: log(p/q); it is used up.

    Tokens that lie on the same side of A and B count like one. So they are put into buckets of p/q, A and B are found roughly as if each
    bucket were one token, and then exactly, with the tokens of the buckets nearby each for itself.
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
    found = mixed.bounds(divergence, near, far, _ALL_STEPS)
    # Well inside what was taken apart, or a group might lie on both sides.
    return found if all(abs(_bucket_of(bound) - middle) < _NEAR for bound, middle in zip(found, expected)) else None


def _bucket(level: Float) -> NDArray[np.intp]:
    """Numbers of the buckets of some log(p/q), whose array is used up."""
    level *= _PER_NAT
    level += _BUCKETS // 2
    np.clip(level, 1, _BUCKETS - 1, out=level)
    return level.astype(np.intp)


def _bucket_of(ratio: float) -> int:
    return int(_bucket(np.array([math.log(ratio) if math.isfinite(ratio) else 1e3]))[0])
