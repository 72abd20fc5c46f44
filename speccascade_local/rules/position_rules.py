"""The deferral rules of the speculative-cascades family that decide about a whole place: one small frozen class each.

Notation as in rules/evidence.py: q = drafter, p = expert; entropies in nats. Rules that decide token by token are in rules/token_rules.py, lossy
acceptances of other papers in rules/lossy_acceptance.py, rules made of rules in rules/combined.py.

Main source: Narasimhan et al., "Faster Cascades via Speculative Decoding", arXiv 2405.19261 (ICLR 2025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..tokens.sampler import Mask
from .evidence import Evidence
from .rule import ANY, NON_NEGATIVE, AlphaRule, Dial, Rule


@dataclass(frozen=True)
class Strict(Rule):
    """Always defer: speculative decoding, exactly the expert's distribution.

    Lossless: always
    Keeps every draft: never
    Temperature 0: the expert's own greedy text, up to near-ties
    Source: Leviathan et al. 2211.17192; Chen et al. 2302.01318
    """

    name: ClassVar[str] = "strict"
    trade: ClassVar[str] = "exactly the expert's distribution; drafted tokens survive only as far as the expert would say them"

    def defer(self, evidence: Evidence) -> Mask:
        return np.ones(len(evidence.drafter), dtype=bool)


@dataclass(frozen=True)
class Never(Rule):
    """Never defer: the drafter alone. The expert is not evaluated at all.

    Lossless: never
    Keeps every draft: always
    Temperature 0: the drafter's own greedy text
    Source: the small model as it is
    """

    name: ClassVar[str] = "never"
    trade: ClassVar[str] = "the drafter alone: fastest, and only as good as the drafter"
    asks_expert: ClassVar[bool] = False
    in_blocks: ClassVar[bool] = False

    def defer(self, evidence: Evidence) -> Mask:
        return np.zeros(len(evidence.drafter), dtype=bool)


@dataclass(frozen=True)
class Chow(AlphaRule):
    """Defer iff max q < 1 - alpha.

    Lossless: alpha 0
    Keeps every draft: alpha 1
    Temperature 0: the same test
    Source: Narasimhan et al. 2405.19261; Jitkrittum et al. 2307.02764
    """

    name: ClassVar[str] = "chow"
    trade: ClassVar[str] = "keeps what the drafter is sure of, without looking at the expert's opinion"
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": Dial(0, 1)}
    ends: ClassVar[tuple[float, float]] = (0.0, 1.0)
    example: ClassVar[str] = "0.2"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_doubt > self.alpha


@dataclass(frozen=True)
class ChowLog(AlphaRule):
    """Defer iff H(q) > alpha, H being the entropy in nats.

    Lossless: alpha 0
    Keeps every draft: alpha at log n_vocab or above
    Temperature 0: the same test
    Source: Narasimhan et al. 2405.19261
    """

    name: ClassVar[str] = "chow_log"
    trade: ClassVar[str] = "like chow, judging the drafter's doubt by the whole of its distribution"
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": NON_NEGATIVE}
    ends: ClassVar[tuple[float, float]] = (0.0, math.inf)
    example: ClassVar[str] = "0.5"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_entropy > self.alpha


@dataclass(frozen=True)
class Diff(AlphaRule):
    """Defer iff max q < max p - alpha.

    Lossless: alpha -1
    Keeps every draft: alpha 1
    Temperature 0: the same test
    Source: Narasimhan et al. 2405.19261
    """

    name: ClassVar[str] = "diff"
    trade: ClassVar[str] = "keeps the draft where the expert is hardly surer than the drafter"
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": Dial(-1, 1)}
    ends: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    example: ClassVar[str] = "0.1"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_max < evidence.expert_max - self.alpha


@dataclass(frozen=True)
class DiffLog(AlphaRule):
    """Defer iff H(q) > H(p) + alpha, H being the entropy in nats.

    Lossless: alpha below -log n_vocab
    Keeps every draft: alpha at log n_vocab or above
    Temperature 0: the same test
    Source: Narasimhan et al. 2405.19261
    """

    name: ClassVar[str] = "diff_log"
    trade: ClassVar[str] = "like diff, comparing the doubt of both models by their whole distributions"
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": ANY}
    ends: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    example: ClassVar[str] = "0.2"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_entropy > evidence.expert_entropy + self.alpha


@dataclass(frozen=True)
class Opt(AlphaRule):
    """Defer iff max q < max p - alpha * TV(q, p).

    Deferring costs one rejection, which happens with probability TV: more disagreement means *less* deferral.

    The optimal rule for whole positions compares the expected losses of both models, which are not known. This is the paper's plug-in
    estimate of it: 1 - max q and 1 - max p stand for these losses. So it is as good as both models' confidence, and a rule for single
    tokens can do better.

    Lossless: alpha to minus infinity
    Keeps every draft: alpha to infinity
    Temperature 0: diff: where the two tokens differ, TV is 1
    Source: Narasimhan et al. 2405.19261, the plug-in estimate of its optimal rule for whole positions
    """

    name: ClassVar[str] = "opt"
    trade: ClassVar[str] = (
        "like diff, and forgives more where deferring costs a rejection: an estimate of the paper's optimal rule for whole places"
    )
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": ANY}
    ends: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    example: ClassVar[str] = "0.2"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_max < evidence.expert_max - self.alpha * evidence.tv


@dataclass(frozen=True)
class OptLog(AlphaRule):
    """Defer iff H(q) > H(p) + alpha * TV(q, p), H being the entropy in nats.

    H(q) estimates the expected logarithmic loss, as 1 - max q in ``opt`` does the expected 0-1 loss.

    Lossless: alpha to minus infinity
    Keeps every draft: alpha to infinity
    Temperature 0: diff_log: where the two tokens differ, TV is 1
    Source: Narasimhan et al. 2405.19261
    """

    name: ClassVar[str] = "opt_log"
    trade: ClassVar[str] = "like opt, comparing the doubt of both models by their whole distributions"
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": ANY}
    ends: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    example: ClassVar[str] = "0.4"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_entropy > evidence.expert_entropy + self.alpha * evidence.tv


@dataclass(frozen=True)
class Fuzzy(AlphaRule):
    """Defer iff JS(q, p) >= alpha, the Jensen-Shannon divergence of the sampling distributions in nats.

    Lossless: alpha 0
    Keeps every draft: alpha log 2, but where the two share no token
    Temperature 0: strict: two different tokens share nothing, JS is log 2
    Source: Holsman et al. 2502.20704 (Fuzzy Speculative Decoding)
    """

    name: ClassVar[str] = "fuzzy"
    trade: ClassVar[str] = "keeps the draft where the two models agree in their distributions"
    dials: ClassVar[Mapping[str, Dial]] = {"alpha": Dial(0, math.log(2), "a number from 0 to log 2 = 0.6931")}
    ends: ClassVar[tuple[float, float]] = (0.0, math.log(2))
    example: ClassVar[str] = "0.2"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.js >= self.alpha
