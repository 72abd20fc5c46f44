"""Rules made of rules: a fidelity budget, a strict beginning, another rule inside a thinking span.

Each chooses with ``at`` the rule that holds at a place. Targets and fidelity are those of the chosen rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
#: How far a budget turns its inner dial for each token that could have cost ``limit`` and cost nothing, as a share of the dial's range.
GAIN = 0.25
#: Savings that are not spent, because a distance is computed no more exactly than this.
ROUNDING = 1e-12


class CompositeRule(Rule):
    """A rule that leaves each decision to the rule that holds at the place."""

    def defer(self, evidence: Evidence) -> Mask:
        return Decision(self.at(evidence), evidence).deferred


@dataclass(frozen=True)
class Budget(CompositeRule):
    """Hold the mean of TV(π, p) over the reply's tokens at or under ``limit``, by moving alpha of an inner rule.

    alpha starts half-way, rises with the savings, and falls as they are spent. Where the rule's TV exceeds the savings, only they are
    spent: the target is p, moved towards the rule's target as far as they allow. So the bound holds after every token.

    It is a bound per token. By the union bound, the distribution of a whole reply of n tokens is within min(1, n * limit) of the expert's.
    With limit 0.02 that bounds nothing from 50 tokens on.
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
        available = saved - ROUNDING
        # A part of a rule is drawn by chance, which a greedy reply must not be.
        return _PartialRule(rule, available / cost) if available > 0 and evidence.sampler.temperature else Strict()

    def remember(self, decision: Decision) -> float:
        return float(decision.tv[0])


@dataclass(frozen=True)
class _PartialRule(TargetRule):
    """p, moved towards the target of ``rule`` by a share of the way: its TV from p is that share of the rule's."""

    rule: Rule
    share: float

    name = "part"

    def target(self, evidence: Evidence) -> Float:
        return (1 - self.share) * evidence.expert_probs + self.share * Decision(self.rule, evidence).target


@dataclass(frozen=True)
class RegionalRule(CompositeRule):
    """One rule for most of a reply, with strict first tokens and another rule inside a thinking span.

    Args:
        strict_first: How many tokens at the beginning of a reply are the expert's. Lossy acceptance is known to hurt refusals first, and
            they are decided there: use 4 to 8.
        thinking: The rule between ``<think>`` and ``</think>``; None for the same one.
    """

    rule: Rule
    strict_first: int = 0
    thinking: Rule | None = None

    name = "regional"
    trade = "one rule for the answer, another for the thinking, and a strict beginning"
    dials = Dials(strict_first=Dial(0, 2**31 - 1, whole=True))
    TAGS = (b"<think>", b"</think>")

    def __post_init__(self) -> None:
        super().__post_init__()
        for rule in (self.rule, self.thinking):
            if rule and not rule.asks_expert:
                raise SettingError(
                    f"rule {rule} never asks the expert, so it cannot be combined with others; use chow:1, which keeps every draft"
                )
        if self.thinking and isinstance(self.rule, Budget):
            raise SettingError(f"{self.rule} holds for a whole reply, so it cannot leave the thinking to {self.thinking}; give one of them")
        if self.thinking and self.rule.remembers and self.thinking.remembers:
            raise SettingError(f"{self.rule} and {self.thinking} both look at their own past; only one may, so change the other")

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
        rule = self.thinking if self.thinking and _is_thinking(evidence, self.TAGS) else self.rule
        return rule.at(evidence)

    def remember(self, decision: Decision) -> float:
        """Return what the one rule that remembers says, even where the other rule decided."""
        rule = self.thinking if self.thinking and self.thinking.remembers else self.rule
        return rule.remember(decision)


@dataclass
class _Span:
    """Whether a text that is read piece by piece is inside a tagged span: whether its last opening tag is still open."""

    tags: tuple[bytes, bytes]
    n_tokens: int = 0  # read so far
    tail: bytes = b""  # where a tag may have begun
    inside: bool = False

    def feed(self, text: bytes, n_tokens: int) -> None:
        """Read on: ``text``, which ``n_tokens`` tokens spell."""
        text = self.tail + text
        opened, closed = map(text.rfind, self.tags)
        if opened != closed:  # both are -1 where there is neither
            self.inside = opened > closed
        self.tail = text[1 - max(map(len, self.tags)) :]
        self.n_tokens += n_tokens


def _is_thinking(evidence: Evidence, tags: tuple[bytes, bytes]) -> bool:
    """Return whether the last opening tag before this place, in prompt or reply, is still open."""
    place, bytes_of = evidence.place, evidence.vocabulary.bytes_of
    committed: _Span = place.notes.setdefault(tags, _Span(tags))
    if committed.n_tokens < len(place.text):
        new = place.text[committed.n_tokens :]
        committed.feed(bytes_of(new), len(new))
    here, drafted = replace(committed), place.drafted[: place.position]
    here.feed(bytes_of(drafted), len(drafted))
    return here.inside
