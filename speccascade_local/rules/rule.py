"""What a deferral rule is, and what follows from its answer: the target distribution π.

A rule says where to *defer*: per position ([k]) or per position and token ([k, n_vocab]). :class:`Decision` makes π of that, the
same way for all; the coin that follows from π is decoding/verify.py's business. A method is a value: it is frozen, and ``str(rule)`` is
``"token_v3:0.3"``. Each docstring has the same fields (Lossless, Keeps every draft, Temperature 0, Source), from which the table of
``speccascade rules`` is made.
Notation as in rules/evidence.py: q = drafter, p = expert. Knows no particular rule.
"""

from __future__ import annotations

import inspect
import math
import re
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
    """What one number of a method may be. ``words`` says it where "a number from LOW to HIGH" would not."""

    low: float
    high: float
    words: str = ""
    whole: bool = False

    def allowed(self) -> str:
        """The range in words."""
        kind = "a whole number" if self.whole else "a number"
        return self.words or f"{kind} from {self.low:g} to {self.high:g}"

    def check(self, name: str, value: object) -> float:
        """The value as a number in range, 1 and 1.0 being the same. Raises SettingError."""
        if self.whole:
            as_whole = int(value) if isinstance(value, float) and value.is_integer() else value
            return whole_number(name, as_whole, int(self.low), int(self.high))
        return finite_number(name, value, self.low, self.high, self.allowed())


ANY = Dial(-math.inf, math.inf, "any finite number")
NON_NEGATIVE = Dial(0, math.inf, "0 or more")


class Method(ABC):
    """A way to let two models answer as one, named by a line of text. Subclasses are frozen dataclasses whose fields are its dials.

    Raises SettingError for a dial outside its range.
    """

    #: How the method is written on the command line, in YAML and in result files.
    name: ClassVar[str]
    #: One line: what is traded for what.
    trade: ClassVar[str]
    #: The range of each field. Fields without a default must be given.
    dials: ClassVar[Mapping[str, Dial]] = {}
    #: Typical values of the dials, as written after the name; used where all methods are shown side by side.
    example: ClassVar[str] = ""
    #: False for the one method that never evaluates the expert.
    asks_expert: ClassVar[bool] = True
    #: Whether the expert settles drafted blocks; False for the drafter alone and for sequential cascades, where the user's filters are
    #: the drafter's own wherever the expert is not asked.
    in_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, dial in self.dials.items():
            object.__setattr__(self, name, dial.check(f"{name} of {self.name}", getattr(self, name)))

    def __str__(self) -> str:
        values = [repr(getattr(self, name)) for name in self.dials]
        return f"{self.name}:{','.join(values)}" if values else self.name

    def check(self, sampler: Sampler, block_size: int) -> None:  # noqa: B027  # most mean something under all settings
        """Refuse settings under which the method means nothing. Raises SettingError."""

    @classmethod
    def documented(cls) -> dict[str, str]:
        """The docstring's parts: ``summary``, and each field that it has (``Source`` and so on)."""
        text = inspect.cleandoc(cls.__doc__ or "")
        parts = re.split(r"^(Lossless|Keeps every draft|Temperature 0|Source): ", text, flags=re.MULTILINE)
        found = dict(zip(parts[1::2], parts[2::2]), summary=parts[0].split("\n\n")[0])
        return {name: " ".join(part.split("\n\n")[0].split()) for name, part in found.items()}


class Rule(Method):
    """A deferral rule: at each drafted position it says what the expert decides."""

    #: True for rules that look at their own past, see ``remember``.
    remembers: ClassVar[bool] = False

    @abstractmethod
    def defer(self, evidence: Evidence) -> Mask:
        """True where the expert decides: [k] (whole positions) or [k, n_vocab] (single tokens)."""

    def at(self, evidence: Evidence) -> Rule:
        """The rule that holds at this place; itself, but for rules made of rules."""
        return self

    def remember(self, decision: Decision) -> float:
        """The number that is kept of a tested position, and found in ``Place.trace`` at later ones. Asked only if ``remembers``."""
        return 0.0


@dataclass(frozen=True)
class AlphaRule(Rule):
    """A rule with one dial."""

    alpha: float
    #: The two ends of the dial: the most lenient alpha that is still lossless, and the alpha that keeps every draft.
    ends: ClassVar[tuple[float, float]]


class TargetRule(Rule):
    """A rule whose target is no mixture of a mask; it names π itself."""

    @abstractmethod
    def target(self, evidence: Evidence) -> Float:
        """The distribution π of the emitted token; 0 for tokens that the expert's filters deny. [k, n_vocab]"""

    def defer(self, evidence: Evidence) -> Mask:
        """Where a drafted token is not kept with certainty: π(x) < q(x)."""
        return self.target(evidence) < evidence.drafter_probs


@dataclass(frozen=True, eq=False)
class Decision:
    """A rule applied to evidence."""

    rule: Rule
    evidence: Evidence

    @LazyProperty
    def deferred(self) -> Mask:
        """The rule's decision per token, with everything deferred that the user's filters deny the expert. [k, n_vocab]

        Without this a token could be emitted that the user filtered out, because the drafter's own filters kept it.
        """
        if isinstance(self.rule, TargetRule):
            return self.target < self.evidence.drafter_probs
        defer = self.rule.defer(self.evidence)
        if defer.ndim == 1:
            defer = np.broadcast_to(defer[:, None], self.evidence.drafter.logits.shape)
        return defer | ~self.evidence.expert_support if self.rule.in_blocks else defer

    def defers(self, token: int) -> bool:
        """Whether the first position leaves ``token`` to the expert."""
        if isinstance(self.rule, TargetRule):
            return self.prob(token) < self.evidence.drafter.prob(self.evidence.sampler, token)
        return bool(self.deferred[0, token])

    def prob(self, token: int) -> float:
        """π(token) at the first position; where the rule is a mask, without computing the whole of π."""
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
        """How far the target is from the expert: total variation of π and p. [k]"""
        if isinstance(self.rule, TargetRule):
            return total_variation(self.target, self.evidence.expert_probs)
        return np.array([self._distance(j, np.flatnonzero(~deferred)) for j, deferred in enumerate(self.deferred)])

    def _distance(self, position: int, trusted: NDArray[np.intp]) -> float:
        """TV(π, p) at one position. Only trusted tokens can have more of π = q + η·p than of p, and mostly they are few."""
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
    """η, the mass that the drafter puts on deferred tokens. [k, n_vocab] -> [k]"""
    mass = np.array([row.sum(where=deferred) for row, deferred in zip(drafter_probs, defer)])
    mass[defer.all(axis=-1)] = 1.0  # not 1 - 1e-16: where everything is deferred, the target is p to the last bit
    return mass


def blend(defer: Mask, drafter_probs: Array, expert_probs: Array) -> Float:
    """The target π = q·¬defer + p·Σ(q·defer), row by row. [k, n_vocab]

    The mass that the drafter puts on deferred tokens (η) is given out again as the expert would, over *every* token.
    """
    target: Float = expert_probs * deferred_mass(defer, drafter_probs)[:, None]
    np.add(target, drafter_probs, out=target, where=~defer)
    return target
