"""Turns a draft and the expert's rows into a verdict that is distributed exactly as the rule's target.

Every method is a choice of target π. The executor is always the rejection test of speculative sampling (Leviathan et al. 2211.17192,
Theorem 1): keep x ~ q with probability min(1, π(x)/q(x)), else draw from norm(max(0, π - q)). The emitted token's marginal is exactly π,
and the probability of a rejection is TV(π, q). Temperature 0 needs no special case: one-hot rows make the same test exact. Block
verification (Sun et al. 2403.10444) draws from the same distribution and keeps at least as many tokens on average, by tossing its coins
over the block as a whole. In this file q is the drafter and p the expert, both as sampling distributions.
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

#: Who wrote a token; :class:`Verdict` has the glossary.
Origin = Literal["accepted", "matched", "corrected", "bonus", "expert"]

#: "token" settles each position on its own; "block" tosses its coins over the whole block.
Verification = Literal["token", "block"]
VERIFICATIONS: tuple[Verification, ...] = get_args(Verification)


@dataclass(frozen=True, eq=False)
class Draft:
    """γ drafted tokens and the rows that they were drawn from, copied out of the drafter's buffer."""

    token_ids: list[int]  # the γ drafted tokens
    # γ or γ + 1 rows, each [1, n_vocab]; the last of γ + 1 is what the drafter says after its own draft, for the fidelity of a bonus token
    rows: Sequence[Rows] = ()
    # tokens after the draft that no model wrote, copied from the text. Each counts as drafted from a one-hot row. The expert settles them
    # by the strict test whatever the rule is: a rule weighs two models, and here only one speaks.
    guesses: list[int] = field(default_factory=list)
    calls: int = 0  # batches of the drafter that the draft took

    @property
    def submitted(self) -> list[int]:
        return self.token_ids + self.guesses


@dataclass(frozen=True)
class Verdict:
    """What one block emits.

    The origin of a token is one of:
        accepted: drafted, and kept by the rule.
        matched: drafted and deferred, or guessed, and kept by the strict test.
        corrected: drawn in place of a rejected token, from the residual, or from the expert's own row in place of a guess.
        bonus: the expert's own token after a fully kept draft.
        expert: the expert's own token where there was no draft.
    """

    token_ids: tuple[int, ...]  # the emitted tokens
    origins: tuple[Origin, ...]  # one per emitted token
    # one per tested position: whether the token was the expert's to decide, by the rule or as a guess. It may be kept.
    deferred: tuple[bool, ...] = ()
    dropped_ids: tuple[int, ...] = ()  # the rest of the draft, from the rejected token on, which the corrected token replaces
    trace: tuple[float, ...] = ()  # what the rule remembers, one value per tested position; empty for rules that remember nothing
    entries: tuple[Entry, ...] = ()  # one per emitted token, if recorded

    @property
    def kept(self) -> int:
        """Number of drafted and guessed tokens that were kept."""
        return sum(origin in ("accepted", "matched") for origin in self.origins)

    def cut(self, length: int) -> Verdict:
        """Return the verdict as if the block had ended after ``length`` tokens."""
        dropped = self.dropped_ids if length == len(self.token_ids) else ()
        return Verdict(
            self.token_ids[:length], self.origins[:length], self.deferred[:length], dropped, self.trace[:length], self.entries[:length]
        )

    def followed_by(self, other: Verdict) -> Verdict:
        """Return both in one; what is dropped is what ``other`` drops."""
        return Verdict(
            self.token_ids + other.token_ids,
            self.origins + other.origins,
            self.deferred + other.deferred,
            other.dropped_ids,
            self.trace + other.trace,
            self.entries + other.entries,
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
    recording: Recording | None = None,
) -> Verdict:
    """Settle a block.

    A rule that never asks the expert keeps the draft as it is and adds nothing; the expert's rows are then not read.

    Args:
        draft: γ drafted and guessed tokens.
        expert: γ or γ + 1 rows, [.., n_vocab]; the last of γ + 1 is for the bonus token.
        rule: decides which tokens the expert decides.
        sampler: temperature and filters of both models.
        rng: where the coins and tokens come from.
        verification: see :data:`Verification`.
        place: where the block begins.
        recording: what to record of each token; None for nothing.
    """
    drafted = draft.token_ids
    if not rule.asks_expert:
        entries = tuple(make_entry(recording, token, sampler, None, row) for token, row in zip(drafted, draft.rows)) if recording else ()
        return Verdict(tuple(drafted), tuple("accepted" for _ in drafted), (False,) * len(drafted), entries=entries)
    decisions = _Decisions(draft, expert, rule, sampler, place)
    kept, corrected = (_settle_block if verification == "block" else _settle_tokens)(decisions, drafted, rng)
    verdict = _verdict_on_draft(decisions, draft, kept, corrected, recording)
    return verdict if corrected is not None else verdict.followed_by(_settle_guesses(draft, expert, sampler, rng, recording))


