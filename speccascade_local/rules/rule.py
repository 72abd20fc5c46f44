"""What a deferral rule is, and the target distribution π that follows from its answer.

A rule says where to *defer*: per position ([k]) or per position and token ([k, n_vocab]). :class:`Decision` computes π from that, in the
same way for all rules. decoding/verify.py accepts and rejects by π. A method is a frozen value: ``str(rule)`` is ``"token_v3:0.3"``.

Notation as in rules/evidence.py: q = drafter, p = expert.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common.lazy import LazyProperty
from ..common.validation import finite_number, whole_number
from ..tokens.rows import Float, total_variation
from ..tokens.sampler import Array, Mask, Sampler
from .evidence import Evidence


@dataclass(frozen=True)
class Dial:
    """The range of one number of a method."""

    low: float
    high: float
    words: str = ""  # the range in words, where "a number from LOW to HIGH" does not say it
    whole: bool = False  # whether only whole numbers are allowed

    def allowed(self) -> str:
        """Return the range in words."""
        kind = "a whole number" if self.whole else "a number"
        return self.words or f"{kind} from {self.low:g} to {self.high:g}"

    def check(self, name: str, value: object) -> float:
        """Return the value as a number; 1 and 1.0 are the same. Raises SettingError outside the range."""
        if self.whole:
            as_whole = int(value) if isinstance(value, float) and value.is_integer() else value
            return whole_number(name, as_whole, int(self.low), int(self.high))
        return finite_number(name, value, self.low, self.high, self.allowed())


class Dials(dict[str, Dial]):
    """The dials of a method by the names of its fields."""


ANY = Dial(-math.inf, math.inf, "any finite number")
NON_NEGATIVE = Dial(0, math.inf, "0 or more")


class Method(ABC):
    """A way to let two models answer as one, written as a line of text. Subclasses are frozen dataclasses whose fields are its dials.

    Raises SettingError for a dial outside its range.
    """

    #: How the method is written on the command line, in YAML and in result files.
    name: ClassVar[str]
    #: One line: what is traded for what.
    trade: ClassVar[str]
    #: The range of each field. Fields without a default must be given.
    dials: ClassVar[Mapping[str, Dial]] = Dials()
    #: Typical values of the dials, as written after the name; used where all methods are shown side by side.
    example: ClassVar[str] = ""
    #: For the table of methods: the dials at which it is lossless and at which it keeps every draft, what it does at temperature 0, and
    #: where it comes from. Only built-in methods have these.
    lossless: ClassVar[str]
    keeps_every_draft: ClassVar[str]
    at_temperature_0: ClassVar[str]
    source: ClassVar[str]
    #: False for the one method that never evaluates the expert.
    asks_expert: ClassVar[bool] = True
    #: Whether the expert verifies drafted blocks; False for the drafter alone and for sequential cascades. Where they do not ask the
    #: expert, the user's filters apply to the drafter.
    in_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, dial in self.dials.items():
            object.__setattr__(self, name, dial.check(f"{name} of {self.name}", getattr(self, name)))

    def __str__(self) -> str:
        values = [repr(getattr(self, name)) for name in self.dials]
        return f"{self.name}:{','.join(values)}" if values else self.name

    def check(self, sampler: Sampler, block_size: int) -> None:  # noqa: B027  # most methods work under all settings
        """Refuse settings under which the method means nothing. Raises SettingError."""


class Rule(Method):
    """A deferral rule: at each drafted position it says which tokens the expert decides about."""

    #: True for rules that look at their own past, see ``remember``.
    remembers: ClassVar[bool] = False

    @abstractmethod
    def defer(self, evidence: Evidence) -> Mask:
        """Return True where the expert decides: [k] (whole positions) or [k, n_vocab] (single tokens)."""

    def at(self, evidence: Evidence) -> Rule:
        """Return the rule that holds at this place: itself, except for rules made of rules."""
        return self

    def remember(self, decision: Decision) -> float:
        """Return a number about a tested position, which later ones find in ``Place.trace``. Called only if ``remembers``."""
        return 0.0


@dataclass(frozen=True)
class AlphaRule(Rule):
    """A rule with one dial, from lossless to keeping every draft."""

    alpha: float
    #: The most lenient alpha that is still lossless, where that is not the low end of the dial.
    lossless_alpha: ClassVar[float | None] = None

    @classmethod
    def ends(cls) -> tuple[float, float]:
        """Return the most lenient alpha that is still lossless, and the alpha that keeps every draft."""
        dial = cls.dials["alpha"]
        return dial.low if cls.lossless_alpha is None else cls.lossless_alpha, dial.high


class TargetRule(Rule):
    """A rule that computes π itself, because no mask of deferred tokens describes it."""

    @abstractmethod
    def target(self, evidence: Evidence) -> Float:
        """Return the distribution π of the emitted token; 0 for tokens that the expert's filters deny. [k, n_vocab]"""

    def defer(self, evidence: Evidence) -> Mask:
        """Return where a drafted token is not certain to be kept: π(x) < q(x). [k, n_vocab]"""
        return self.target(evidence) < evidence.drafter_probs


