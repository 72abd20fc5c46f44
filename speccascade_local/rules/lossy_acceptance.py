"""Lossy acceptance rules of other papers, for comparison: lenience, mentored, typical, FLy, decision tokens.

All run through the one executor in decoding/verify.py, so they differ only in their target distribution π.
Notation as in rules/evidence.py: q = drafter, p = expert; entropies in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..common.errors import SettingError
from ..tokens.rows import Float
from ..tokens.sampler import Mask, Sampler
from .clipping import closest_to_drafter
from .evidence import Evidence
from .rule import NON_NEGATIVE, AlphaRule, Decision, Dial, Dials, Rule, TargetRule, blend

POSITIVE = Dial(math.ulp(0), math.inf, "above 0")


@dataclass(frozen=True)
class Lenience(AlphaRule, TargetRule):
    """Keep x with probability min(1, p(x) / ((1 - alpha) * q(x))), else draw from norm(max(0, p - q)).

    As a target: π = min(q, p/l) + (1 - Σ min(q, p/l)) * norm(max(0, p - q)) with l = 1 - alpha.

    The appendix gives the coin, and the test at temperature 0. The residual is the notebook's, whose own lossy rule is strict at
    temperature 0.
    """

    name = "lenience"
    trade = "a coin that forgives a drafted token up to a constant factor"
    dials = Dials(alpha=Dial(0, 1))
    example = "0.5"
    lossless = "alpha 0"
    keeps_every_draft = "alpha 1"
    at_temperature_0 = "keep iff p of the drafted token >= (1 - alpha) * max p, like token_v3; strict at alpha 0"
    source = (
        "Leviathan et al. 2211.17192, appendix A.5; residual: the notebook of Narasimhan et al. (google-research, speculative_cascades)"
    )

    def target(self, evidence: Evidence) -> Float:
        q, p = evidence.drafter_probs, evidence.expert_probs
        leniency = 1 - self.alpha
        if evidence.sampler.temperature == 0 and self.alpha:  # alpha 0 keeps no second favorite of equal probability
            unlikely = evidence.expert_plain < leniency * evidence.expert_max[:, None]
            return blend(unlikely | ~evidence.expert_support, q, p)
        # At alpha 1 every token that the filters leave is kept.
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

    That is: keep x with probability min(1, p(x) / (A * q(x))), else draw from max(0, p/B - q). B makes π sum to 1; A is the smallest
    one whose π stays within ``divergence`` (nats). A token that p rules out is never kept.
    """

    divergence: float = 0.1

    name = "mentored"
    trade = "as many kept drafts as a bound on the divergence from the expert allows, at every token"
    dials = Dials(divergence=NON_NEGATIVE)
    example = "0.1"
    lossless = "divergence 0"
    keeps_every_draft = "divergence to infinity, but for tokens that p rules out"
    at_temperature_0 = "strict, because p rules out any other token"
    source = 'Tran-Thien, "An optimal lossy variant of speculative decoding" (2023)'

    def target(self, evidence: Evidence) -> Float:
        if evidence.sampler.temperature == 0:
            return evidence.expert_probs
        rows = zip(evidence.drafter_probs, evidence.expert_probs)
        return np.array([closest_to_drafter(q, p, self.divergence) for q, p in rows])


