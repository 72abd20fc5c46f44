"""A draft and the expert's rows -> a verdict, exactly distributed as the rule's target.

Every method is a choice of target π; the executor is always the rejection test of speculative sampling (Leviathan et al.
2211.17192, Theorem 1): keep x ~ q with probability min(1, π(x)/q(x)), else draw from norm(max(0, π - q)). The emitted token's
marginal is exactly π, and the probability of a rejection is TV(π, q). Temperature 0 is no special case: one-hot rows make the
same test exact. Block verification (Sun et al. 2403.10444) draws from the same distribution and keeps at least as many tokens on
average, by tossing its coins over the block as a whole.
Where the expert has one row more than there are drafted tokens, a draft that was kept whole earns a bonus token from that row.
Inside this file q = drafter and p = expert, both as sampling distributions. Knows nothing of sessions, caches or text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from ..rules.evidence import Evidence, Place
from ..rules.rule import Decision, Rule, TargetRule
from ..tokens.rows import Float, Rows
from ..tokens.sampler import Sampler, draw
from .fidelity import Entry, Recording, make_entry

#: accepted: kept by the rule. matched: deferred, and kept by the strict coin. corrected: drawn in place of a dropped draft, from
#: the residual, or from the expert's own row in place of a guess. bonus: the expert's own token after a fully kept draft. expert: there
#: was no draft.
Origin = Literal["accepted", "matched", "corrected", "bonus", "expert"]

#: token: each position settled on its own. block: the coins are tossed over the whole block.
Verification = Literal["token", "block"]
VERIFICATIONS: tuple[Verification, ...] = get_args(Verification)


@dataclass(frozen=True, eq=False)
class Draft:
    """γ drafted tokens and the rows they were drawn from, one by one, copied out of the drafter's buffer.

    There may be one row more: what the drafter would say after its own draft, which the account of a bonus token wants to know.
    guesses: tokens behind the draft that no model has said, only copied from the text. As a draft each has a one-hot row; the expert
    settles them by the strict test whatever the rule is, for a rule weighs two models and here speaks only one.
    """

    token_ids: list[int]
    rows: Sequence[Rows] = ()  # γ or γ + 1, each [1, n_vocab]
    guesses: list[int] = field(default_factory=list)
    calls: int = 0  # how many batches of the drafter it took

    @property
    def submitted(self) -> list[int]:
        """Draft and guesses."""
        return self.token_ids + self.guesses


@dataclass(frozen=True)
class Verdict:
    """What one block emits. ``deferred[j]``: token j was the expert's to decide, by the rule or as a guess (and may have been kept)."""

    token_ids: tuple[int, ...]
    origins: tuple[Origin, ...]
    deferred: tuple[bool, ...] = ()  # one per tested position
    dropped_ids: tuple[int, ...] = ()  # the rest of the draft, from the rejected token on, that the corrected one replaces
    trace: tuple[float, ...] = ()  # what the rule remembers, one per tested position; empty for rules that do not
    entries: tuple[Entry, ...] = ()  # one per token, if wanted

    @property
    def kept(self) -> int:
        """Drafted and guessed tokens that stand."""
        return sum(origin in ("accepted", "matched") for origin in self.origins)

    def cut(self, length: int) -> Verdict:
        """The verdict as if the block had ended after ``length`` tokens."""
        dropped = self.dropped_ids if length == len(self.token_ids) else ()
        return Verdict(
            self.token_ids[:length], self.origins[:length], self.deferred[:length], dropped, self.trace[:length], self.entries[:length]
        )


