"""Rules of the speculative-cascades family that decide about a whole position: keep the drafted token, or ask the expert.

Notation as in rules/evidence.py: q = drafter, p = expert; entropies in nats.

Main source: Narasimhan et al., "Faster Cascades via Speculative Decoding", arXiv 2405.19261 (ICLR 2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..tokens.sampler import Mask
from .evidence import Evidence
from .rule import ANY, NON_NEGATIVE, AlphaRule, Dial, Dials, Rule


@dataclass(frozen=True)
class Strict(Rule):
    """Always defer: speculative decoding, exactly the expert's distribution."""

    name = "strict"
    trade = "exactly the expert's distribution; drafted tokens survive only as far as the expert would say them"
    lossless = "always"
    keeps_every_draft = "never"
    at_temperature_0 = "the expert's own greedy text, up to near-ties"
    source = "Leviathan et al. 2211.17192; Chen et al. 2302.01318"

    def defer(self, evidence: Evidence) -> Mask:
        return np.ones(len(evidence.drafter), dtype=bool)


@dataclass(frozen=True)
class Never(Rule):
    """Never defer: the drafter alone. The expert is not evaluated at all."""

    name = "never"
    trade = "the drafter alone: fastest, and only as good as the drafter"
    lossless = "never"
    keeps_every_draft = "always"
    at_temperature_0 = "the drafter's own greedy text"
    source = "the small model as it is"
    asks_expert = False
    in_blocks = False

    def defer(self, evidence: Evidence) -> Mask:
        return np.zeros(len(evidence.drafter), dtype=bool)


@dataclass(frozen=True)
class Chow(AlphaRule):
    """Defer iff max q < 1 - alpha."""

    name = "chow"
    trade = "keeps what the drafter is sure of, without looking at the expert's opinion"
    dials = Dials(alpha=Dial(0, 1))
    example = "0.2"
    lossless = "alpha 0"
    keeps_every_draft = "alpha 1"
    at_temperature_0 = "the same test"
    source = "Narasimhan et al. 2405.19261; Jitkrittum et al. 2307.02764"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_doubt > self.alpha


@dataclass(frozen=True)
class ChowLog(AlphaRule):
    """Defer iff H(q) > alpha, H being the entropy in nats."""

    name = "chow_log"
    trade = "like chow, judging the drafter's doubt by the whole of its distribution"
    dials = Dials(alpha=NON_NEGATIVE)
    example = "0.5"
    lossless = "alpha 0"
    keeps_every_draft = "alpha at log n_vocab or above"
    at_temperature_0 = "the same test"
    source = "Narasimhan et al. 2405.19261"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_entropy > self.alpha


@dataclass(frozen=True)
class Diff(AlphaRule):
    """Defer iff max q < max p - alpha."""

    name = "diff"
    trade = "keeps the draft where the expert is hardly surer than the drafter"
    dials = Dials(alpha=Dial(-1, 1))
    example = "0.1"
    lossless = "alpha -1"
    keeps_every_draft = "alpha 1"
    at_temperature_0 = "the same test"
    source = "Narasimhan et al. 2405.19261"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_max < evidence.expert_max - self.alpha


@dataclass(frozen=True)
class DiffLog(AlphaRule):
    """Defer iff H(q) > H(p) + alpha, H being the entropy in nats."""

    name = "diff_log"
    trade = "like diff, comparing the doubt of both models by their whole distributions"
    dials = Dials(alpha=ANY)
    example = "0.2"
    lossless = "alpha below -log n_vocab"
    keeps_every_draft = "alpha at log n_vocab or above"
    at_temperature_0 = "the same test"
    source = "Narasimhan et al. 2405.19261"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_entropy > evidence.expert_entropy + self.alpha


@dataclass(frozen=True)
class Opt(AlphaRule):
    """Defer iff max q < max p - alpha * TV(q, p).

    Deferring costs one rejection, which happens with probability TV: more disagreement means *less* deferral.

    The optimal rule for whole positions compares the expected losses of both models, which are not known. This is the paper's plug-in
    estimate: 1 - max q and 1 - max p stand for these losses. So the rule is only as good as both models' confidence, and a rule for
    single tokens can do better.
    """

    name = "opt"
    trade = "like diff, and forgives more where deferring costs a rejection: an estimate of the paper's optimal rule for whole places"
    dials = Dials(alpha=ANY)
    example = "0.2"
    lossless = "alpha to minus infinity"
    keeps_every_draft = "alpha to infinity"
    at_temperature_0 = "diff: where the two tokens differ, TV is 1"
    source = "Narasimhan et al. 2405.19261, the plug-in estimate of its optimal rule for whole positions"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_max < evidence.expert_max - self.alpha * evidence.tv


@dataclass(frozen=True)
class OptLog(AlphaRule):
    """Defer iff H(q) > H(p) + alpha * TV(q, p), H being the entropy in nats.

    H(q) estimates the expected logarithmic loss, as 1 - max q in ``opt`` estimates the expected 0-1 loss.
    """

    name = "opt_log"
    trade = "like opt, comparing the doubt of both models by their whole distributions"
    dials = Dials(alpha=ANY)
    example = "0.4"
    lossless = "alpha to minus infinity"
    keeps_every_draft = "alpha to infinity"
    at_temperature_0 = "diff_log: where the two tokens differ, TV is 1"
    source = "Narasimhan et al. 2405.19261"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_entropy > evidence.expert_entropy + self.alpha * evidence.tv


@dataclass(frozen=True)
class Fuzzy(AlphaRule):
    """Defer iff JS(q, p) >= alpha, the Jensen-Shannon divergence of the sampling distributions in nats."""

    name = "fuzzy"
    trade = "keeps the draft where the two models agree in their distributions"
    dials = Dials(alpha=Dial(0, math.log(2), "a number from 0 to log 2 = 0.6931"))
    example = "0.2"
    lossless = "alpha 0"
    keeps_every_draft = "alpha log 2, but where the two share no token"
    at_temperature_0 = "strict: two different tokens share nothing, JS is log 2"
    source = "Holsman et al. 2502.20704 (Fuzzy Speculative Decoding)"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.js >= self.alpha
