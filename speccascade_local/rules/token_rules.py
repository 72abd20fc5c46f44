"""Rules of the speculative-cascades family that decide token by token: each trusts a set of tokens and defers the rest.

Notation as in rules/evidence.py: q = drafter, p = expert.

Main source: Narasimhan et al., "Faster Cascades via Speculative Decoding", arXiv 2405.19261 (ICLR 2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..tokens.sampler import Mask
from .evidence import Evidence
from .rule import NON_NEGATIVE, AlphaRule, Dial, Dials

#: The lossless end of a dial that is lossless "below 0".
BELOW_ZERO = -1e-9


@dataclass(frozen=True)
class TokenV1(AlphaRule):
    """Trust {v : q(v) >= max p - alpha}, defer the rest."""

    name = "token_v1"
    trade = "keeps single tokens that the drafter finds nearly as likely as the expert's favorite"
    dials = Dials(alpha=Dial(-1, 1))
    example = "0.2"
    lossless = "alpha -1"
    keeps_every_draft = "alpha 1"
    at_temperature_0 = "diff"
    source = "Narasimhan et al. 2405.19261"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_plain < evidence.expert_max[:, None] - self.alpha


@dataclass(frozen=True)
class TokenV2(AlphaRule):
    """Trust {v : p(v) >= max p - alpha}, defer the rest."""

    name = "token_v2"
    trade = "keeps single tokens whose probability under the expert is within alpha of its favorite's"
    dials = Dials(alpha=Dial(-1, 1))
    lossless_alpha = BELOW_ZERO
    example = "0.2"
    lossless = "alpha below 0"
    keeps_every_draft = "alpha 1"
    at_temperature_0 = "keep iff p of the drafted token >= max p - alpha"
    source = "Narasimhan et al. 2405.19261"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.expert_plain < evidence.expert_max[:, None] - self.alpha


@dataclass(frozen=True)
class TokenV3(AlphaRule):
    """Trust {v : p(v) >= (1 - alpha) * max p}, defer the rest.

    alpha 0 trusts the expert's favorite alone, which sharpens mildly and is *not* lossless. Below 0 nothing is trusted.
    """

    name = "token_v3"
    trade = "keeps single tokens that the expert finds nearly as good as its own favorite"
    dials = Dials(alpha=Dial(-1, 1))
    lossless_alpha = BELOW_ZERO
    example = "0.3"
    lossless = "alpha below 0"
    keeps_every_draft = "alpha 1"
    at_temperature_0 = "keep iff p of the drafted token >= (1 - alpha) * max p: greedy lenience"
    source = "Narasimhan et al. 2405.19261"

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.expert_plain < (1 - self.alpha) * evidence.expert_max[:, None]


@dataclass(frozen=True)
class Bild(AlphaRule):
    """Trust {v : -log p(v) <= alpha}, defer the rest."""

    name = "bild"
    trade = "keeps single tokens that the expert finds likely enough, however much likelier its favorite is"
    dials = Dials(alpha=NON_NEGATIVE)
    example = "1.5"
    lossless = "alpha 0"
    keeps_every_draft = "alpha to infinity"
    at_temperature_0 = "keep iff -log p of the drafted token <= alpha"
    source = "Kim et al. 2302.07863 (BiLD, its rollback test)"

    def defer(self, evidence: Evidence) -> Mask:
        # -log p > alpha without a logarithm of each p. An impossible token is never trusted, however large alpha is.
        return evidence.expert_plain < max(math.exp(-self.alpha), math.ulp(0))
