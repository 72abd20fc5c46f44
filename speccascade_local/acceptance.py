"""Other lossy acceptances worth having, for comparison: lenience, mentored, typical, FLy, decision tokens.

Each is written as a target distribution π for the one executor in verify.py, so all methods differ in nothing else.
Notation as in evidence.py: q = drafter, p = expert; entropies in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .deferral import NON_NEGATIVE, AlphaRule, Decision, Dial, Rule, TargetRule, blend
from .errors import SettingError
from .evidence import Evidence, Float
from .sampling import Mask, Sampler

POSITIVE = Dial(math.ulp(0), math.inf, "above 0")


@dataclass(frozen=True)
class Lenience(AlphaRule, TargetRule):
    """Keep x with probability min(1, p(x) / ((1 - alpha) * q(x))), else draw from norm(max(0, p - q)).

    As a target: π = min(q, p/l) + (1 - Σ min(q, p/l)) * norm(max(0, p - q)) with l = 1 - alpha.

    Lossless: alpha 0
    Keeps every draft: alpha 1
    Temperature 0: keep iff p of the drafted token >= (1 - alpha) * max p, like token_v3; strict at alpha 0
    Source: Leviathan et al. 2211.17192, appendix A.5
    """

    name: ClassVar[str] = "lenience"
    trade: ClassVar[str] = "a coin that forgives a drafted token up to a constant factor"
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": Dial(0, 1)}
    ends: ClassVar[tuple[float, float]] = (0.0, 1.0)
    example: ClassVar[str] = "0.5"

    def target(self, evidence: Evidence) -> Float:
        q, p = evidence.drafter_probs, evidence.expert_probs
        leniency = 1 - self.alpha
        if evidence.sampler.temperature == 0 and self.alpha:  # at 0 two equal favourites are not the same
            unlikely = evidence.expert_plain < leniency * evidence.expert_max[:, None]
            return blend(unlikely | ~evidence.expert_support, q, p)
        # The filters decide what is possible: a token that has any probability left is kept at alpha 1.
        target: Float = p / leniency if leniency else np.where(evidence.expert_support, np.inf, 0.0)
        np.minimum(q, target, out=target)
        missing = np.maximum(1 - target.sum(axis=-1, keepdims=True), 0.0)
        residual = p - q
        np.maximum(residual, 0.0, out=residual)
        mass = evidence.tv[:, None]
        residual *= np.divide(missing, mass, out=np.zeros_like(mass), where=mass > 0)  # without a residual p is q, and nothing is missing
        target += residual
        return target


@dataclass(frozen=True)
class Mentored(TargetRule):
    """Keep as many drafts as KL(p || π) <= divergence allows: π = q, clipped to between p/B and p/A, with A <= 1 <= B.

    That is: keep x with probability min(1, p(x) / (A * q(x))), else draw from max(0, p/B - q). For each A the B is the one that makes
    π sum to 1; A is the smallest one whose π stays within ``divergence`` (nats). A token that p rules out is never kept.

    Lossless: divergence 0
    Keeps every draft: divergence to infinity, but for tokens that p rules out
    Temperature 0: strict, because p rules out any other token
    Source: Tran-Thien, "An optimal lossy variant of speculative decoding" (2023)
    """

    divergence: float = 0.1

    name: ClassVar[str] = "mentored"
    trade: ClassVar[str] = "as many kept drafts as a bound on the divergence from the expert allows, at every token"
    dials: ClassVar[Mapping[str, Dial]] = {"divergence": NON_NEGATIVE}
    example: ClassVar[str] = "0.1"

    def target(self, evidence: Evidence) -> Float:
        if evidence.sampler.temperature == 0:
            return evidence.expert_probs
        rows = zip(evidence.drafter_probs, evidence.expert_probs)
        return np.array([_closest_to_drafter(q, p, self.divergence) for q, p in rows])


@dataclass(frozen=True)
class Typical(Rule):
    """Trust {v : p(v) > min(epsilon, delta * exp(-H(p)))}, defer the rest.

    Lossless: epsilon at least 1 and delta at least n_vocab: then no token is trusted
    Keeps every draft: epsilon to 0
    Temperature 0: keep iff the drafted token is trusted
    Source: Cai et al. 2401.10774 (Medusa, typical acceptance)
    """

    epsilon: float = 0.09
    delta: float = 0.3

    name: ClassVar[str] = "typical"
    trade: ClassVar[str] = "keeps single tokens that are typical for the expert: the less sure it is, the more are"
    dials: ClassVar[Mapping[str, Dial]] = {"epsilon": POSITIVE, "delta": POSITIVE}
    example: ClassVar[str] = "0.09,0.3"

    def defer(self, evidence: Evidence) -> Mask:
        threshold = np.minimum(self.epsilon, self.delta * np.exp(-evidence.expert_entropy))
        return evidence.expert_plain <= threshold[:, None]


@dataclass(frozen=True)
class Fly(Rule):
    """Keep a mismatch iff the expert is unsure there (entropy of its top 3, not renormalised, >= alpha) and the next 5 drafts match.

    The last 6 positions of a block are never newly accepted, so blocks of 7 or more tokens are needed.

    Lossless: alpha above log 3
    Keeps every draft: never
    Temperature 0: as above; the method is defined at temperature 0 only
    Source: arXiv 2511.22972 (FLy)
    """

    alpha: float = 0.3

    name: ClassVar[str] = "fly"
    trade: ClassVar[str] = "keeps another wording where the expert wavers and agrees with all that follows"
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": NON_NEGATIVE}
    example: ClassVar[str] = "0.3"
    #: Positions at the end of a block that are never newly accepted, and matches needed after a mismatch.
    TAIL: ClassVar[int] = 6
    MATCHES: ClassVar[int] = 5

    def check(self, sampler: Sampler, block_size: int) -> None:
        if sampler.temperature != 0:
            raise SettingError(f"rule {self} is defined at temperature 0 only, and the temperature is {sampler.temperature:g}")
        if 0 < block_size <= self.TAIL:
            raise SettingError(
                f"rule {self} accepts nothing of its own in the last {self.TAIL} tokens of a block, and block_size is {block_size}; "
                f"give a block_size of {self.TAIL + 1} or more"
            )

    def defer(self, evidence: Evidence) -> Mask:
        place = evidence.place
        if place.expert is None:
            raise SettingError(f"rule {self} looks at the rest of a drafted block, and here are only rows; use it on a loaded pair")
        following = range(place.position + 1, place.position + 1 + self.MATCHES)
        in_tail = place.position + self.TAIL >= len(place.drafted)
        matches = not in_tail and all(place.expert.row(i).best[0] == place.drafted[i] for i in following)
        if not matches:
            return np.ones(1, dtype=bool)
        n_vocab = evidence.expert_plain.shape[-1]
        top = np.sort(np.partition(evidence.expert_plain, max(n_vocab - 3, 0), axis=-1)[:, -3:], axis=-1)
        uncertainty = -(top * np.log(np.where(top > 0, top, 1.0))).sum(axis=-1)
        wavers: Mask = uncertainty < self.alpha
        return wavers


@dataclass(frozen=True)
class DecisionTokens(Rule):
    """Defer iff s > tau and s > lam * (mean of s over the last ``window`` tested positions), s = -Σ p log q in nats.

    Lossless: tau 0 and lam 0
    Keeps every draft: tau to infinity
    Temperature 0: the same test
    Source: Shen et al. 2605.16874; the defaults of lam and window are this project's
    """

    tau: float
    lam: float = 1.0
    window: int = 16

    name: ClassVar[str] = "decision_tokens"
    trade: ClassVar[str] = "asks the expert only where the two disagree sharply, measured against their recent disagreement"
    dials: ClassVar[Mapping[str, Dial]] = {
        "tau": NON_NEGATIVE,
        "lam": NON_NEGATIVE,
        "window": Dial(1, 1024, whole=True),
    }
    example: ClassVar[str] = "1.0"
    remembers: ClassVar[bool] = True

    def defer(self, evidence: Evidence) -> Mask:
        recent = evidence.place.trace[-self.window :]
        usual = sum(recent) / len(recent) if recent else 0.0
        return evidence.cross_entropy > max(self.tau, self.lam * usual)

    def remember(self, decision: Decision) -> float:
        return float(decision.evidence.cross_entropy[0])


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


def _closest_to_drafter(q: Float, p: Float, divergence: float) -> Float:
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
