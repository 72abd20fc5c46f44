"""Rules made of rules: a fidelity budget, a strict beginning, another rule inside a thinking span.

Each chooses which rule, or which part of a rule, holds at a place (``at``), so targets, coins and accounts are those of the chosen one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common.errors import SettingError
from ..tokens.rows import Float
from ..tokens.sampler import Mask, Sampler
from .evidence import Evidence
from .lossy_acceptance import Lenience
from .position_rules import Chow, Diff, Fuzzy, Strict
from .rule import AlphaRule, Decision, Dial, Dials, Rule, TargetRule
from .token_rules import TokenV1, TokenV2, TokenV3

#: Rules that a budget can move: their dial runs between two finite ends.
ADJUSTABLE: dict[str, type[AlphaRule]] = {rule.name: rule for rule in (TokenV3, TokenV2, TokenV1, Chow, Diff, Fuzzy, Lenience)}
#: How far a budget turns its inner dial, in shares of its range, for each token that could have cost ``limit`` and cost nothing.
GAIN = 0.25
#: Savings that are not spent: a distance is computed no more exactly than that.
ROUNDING = 1e-12


class Composed(Rule):
    """A rule that leaves every decision to the rule that holds at a place."""

    def defer(self, evidence: Evidence) -> Mask:
        return Decision(self.at(evidence), evidence).deferred


@dataclass(frozen=True)
class Budget(Composed):
    """Hold the mean of TV(π, p) over the reply's tokens at or under ``limit``, by moving alpha of an inner rule.

    alpha starts half-way, rises with what was saved, and returns as that is spent. Where the rule's TV would overdraw the account, only
    the savings are spent: the target is p, moved towards the rule's by as much as they pay for. So the bound holds after every token,
    not only in the long run.

    It is a bound per token. By the union bound, the distribution of a whole reply of n tokens is within min(1, n * limit) of the expert's:
    with limit 0.02 that says nothing of 50 tokens or more.
    """

    limit: float
    inner: str = TokenV3.name

    name = "budget"
    trade = "you say how far from the expert a token may be on average over a reply, and the dial turns itself"
    dials = Dials(limit=Dial(0, 1))
    example = "0.05"
    lossless = "limit 0"
    keeps_every_draft = "limit 1, once alpha has risen to its end"
    at_temperature_0 = "a kept mismatch costs 1, so one token in 1/limit may be the drafter's; what cannot be paid whole is strict"
    source = "this project"
    remembers = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner not in ADJUSTABLE:
            raise SettingError(
                f"a budget cannot move {self.inner!r:.40}; name one of {', '.join(ADJUSTABLE)}, without a number, which the budget sets"
            )

    def __str__(self) -> str:
        return super().__str__() + ("" if self.inner == TokenV3.name else f",{self.inner}")

    def at(self, evidence: Evidence) -> Rule:
        place, limit = evidence.place, self.limit
        if not limit:
            return Strict()
        saved = limit * place.emitted - sum(place.trace)
        lossless, lenient = ADJUSTABLE[self.inner].ends()
        share = min(max(0.5 + GAIN * saved / limit, 0.0), 1.0)
        rule = ADJUSTABLE[self.inner](lossless + share * (lenient - lossless))
        cost = float(Decision(rule, evidence).tv[0])
        if sum((*place.trace, cost)) / (place.emitted + 1) <= limit:  # summed as Fidelity does, so that no rounding breaks the bound
            return rule
        # A greedy text has no use for a part of a rule: it would be drawn by chance.
        spent = saved - ROUNDING
        return _Part(rule, spent / cost) if spent > 0 and evidence.sampler.temperature else Strict()

    def remember(self, decision: Decision) -> float:
        return float(decision.tv[0])


@dataclass(frozen=True)
class _Part(TargetRule):
    """p, moved towards the target of ``rule`` by a share of the way: its TV from p is that share of the rule's."""

    rule: Rule
    share: float

    name = "part"
    trade = "a part of another rule"

    def target(self, evidence: Evidence) -> Float:
        return (1 - self.share) * evidence.expert_probs + self.share * Decision(self.rule, evidence).target


