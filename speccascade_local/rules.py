"""Where the expert is asked: one small frozen class per deferral rule.

Notation, here and in verify.py: q = drafter, p = expert; ``plain`` = softmax of the raw logits (temperature 1, nothing
filtered), which confidence tests read; ``probs`` = the sampling distributions, which total variation reads.
A rule says where to *defer*: per position ([k]) or per position and token ([k, n_vocab]). What follows from that, the target
distribution and the coin, is verify.py's business. A rule is a value: ``str(rule)`` is ``"token_v3:0.3"`` and
:func:`parse` reads it back.

Source: Narasimhan et al., "Faster Cascades via Speculative Decoding", arXiv 2405.19261 (ICLR 2025).
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .checks import finite_number
from .errors import SettingError
from .sampling import Array, Mask, Sampler, softmax


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a rule may look at: the rows of both models at k positions. Everything is computed when first asked for."""

    drafter_logits: Array  # [k, n_vocab]
    expert_logits: Array  # [k, n_vocab]
    sampler: Sampler

    @cached_property
    def drafter_probs(self) -> NDArray[np.float64]:
        """Sampling distribution of the drafter. [k, n_vocab]"""
        return self.sampler.probs(self.drafter_logits)

    @cached_property
    def _expert(self) -> tuple[NDArray[np.float64], Mask]:
        return self.sampler.probs_and_support(self.expert_logits)

    @property
    def expert_probs(self) -> NDArray[np.float64]:
        """Sampling distribution of the expert. [k, n_vocab]"""
        return self._expert[0]

    @property
    def expert_support(self) -> Mask:
        """Tokens that the user's filters let the expert say. [k, n_vocab]"""
        return self._expert[1]

    @cached_property
    def drafter_plain(self) -> NDArray[np.float64]:
        """[k, n_vocab]"""
        return softmax(self.drafter_logits)

    @cached_property
    def expert_plain(self) -> NDArray[np.float64]:
        """[k, n_vocab]"""
        return softmax(self.expert_logits)

    @cached_property
    def drafter_max(self) -> NDArray[np.float64]:
        """The drafter's confidence, max q. [k]"""
        top: NDArray[np.float64] = self.drafter_plain.max(axis=-1)
        return top

    @cached_property
    def drafter_doubt(self) -> NDArray[np.float64]:
        """1 - max q, summed from the other tokens: it stays above 0 where max q rounds to 1. [k]"""
        others = self.drafter_plain.copy()
        np.put_along_axis(others, others.argmax(axis=-1)[:, None], 0.0, axis=-1)
        doubt: NDArray[np.float64] = others.sum(axis=-1)
        return doubt

    @cached_property
    def expert_max(self) -> NDArray[np.float64]:
        """The expert's confidence, max p. [k]"""
        top: NDArray[np.float64] = self.expert_plain.max(axis=-1)
        return top

    @cached_property
    def tv(self) -> NDArray[np.float64]:
        """Total variation of the sampling distributions, sum of max(0, p - q). [k]"""
        distance: NDArray[np.float64] = np.maximum(self.expert_probs - self.drafter_probs, 0).sum(axis=-1)
        return distance