def _verdict_on_draft(decisions: _Decisions, draft: Draft, kept: int, corrected: int | None, recording: Recording | None) -> Verdict:
    """Return the verdict on the drafted tokens, where the first ``kept`` are kept."""
    rejected = corrected is not None
    tested = decisions.made[: kept + rejected]
    tokens = (*draft.token_ids[:kept], *(() if corrected is None else (corrected,)))
    deferred = tuple(decision.defers(token) for decision, token in zip(tested, draft.token_ids))
    origins: list[Origin] = ["matched" if is_deferred else "accepted" for is_deferred in deferred[:kept]]
    entries = tuple(_entry_of(recording, token, decision) for token, decision in zip(tokens, tested)) if recording else ()
    return Verdict(
        tokens,
        (*origins, *(("corrected",) if rejected else ())),
        deferred,
        tuple(draft.submitted[kept:]),
        tuple(decisions.trace[: len(tested)]),
        entries,
    )


def _settle_guesses(draft: Draft, expert: Rows, sampler: Sampler, rng: np.random.Generator, recording: Recording | None) -> Verdict:
    """Settle the guesses after a fully kept draft, and add the bonus token.

    The strict test of a one-hot row is: draw the expert's own token, and continue as long as that is the guess.
    """
    tokens: list[int] = []
    origins: list[Origin] = []
    entries: list[Entry] = []
    for at in range(len(draft.token_ids), len(expert)):
        guess = draft.guesses[len(tokens)] if len(tokens) < len(draft.guesses) else None
        row = expert.row(at)
        token = row.draw(sampler, rng)
        tokens.append(token)
        if recording:  # the drafter's row is known where it looked that far
            entries.append(make_entry(recording, token, sampler, row, draft.rows[at] if at < len(draft.rows) else None))
        if token != guess:
            origins.append("corrected" if guess is not None else "bonus" if draft.submitted else "expert")
            break
        origins.append("matched")
    tested, matched = min(len(tokens), len(draft.guesses)), origins.count("matched")
    return Verdict(tuple(tokens), tuple(origins), (True,) * tested, tuple(draft.guesses[matched:]), entries=tuple(entries))


class _Decisions:
    """The rule's decisions, position after position, each made when the one before is settled."""

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
    """Return how many drafted tokens are kept, and the token that replaces the next one, if one was rejected."""
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
    """Return the same by block verification: Sun et al. 2403.10444, Algorithm 2, with π in place of the large model."""
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
    """Return the residual to draw from after a kept prefix, where π supports ``share`` of it. [n_vocab]"""
    left: Float = share * decision.target[0]
    left -= decision.evidence.drafter_probs[0]
    return np.maximum(left, 0.0, out=left)


def _entry_of(recording: Recording, token: int, decision: Decision) -> Entry:
    evidence = decision.evidence
    return make_entry(recording, token, evidence.sampler, evidence.expert, evidence.drafter, decision)
