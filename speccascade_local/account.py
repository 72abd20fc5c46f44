"""The account of one emitted token: from which distribution it was drawn, and how far that is from the expert's own.

Notation: π = the target that the token was drawn from, p = expert, q = drafter, all three sampling distributions; *plain* = softmax of
the raw logits, whatever temperature and filters are. Knows nothing of texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .deferral import Decision
from .rows import Float, Rows
from .sampling import Sampler


@dataclass(frozen=True)
class Wanted:
    """What is to be recorded of each token. ``top`` costs a pass or two over the vocabulary per token.

    top: so many of the most probable tokens of π; None for no log-probabilities. models: those of p and q too.
    """

    top: int | None = None
    models: bool = False


class Distribution(NamedTuple):
    """The log-probability (nats) of the emitted token, and the most probable tokens, best first; tokens of probability 0 are left out."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Entry(NamedTuple):
    """One token's account. None where a model was not evaluated at that position.

    tv: total variation of π and p. expert_logprob, drafter_logprob: plain log-probability of the token, in nats.
    target, expert, drafter: π, p and q as far as they were wanted.
    """

    tv: float | None
    expert_logprob: float | None
    drafter_logprob: float | None
    target: Distribution | None = None
    expert: Distribution | None = None
    drafter: Distribution | None = None


def entry(
    wanted: Wanted, token: int, sampler: Sampler, expert: Rows | None, drafter: Rows | None, decision: Decision | None = None
) -> Entry:
    """The account of ``token`` from the row that it follows, of each model that gave one.

    decision: by whose target it was drawn; None where the expert drew it by itself, or the drafter where there is no expert.
    """

    def told(probs: Float) -> Distribution:
        assert wanted.top is not None
        return _distribution(probs[0], token, wanted.top)

    target = expert_told = drafter_told = None
    if wanted.top is not None:  # whole distributions are looked at for this alone
        own = expert or drafter
        target = told(decision.target) if decision else told(own.probs(sampler)) if own else None
        if wanted.models:
            expert_told = told(expert.probs(sampler)) if expert else None
            drafter_told = told(drafter.probs(sampler)) if drafter else None
    return Entry(
        tv=None if expert is None else float(decision.tv[0]) if decision else 0.0,
        expert_logprob=expert.logprob(token) if expert else None,
        drafter_logprob=drafter.logprob(token) if drafter else None,
        target=target,
        expert=expert_told,
        drafter=drafter_told,
    )


class Judged(Protocol):
    """What the sums need of each token: an :class:`Entry`, or anything else with these."""

    @property
    def tv(self) -> float | None: ...
    @property
    def expert_logprob(self) -> float | None: ...
    @property
    def drafter_logprob(self) -> float | None: ...


@dataclass(frozen=True)
class Fidelity:
    """How true a reply is to its expert, summed over its tokens.

    mean_tv, max_tv: total variation between what each token was drawn from and the expert's own sampling distribution, over ``judged``
    tokens (those where the expert was evaluated). expert_logprob, drafter_logprob: sums of the plain log-probabilities (nats) of the
    tokens that the model in question was evaluated for: ``judged`` for the expert, ``drafted`` for the drafter, which does not see the
    expert's own tokens beforehand (with ``model_logprobs`` it does, and then the two sums are of the same tokens). None where there is
    nothing to sum.
    """

    mean_tv: float | None
    max_tv: float | None
    expert_logprob: float | None
    drafter_logprob: float | None
    judged: int
    drafted: int

    @classmethod
    def of(cls, entries: Iterable[Judged]) -> Fidelity:
        """The sums over a reply."""
        entries = list(entries)
        tvs = [entry.tv for entry in entries if entry.tv is not None]
        experts = [entry.expert_logprob for entry in entries if entry.expert_logprob is not None]
        drafters = [entry.drafter_logprob for entry in entries if entry.drafter_logprob is not None]
        mean, top = (sum(tvs) / len(tvs), max(tvs)) if tvs else (None, None)
        expert, drafter = (math.fsum(found) if found else None for found in (experts, drafters))
        return cls(mean, top, expert, drafter, judged=len(experts), drafted=len(drafters))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _distribution(probs: Float, token: int, k: int) -> Distribution:
    smallest = np.partition(probs, len(probs) - k)[len(probs) - k] if 0 < k < len(probs) else 0.0
    candidates = np.flatnonzero((probs >= smallest) & (probs > 0)).tolist() if k else []
    best = sorted(candidates, key=lambda i: (-probs[i], i))[:k]
    logprob = math.log(probs[token]) if probs[token] > 0 else -math.inf
    return Distribution(logprob, tuple((i, math.log(probs[i])) for i in best))