@dataclass(frozen=True)
class Guarded(Composed):
    """``rule``, with the first tokens strict, and another rule inside a thinking span.

    strict_first: the first tokens of a reply that are the expert's whatever the rule says; lossy acceptance is known to hurt refusals
    first, and they are decided there (use 4 to 8). thinking: the rule between ``<think>`` and ``</think>``; None for the same one.
    """

    rule: Rule
    strict_first: int = 0
    thinking: Rule | None = None

    name = "guarded"
    trade = "one rule for the answer, another for the thinking, and a strict beginning"
    dials = Dials(strict_first=Dial(0, 2**31 - 1, whole=True))
    lossless = "as the rules that it is made of"
    keeps_every_draft = "as the rules that it is made of"
    at_temperature_0 = "as the rules that it is made of"
    source = "this project"
    TAGS = (b"<think>", b"</think>")

    def __post_init__(self) -> None:
        super().__post_init__()
        for rule in (self.rule, self.thinking):
            if rule and not rule.asks_expert:
                raise SettingError(
                    f"rule {rule} never asks the expert, so it cannot be one of several; chow:1 keeps every draft and can be combined"
                )
        if self.thinking and isinstance(self.rule, Budget):
            raise SettingError(f"{self.rule} holds for a whole reply, so it cannot leave the thinking to {self.thinking}; give one of them")
        if self.thinking and self.rule.remembers and self.thinking.remembers:
            raise SettingError(f"{self.rule} and {self.thinking} both look at their own past; only one of two rules may")

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether one of the rules looks at its own past."""
        return self.rule.remembers or bool(self.thinking and self.thinking.remembers)

    def __str__(self) -> str:
        first = f"+strict_first:{self.strict_first}" if self.strict_first else ""
        return f"{self.rule}{first}" + (f"+thinking:{self.thinking}" if self.thinking else "")

    def check(self, sampler: Sampler, block_size: int) -> None:
        for rule in (self.rule, self.thinking):
            if rule:
                rule.check(sampler, block_size)

    def at(self, evidence: Evidence) -> Rule:
        if evidence.place.emitted < self.strict_first:
            return Strict()
        return self._regional(evidence).at(evidence)

    def remember(self, decision: Decision) -> float:
        """What the one rule that remembers keeps of this position, whichever rule decided it."""
        remembering = self.thinking if self.thinking and self.thinking.remembers else self.rule
        return remembering.remember(decision)

    def _regional(self, evidence: Evidence) -> Rule:
        return self.thinking if self.thinking and _thinks(evidence, self.TAGS) else self.rule


class _Span:
    """Whether a text that is read piece by piece is inside a tagged span: whether its last opening tag is still open."""

    def __init__(self, tags: tuple[bytes, bytes], read: int = 0, tail: bytes = b"", inside: bool = False) -> None:
        self._tags, self.read, self._tail, self.inside = tags, read, tail, inside

    def copy(self) -> _Span:
        """One that reads on by itself."""
        return _Span(self._tags, self.read, self._tail, self.inside)

    def feed(self, text: bytes, tokens: int) -> None:
        """Read on: ``text``, spelled by so many ``tokens``."""
        text = self._tail + text
        opened, closed = map(text.rfind, self._tags)
        if opened != closed:  # both are -1 where there is neither
            self.inside = opened > closed
        self._tail = text[1 - max(map(len, self._tags)) :]  # where a tag may have begun
        self.read += tokens


def _thinks(evidence: Evidence, tags: tuple[bytes, bytes]) -> bool:
    """Whether the last opening tag before this place, in prompt or reply, is still open."""
    place, bytes_of = evidence.place, evidence.vocabulary.bytes_of
    committed: _Span = place.notes.setdefault(tags, _Span(tags))
    if committed.read < len(place.text):
        new = place.text[committed.read :]
        committed.feed(bytes_of(new), len(new))
    here, drafted = committed.copy(), place.drafted[: place.position]
    here.feed(bytes_of(drafted), len(drafted))
    return here.inside