@dataclass(frozen=True)
class Typical(Rule):
    """Trust {v : p(v) > min(epsilon, delta * exp(-H(p)))}, defer the rest.

    p and H(p) are read at temperature 1, as confidence is in every rule here. Medusa reads both at the sampling temperature, and at
    temperature 0 accepts only the expert's own token. So the two tests agree at temperature 1 alone.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    name = "typical"
    trade = "keeps single tokens that are typical for the expert: the less sure it is, the more are"
    dials = Dials(epsilon=POSITIVE, delta=POSITIVE)
    example = "0.09,0.3"
    lossless = "epsilon at least 1 and delta at least n_vocab: then no token is trusted"
    keeps_every_draft = "epsilon to 0"
    at_temperature_0 = "keep iff the drafted token is trusted"
    source = "Cai et al. 2401.10774 (Medusa, typical acceptance), at temperature 1"

    def defer(self, evidence: Evidence) -> Mask:
        threshold = np.minimum(self.epsilon, self.delta * np.exp(-evidence.expert_entropy))
        return evidence.expert_plain <= threshold[:, None]


@dataclass(frozen=True)
class Fly(Rule):
    """Keep a mismatch iff the expert is unsure there (entropy of its top 3, not renormalised, >= alpha) and the next 5 drafts match.

    The last 6 positions of a block are never newly accepted, so blocks of 7 or more tokens are needed. Automatic blocks are seldom that
    long: set ``block_size``.
    """

    alpha: float = 0.3

    name = "fly"
    trade = "keeps another wording where the expert wavers and agrees with the next five tokens of the draft"
    dials = Dials(alpha=NON_NEGATIVE)
    example = "0.3"
    lossless = "alpha above log 3"
    keeps_every_draft = "never"
    at_temperature_0 = "as above; the method is defined at temperature 0 only"
    source = "arXiv 2511.22972 (FLy)"
    #: Positions at the end of a block that are never newly accepted, and matches needed after a mismatch.
    TAIL = 6
    MATCHES = 5

    def check(self, sampler: Sampler, block_size: int) -> None:
        if sampler.temperature != 0:
            raise SettingError(
                f"rule {self} is defined at temperature 0 only, and the temperature is {sampler.temperature:g}; "
                "choose another rule or temperature 0"
            )
        if 0 < block_size <= self.TAIL:
            raise SettingError(
                f"rule {self} accepts nothing of its own in the last {self.TAIL} tokens of a block, and block_size is {block_size}; "
                f"give a block_size of {self.TAIL + 1} or more"
            )

    def defer(self, evidence: Evidence) -> Mask:
        place = evidence.place
        if place.expert is None:
            raise SettingError(f"rule {self} looks at the rest of a drafted block, and only rows are given; use it on a loaded pair")
        following = range(place.position + 1, place.position + 1 + self.MATCHES)
        in_tail = place.position + self.TAIL >= len(place.drafted)
        matches = not in_tail and all(place.expert.row(i).best[0] == place.drafted[i] for i in following)
        if not matches:
            return np.ones(1, dtype=bool)
        n_vocab = evidence.expert_plain.shape[-1]
        top = np.sort(np.partition(evidence.expert_plain, max(n_vocab - 3, 0), axis=-1)[:, -3:], axis=-1)
        uncertainty = -(top * np.log(np.where(top > 0, top, 1.0))).sum(axis=-1)
        sure: Mask = uncertainty < self.alpha
        return sure


@dataclass(frozen=True)
class DecisionTokens(Rule):
    """Defer iff s > tau and s > lam * (mean of s over the last ``window`` tested positions), s = -Σ q log p in nats.

    s is the cross-entropy of the expert under the drafter's distribution, H(q) + KL(q || p). Only the paper's abstract and public reading
    notes were available. The notes write the score in this direction, as -Σ p_base log p_reasoning with the base model as the drafter.
    They name a reverse KL that is this score less the base model's entropy, an identity in this direction only. The abstract agrees:
    large scores coincide with a drafter that is unsure.

    In the notes tau is a quantile of s on calibration texts, and lam is E[s | s > tau] / E[s] there, which is above 1. Both belong to a
    pair and are not calibrated here. lam = 1 asks the expert more often than a calibrated value would. Tokens that are not tested, such
    as a bonus token, have no s here; the paper's mean runs over all tokens.
    """

    tau: float
    lam: float = 1.0
    window: int = 16

    name = "decision_tokens"
    trade = "asks the expert only where the drafter's tokens surprise it, more than they did in the recent text"
    dials = Dials(tau=NON_NEGATIVE, lam=NON_NEGATIVE, window=Dial(1, 1024, whole=True))
    example = "1.0"
    lossless = "tau 0 and lam 0"
    keeps_every_draft = "tau to infinity"
    at_temperature_0 = "the same test"
    source = "Shen et al. 2605.16874, by public notes of it; the defaults of lam and window are this project's"
    remembers = True

    def defer(self, evidence: Evidence) -> Mask:
        recent = evidence.place.trace[-self.window :]
        usual = sum(recent) / len(recent) if recent else 0.0
        return evidence.cross_entropy > max(self.tau, self.lam * usual)

    def remember(self, decision: Decision) -> float:
        return float(decision.evidence.cross_entropy[0])