@dataclass(frozen=True, eq=False)
class Decision:
    """A rule applied to evidence."""

    rule: Rule
    evidence: Evidence

    @LazyProperty
    def deferred(self) -> Mask:
        """The rule's answer per token. What the user's filters deny the expert is always deferred. [k, n_vocab]

        Otherwise a token could be emitted that the drafter's filters keep and the expert's filters deny.
        """
        if isinstance(self.rule, TargetRule):
            return self.target < self.evidence.drafter_probs
        defer = self.rule.defer(self.evidence)
        if defer.ndim == 1:
            defer = np.broadcast_to(defer[:, None], self.evidence.drafter.logits.shape)
        return defer | ~self.evidence.expert_support if self.rule.in_blocks else defer

    def defers(self, token: int) -> bool:
        """Return whether the rule leaves ``token`` to the expert at the first position."""
        if isinstance(self.rule, TargetRule):
            return self.prob(token) < self.evidence.drafter.prob(self.evidence.sampler, token)
        return bool(self.deferred[0, token])

    def prob(self, token: int) -> float:
        """Return π(token) at the first position. For a rule that is a mask, π is not computed as a whole."""
        if isinstance(self.rule, TargetRule):
            return float(self.target[0, token])
        drafter, expert, sampler = self.evidence.drafter, self.evidence.expert, self.evidence.sampler
        kept = 0.0 if self.deferred[0, token] else drafter.prob(sampler, token)
        return kept + float(self._handed_over[0]) * expert.prob(sampler, token)

    @LazyProperty
    def target(self) -> Float:
        """The distribution π of the emitted token. [k, n_vocab]"""
        if isinstance(self.rule, TargetRule):
            return self.rule.target(self.evidence)
        if not self.rule.asks_expert:
            return self.evidence.drafter_probs
        return blend(self.deferred, self.evidence.drafter_probs, self.evidence.expert_probs)

    @LazyProperty
    def tv(self) -> Float:
        """The distance of the target from the expert: total variation of π and p. [k]"""
        if isinstance(self.rule, TargetRule):
            return total_variation(self.target, self.evidence.expert_probs)
        return np.array([self._distance(j, np.flatnonzero(~deferred)) for j, deferred in enumerate(self.deferred)])

    def _distance(self, position: int, trusted: NDArray[np.intp]) -> float:
        """Return TV(π, p) at one position. Only trusted tokens, mostly few, can have more of π = q + η·p than of p."""
        evidence = self.evidence
        if evidence.sampler.temperature == 0:
            return float(evidence.tv[position]) if evidence.drafter.best[position] in trusted else 0.0
        if len(trusted) == self.deferred.shape[-1]:
            return float(evidence.tv[position])
        q, p = evidence.drafter_probs[position, trusted], evidence.expert_probs[position, trusted]
        return float(np.maximum(q - q.sum() * p, 0.0).sum())

    @LazyProperty
    def _handed_over(self) -> Float:
        if self.evidence.sampler.temperature == 0:
            return self.deferred[np.arange(len(self.deferred)), self.evidence.drafter.best].astype(np.float64)
        return deferred_mass(self.deferred, self.evidence.drafter_probs)


def deferred_mass(defer: Mask, drafter_probs: Array) -> Float:
    """Return η, the mass that the drafter puts on deferred tokens. [k, n_vocab] -> [k]"""
    mass = np.array([row.sum(where=deferred) for row, deferred in zip(drafter_probs, defer)])
    mass[defer.all(axis=-1)] = 1.0  # not 1 - 1e-16: where everything is deferred, the target is p to the last bit
    return mass


def blend(defer: Mask, drafter_probs: Array, expert_probs: Array) -> Float:
    """Return the target π = q·¬defer + p·Σ(q·defer), row by row. [k, n_vocab]

    The expert's distribution over *every* token shares out η, the mass that the drafter puts on deferred tokens.
    """
    target: Float = expert_probs * deferred_mass(defer, drafter_probs)[:, None]
    np.add(target, drafter_probs, out=target, where=~defer)
    return target