class Rule(ABC):
    """A deferral rule. Subclasses are frozen dataclasses, so equal rules compare equal."""

    #: How the rule is written on the command line, in YAML and in result files.
    name: ClassVar[str]
    #: One line: what is traded for what.
    trade: ClassVar[str]
    #: False for the one rule that leaves everything, the user's filters included, to the drafter.
    asks_expert: ClassVar[bool] = True

    @abstractmethod
    def defer(self, evidence: Evidence) -> Mask:
        """True where the expert decides: [k] (whole positions) or [k, n_vocab] (single tokens)."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Strict(Rule):
    """Always defer: lossless speculative sampling (Leviathan et al. 2211.17192; Chen et al. 2302.01318)."""

    name: ClassVar[str] = "strict"
    trade: ClassVar[str] = "exactly the expert's distribution; drafted tokens survive only as far as the expert would say them"

    def defer(self, evidence: Evidence) -> Mask:
        return np.ones(len(evidence.drafter_logits), dtype=bool)


@dataclass(frozen=True)
class Never(Rule):
    """Never defer: the drafter alone. The expert is not evaluated at all."""

    name: ClassVar[str] = "never"
    trade: ClassVar[str] = "the drafter alone: fastest, and only as good as the drafter"
    asks_expert: ClassVar[bool] = False

    def defer(self, evidence: Evidence) -> Mask:
        return np.zeros(len(evidence.drafter_logits), dtype=bool)


@dataclass(frozen=True)
class AlphaRule(Rule):
    """A rule with one dial. Raises SettingError when ``alpha`` is not a number within [low, high]."""

    alpha: float
    low: ClassVar[float]
    high: ClassVar[float]

    def __post_init__(self) -> None:
        # 1 and 1.0 are the same rule and print alike.
        object.__setattr__(self, "alpha", finite_number(f"alpha of {self.name}", self.alpha, self.low, self.high, self.allowed()))

    @classmethod
    def allowed(cls) -> str:
        """The range of alpha in words."""
        return "any finite number" if math.isinf(cls.low) else f"a number from {cls.low:g} to {cls.high:g}"

    def __str__(self) -> str:
        return f"{self.name}:{self.alpha!r}"


@dataclass(frozen=True)
class Chow(AlphaRule):
    """Defer iff max q < 1 - alpha. alpha 0 is lossless, 1 keeps every draft. At temperature 0 the same test."""

    name: ClassVar[str] = "chow"
    trade: ClassVar[str] = "keeps what the drafter is sure of, without looking at the expert's opinion"
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_doubt > self.alpha


@dataclass(frozen=True)
class Diff(AlphaRule):
    """Defer iff max q < max p - alpha. alpha -1 is lossless, 1 keeps every draft. At temperature 0 the same test."""

    name: ClassVar[str] = "diff"
    trade: ClassVar[str] = "keeps the draft where the expert is hardly surer than the drafter"
    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 1.0

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_max < evidence.expert_max - self.alpha


@dataclass(frozen=True)
class Opt(AlphaRule):
    """Defer iff max q < max p - alpha * TV(q, p).

    Deferring costs one rejection, which happens with probability TV: more disagreement means *less* deferral. A very negative
    alpha is lossless, a very large one keeps every draft. At temperature 0, where the two tokens differ, TV = 1 and the rule is
    Diff.
    """

    name: ClassVar[str] = "opt"
    trade: ClassVar[str] = "the paper's optimal rule: like diff, and it forgives more where deferring would cost a rejection"
    low: ClassVar[float] = -math.inf
    high: ClassVar[float] = math.inf

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_max < evidence.expert_max - self.alpha * evidence.tv


@dataclass(frozen=True)
class TokenV1(AlphaRule):
    """Trust {v : q(v) >= max p - alpha}, defer the rest. alpha -1 is lossless. At temperature 0 it equals Diff."""

    name: ClassVar[str] = "token_v1"
    trade: ClassVar[str] = "keeps single tokens that the drafter finds nearly as likely as the expert's favourite"
    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 1.0

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.drafter_plain < evidence.expert_max[:, None] - self.alpha


@dataclass(frozen=True)
class TokenV2(AlphaRule):
    """Trust {v : p(v) >= max p - alpha}, defer the rest. alpha below 0 is lossless, 1 keeps every draft."""

    name: ClassVar[str] = "token_v2"
    trade: ClassVar[str] = "keeps single tokens whose probability under the expert is within alpha of its favourite's"
    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 1.0

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.expert_plain < evidence.expert_max[:, None] - self.alpha


@dataclass(frozen=True)
class TokenV3(AlphaRule):
    """Trust {v : p(v) >= (1 - alpha) * max p}, defer the rest.

    alpha below 0 is lossless (nothing is trusted); alpha 0 trusts the expert's favourite alone, a mild sharpening and *not*
    lossless; 1 keeps every draft. At temperature 0 it is greedy lenience with l = 1 - alpha (Leviathan et al., A.5).
    """

    name: ClassVar[str] = "token_v3"
    trade: ClassVar[str] = "keeps single tokens that the expert finds nearly as good as its own favourite"
    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 1.0

    def defer(self, evidence: Evidence) -> Mask:
        return evidence.expert_plain < (1 - self.alpha) * evidence.expert_max[:, None]


PLAIN_RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Strict, Never)}
ALPHA_RULES: dict[str, type[AlphaRule]] = {rule.name: rule for rule in (Chow, Diff, Opt, TokenV1, TokenV2, TokenV3)}

#: The rule where neither the user nor models.yaml names one.
DEFAULT = TokenV3(0.3)


def parse(spec: str | Rule) -> Rule:
    """``"token_v3:0.3"`` -> ``TokenV3(0.3)``; a Rule is returned as it is. Raises SettingError with what is known and allowed."""
    if isinstance(spec, Rule):
        return spec
    if not isinstance(spec, str):
        raise SettingError(f"a rule is written as text, such as '{DEFAULT}'; got {spec!r}")
    name, colon, alpha = spec.partition(":")
    if name in PLAIN_RULES:
        if colon:
            raise SettingError(f"rule {spec!r}: {name} has no alpha; write '{name}'")
        return PLAIN_RULES[name]()
    if name not in ALPHA_RULES:
        known = [*PLAIN_RULES, *(f"{rule}:ALPHA" for rule in ALPHA_RULES)]
        close = difflib.get_close_matches(name, [*PLAIN_RULES, *ALPHA_RULES], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingError(f"unknown rule {spec!r}; known are {', '.join(known)}{hint}")
    rule = ALPHA_RULES[name]
    try:
        return rule(float(alpha))
    except ValueError:
        raise SettingError(f"rule {spec!r}: {name} needs an alpha, {rule.allowed()}, such as '{name}:0.3'") from None
