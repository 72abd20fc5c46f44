"""A draft and the expert's rows -> a verdict, exactly distributed as the rule's target.

Every method is a choice of target π; the executor is always the rejection test of speculative sampling (Leviathan et al.
2211.17192, Theorem 1): keep x ~ q with probability min(1, π(x)/q(x)), else draw from norm(max(0, π - q)). The emitted token's
marginal is exactly π, and the probability of a rejection is TV(π, q). Temperature 0 is no special case: one-hot rows make the
same test exact. Inside this file q = drafter and p = expert, both as sampling distributions.
The target rules drafted positions. After a fully kept draft, and where there is none, the token is the expert's own, as in all
speculative decoding. Knows nothing of sessions, caches or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import rules
from .errors import SettingError
from .rules import Evidence, Rule
from .sampling import Array, Mask, Sampler, draw

#: accepted: kept by the rule. matched: deferred, and kept by the strict coin. corrected: drawn from the residual in place of a
#: dropped draft. bonus: the expert's own token after a fully kept draft. expert: there was no draft.
Origin = Literal["accepted", "matched", "corrected", "bonus", "expert"]


@dataclass(frozen=True, eq=False)
class Draft:
    """γ drafted tokens and the rows they were drawn from, copied out of the drafter's buffer."""

    token_ids: list[int]
    logits: Array  # [γ, n_vocab] float32


@dataclass(frozen=True)
class Verdict:
    """What one block emits. ``deferred[j]``: the rule handed drafted token j to the expert (it may still have been kept)."""

    token_ids: tuple[int, ...]
    origins: tuple[Origin, ...]
    deferred: tuple[bool, ...] = ()  # one per tested position
    dropped_ids: tuple[int, ...] = ()  # the rest of the draft, from the rejected token on, that the corrected one replaces

    def cut(self, length: int) -> Verdict:
        """The verdict as if the block had ended after ``length`` tokens."""
        dropped = self.dropped_ids if length == len(self.token_ids) else ()
        return Verdict(self.token_ids[:length], self.origins[:length], self.deferred[:length], dropped)


def deferred_tokens(rule: Rule, evidence: Evidence) -> Mask:
    """The rule's decision per token, [k, n_vocab], with everything deferred that the user's filters deny the expert.

    Without this a token could be emitted that the user filtered out, because the drafter's own filters kept it.
    """
    defer = rule.defer(evidence)
    if defer.ndim == 1:
        defer = np.broadcast_to(defer[:, None], evidence.drafter_logits.shape)
    return defer | ~evidence.expert_support if rule.asks_expert else defer


def blend(defer: Mask, drafter_probs: Array, expert_probs: Array) -> NDArray[np.float64]:
    """The target π = q·¬defer + p·Σ(q·defer), row by row. [k, n_vocab]

    The mass that the drafter puts on deferred tokens (η) is given out again as the expert would, over *every* token.
    """
    handed_over = np.where(defer, drafter_probs, 0.0).sum(axis=-1, keepdims=True)
    target: NDArray[np.float64] = np.where(defer, 0.0, drafter_probs) + handed_over * expert_probs
    return target


def target_probs(
    rule: str | Rule,
    drafter_logits: Array,
    expert_logits: Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> NDArray[np.float64]:
    """The exact distribution π of the token that ``rule`` emits at a drafted position, given both models' raw logits.

    Both arrays are [k, n_vocab] (or [n_vocab], read as k = 1); the result is [k, n_vocab] float64 with rows that sum to 1.
    Raises SettingError for an unknown rule, a value out of range, or arrays of different or unusable shape.
    """
    try:
        drafter_logits, expert_logits = (np.atleast_2d(np.asarray(rows, np.float64)) for rows in (drafter_logits, expert_logits))
    except (TypeError, ValueError) as error:
        raise SettingError(f"drafter_logits and expert_logits must be arrays of numbers, [k, n_vocab]: {error}") from None
    if drafter_logits.shape != expert_logits.shape or drafter_logits.ndim != 2 or not drafter_logits.shape[-1]:
        raise SettingError(
            f"drafter_logits have shape {drafter_logits.shape}, expert_logits {expert_logits.shape}; both must be [k, n_vocab]"
        )
    for name, logits in (("drafter_logits", drafter_logits), ("expert_logits", expert_logits)):
        if not np.isfinite(logits.max(axis=-1)).all():
            raise SettingError(f"{name} have a row with nan, +inf or nothing but -inf; each row needs at least one finite logit")
    evidence = Evidence(drafter_logits, expert_logits, Sampler(temperature, top_k, top_p, min_p))
    defer = deferred_tokens(rules.parse(rule), evidence)
    return blend(defer, evidence.drafter_probs, evidence.expert_probs)


def verify(draft: Draft, expert_logits: Array, rule: Rule, sampler: Sampler, rng: np.random.Generator) -> Verdict:
    """Settle a draft of γ tokens against the expert's γ + 1 rows ([γ + 1, n_vocab]; the last one is for the bonus token).

    A rule that never asks the expert keeps the draft as it is and adds nothing; the rows are then not read.
    """
    drafted = draft.token_ids
    if not rule.asks_expert:
        return Verdict(tuple(drafted), tuple("accepted" for _ in drafted), (False,) * len(drafted))
    origins: list[Origin] = []
    deferred: list[bool] = []
    for j, token in enumerate(drafted):
        evidence = Evidence(draft.logits[j : j + 1], expert_logits[j : j + 1], sampler)
        defer = deferred_tokens(rule, evidence)
        deferred.append(bool(defer[0, token]))
        if not deferred[-1]:  # π(x) >= q(x): kept with certainty, so neither π nor a coin is needed
            origins.append("accepted")
            continue
        drafter_probs = evidence.drafter_probs[0]
        target = blend(defer, evidence.drafter_probs, evidence.expert_probs)[0]
        residual = np.maximum(target - drafter_probs, 0.0)
        # A residual without mass means π = q up to rounding: then the drafted token is as good as any.
        if rng.random() * drafter_probs[token] < target[token] or not residual.any():
            origins.append("matched")
            continue
        corrected = draw(residual, rng)
        return Verdict((*drafted[:j], corrected), (*origins, "corrected"), tuple(deferred), dropped_ids=tuple(drafted[j:]))
    last = draw(sampler.probs(expert_logits[len(drafted)]), rng)
    return Verdict((*drafted, last), (*origins, "bonus" if drafted else "expert"), tuple(deferred))