def verify(
    draft: Draft,
    expert: Rows,
    rule: Rule,
    sampler: Sampler,
    rng: np.random.Generator,
    *,
    verification: Verification = "token",
    place: Place = Place(),  # noqa: B008  # a frozen value
    wanted: Recording | None = None,
) -> Verdict:
    """Settle γ drafted and guessed tokens against the expert's γ or γ + 1 rows ([.., n_vocab]; the last of γ + 1 is for the bonus token).

    place: where the block begins. wanted: what to record of each token. A rule that never asks the expert keeps the draft as it is
    and adds nothing; the expert's rows are then not read.
    """
    drafted = draft.token_ids
    if not rule.asks_expert:
        entries = tuple(make_entry(wanted, token, sampler, None, row) for token, row in zip(drafted, draft.rows)) if wanted else ()
        return Verdict(tuple(drafted), tuple("accepted" for _ in drafted), (False,) * len(drafted), entries=entries)
    settle = _settle_block if verification == "block" else _settle_tokens
    decisions = _Decisions(draft, expert, rule, sampler, place)
    kept, corrected = settle(decisions, drafted, rng)
    judged = decisions.made[: kept + (corrected is not None)]
    tokens = [*drafted[:kept], *([] if corrected is None else [corrected])]
    deferred = tuple(decision.defers(token) for decision, token in zip(judged, drafted))
    origins: list[Origin] = ["matched" if handed_over else "accepted" for handed_over in deferred[:kept]]
    if corrected is not None:
        origins.append("corrected")
    entries = tuple(_make_entries(wanted, token, decision) for token, decision in zip(tokens, judged)) if wanted else ()
    dropped = draft.submitted[kept:]
    while corrected is None and len(expert) > len(tokens):
        # The strict test of a one-hot row: draw the expert's own token, and go on for as long as that is what was guessed.
        at = len(tokens)
        guess = draft.guesses[at - len(drafted)] if at < len(draft.submitted) else None
        row = expert.row(at)
        token = row.draw(sampler, rng)
        after = draft.rows[at] if at < len(draft.rows) else None  # the drafter is known where it looked that far
        entries += (make_entry(wanted, token, sampler, row, after),) if wanted else ()
        deferred += () if guess is None else (True,)
        tokens.append(token)
        dropped = draft.submitted[at + (token == guess) :]
        if token != guess:
            origins.append("corrected" if guess is not None else "bonus" if draft.submitted else "expert")
            break
        origins.append("matched")
    return Verdict(tuple(tokens), tuple(origins), deferred, tuple(dropped), tuple(decisions.trace[: len(judged)]), entries)


class _Decisions:
    """The rule's decision at one position after the other, each made when the one before is settled."""

    def __init__(self, draft: Draft, expert: Rows, rule: Rule, sampler: Sampler, place: Place) -> None:
        self.made: list[Decision] = []
        self.trace: list[float] = []
        self._draft, self._expert, self._rule, self._sampler = draft, expert, rule, sampler
        self._place = replace(place, drafted=draft.token_ids, expert=expert)

    def __iter__(self) -> Iterator[Decision]:
        for j in range(len(self._draft.token_ids)):
            # A copy that grows with the text, so it is made for rules that read it.
            trace = (*self._place.trace, *self.trace) if self._rule.remembers else ()
            place = replace(self._place, position=j, emitted=self._place.emitted + j, trace=trace)
            evidence = Evidence(self._draft.rows[j], self._expert.row(j), self._sampler, place)
            self.made.append(Decision(self._rule.at(evidence), evidence))
            if self._rule.remembers:
                self.trace.append(self._rule.remember(self.made[-1]))
            yield self.made[-1]


def _settle_tokens(decisions: _Decisions, drafted: list[int], rng: np.random.Generator) -> tuple[int, int | None]:
    """How many drafted tokens are kept, and the token that replaces the next one, if one was rejected."""
    for j, (token, decision) in enumerate(zip(drafted, decisions)):
        # A mask's trusted token has π(x) >= q(x) and is kept with certainty, so no coin is needed. A rule that names its target tosses
        # one for every token, so that its lossless end spends the same random numbers as strict and writes the same text.
        if not isinstance(decision.rule, TargetRule) and not decision.defers(token):
            continue
        if rng.random() * _drafter_prob(decision, token) >= decision.prob(token):
            residual = _residual(decision)
            # A residual without mass means π = q up to rounding: then the drafted token is as good as any.
            if residual.any():
                return j, draw(residual, rng)
    return len(drafted), None


def _settle_block(decisions: _Decisions, drafted: list[int], rng: np.random.Generator) -> tuple[int, int | None]:
    """The same by block verification: Sun et al. 2403.10444, Algorithm 2, with π in place of the large model."""
    made = list(decisions)
    kept, kept_share, share = 0, 1.0, 1.0
    for i, token in enumerate(drafted, start=1):
        decision = made[i - 1]
        share = min(1.0, share * decision.prob(token) / _drafter_prob(decision, token))
        chance = share
        if i < len(drafted) and share < 1:
            missing = _residual(made[i], share).sum()
            chance = missing / (missing + 1 - share)
        if rng.random() < chance:
            kept, kept_share = i, share
    if kept == len(drafted):
        return kept, None
    residual = _residual(made[kept], kept_share)
    return kept, draw(residual if residual.any() else made[kept].target[0], rng)


def _drafter_prob(decision: Decision, token: int) -> float:
    return decision.evidence.drafter.prob(decision.evidence.sampler, token)


def _residual(decision: Decision, share: float = 1.0) -> Float:
    """What is left to draw from after a kept prefix of which π supports ``share``. [n_vocab]"""
    left: Float = share * decision.target[0]
    left -= decision.evidence.drafter_probs[0]
    return np.maximum(left, 0.0, out=left)


def _make_entries(wanted: Recording, token: int, decision: Decision) -> Entry:
    evidence = decision.evidence
    return make_entry(wanted, token, evidence.sampler, evidence.expert, evidence.drafter, decision)
