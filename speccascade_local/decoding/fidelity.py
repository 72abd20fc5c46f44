"""The account of one emitted token: from which distribution it was drawn, and how far that is from the expert's own.

Notation: π = the target that the token was drawn from, p = expert, q = drafter, all three sampling distributions; *plain* = softmax of
the raw logits, whatever temperature and filters are. Knows nothing of texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, get_args

from ..rules.rule import Decision
from ..tokens.rows import Rows
from ..tokens.sampler import Array, Sampler, most_probable

#: Of what log-probabilities are: of the distribution that the token was drawn from (π), or of a model's raw row at temperature 1.
LogprobsOf = Literal["drawn", "raw"]
LOGPROBS_OF: tuple[LogprobsOf, ...] = get_args(LogprobsOf)


@dataclass(frozen=True)
class Recording:
    """What is to be recorded of each token. ``top`` costs a pass or two over the vocabulary per token.

    top: so many of the most probable tokens; None for no log-probabilities. models: those of p and q too. of: "raw" takes the expert's row
    wherever it was evaluated, else the drafter's.
    """

    top: int | None = None
    models: bool = False
    of: LogprobsOf = "drawn"


class Distribution(NamedTuple):
    """The log-probability (nats) of the emitted token, and the most probable tokens, best first; tokens of probability 0 are left out."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Entry(NamedTuple):
    """One token's account. None where a model was not evaluated at that position.

    tv: total variation of π and p. expert_logprob, drafter_logprob: plain log-probability of the token, in nats.
    logprobs: π, or the raw row. expert, drafter: p and q. Each as far as it was wanted.
    """

    tv: float | None
    expert_logprob: float | None
    drafter_logprob: float | None
    logprobs: Distribution | None = None
    expert: Distribution | None = None
    drafter: Distribution | None = None


def make_entry(
    wanted: Recording, token: int, sampler: Sampler, expert: Rows | None, drafter: Rows | None, decision: Decision | None = None
) -> Entry:
    """The account of ``token`` from the row that it follows, of each model that gave one.

    decision: by whose target it was drawn; None where the expert drew it by itself, or the drafter where there is no expert.
    """
    found: list[Distribution | None] = [None, None, None]
    if wanted.top is not None:  # whole distributions are looked at for this alone
        ranked = partial(_distribution, token=token, k=wanted.top)
        own = expert or drafter
        if own and wanted.of == "raw":
            found[0] = ranked(own.logits[0], own.logprob)
        elif own:
            found[0] = ranked(*_sampled_logprobs(decision.target[0] if decision else own.probs(sampler)[0]))
        if wanted.models:
            found[1:] = [ranked(*_sampled_logprobs(rows.probs(sampler)[0])) if rows else None for rows in (expert, drafter)]
    return Entry(
        tv=None if expert is None else float(decision.tv[0]) if decision else 0.0,
        expert_logprob=expert.logprob(token) if expert else None,
        drafter_logprob=drafter.logprob(token) if drafter else None,
        logprobs=found[0],
        expert=found[1],
        drafter=found[2],
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
    """How true a reply is to its expert, over all of its ``tokens``.

    mean_tv, max_tv: total variation between what each token was drawn from and the expert's own sampling distribution; None unless the
    expert was evaluated for every token. expert_logprob, drafter_logprob: sums of the plain log-probabilities (nats) of the tokens that the
    model in question was evaluated for, None where there are none: ``judged`` tokens for the expert, ``drafted`` tokens for the drafter.
    The drafter does not see the expert's own tokens beforehand; with ``model_logprobs`` it does, and then the two sums are of the same
    tokens. ``audit=True`` has the expert judge afterwards what it was not asked about.
    """

    mean_tv: float | None
    max_tv: float | None
    expert_logprob: float | None
    drafter_logprob: float | None
    judged: int
    drafted: int
    tokens: int

    @classmethod
    def of(cls, entries: Iterable[Judged]) -> Fidelity:
        """The sums over a reply."""
        entries = list(entries)
        tvs = [entry.tv for entry in entries if entry.tv is not None]
        experts = [entry.expert_logprob for entry in entries if entry.expert_logprob is not None]
        drafters = [entry.drafter_logprob for entry in entries if entry.drafter_logprob is not None]
        mean, top = (sum(tvs) / len(tvs), max(tvs)) if 0 < len(tvs) == len(entries) else (None, None)
        expert, drafter = (math.fsum(found) if found else None for found in (experts, drafters))
        return cls(mean, top, expert, drafter, judged=len(experts), drafted=len(drafters), tokens=len(entries))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _distribution(row: Array, logprob: Callable[[int], float], token: int, k: int) -> Distribution:
    """row: by what tokens are ranked, [n_vocab]. logprob: of an id."""
    top = ((best, logprob(best)) for best in most_probable(row, k))
    return Distribution(logprob(token), tuple((best, value) for best, value in top if value > -math.inf))


def _sampled_logprobs(probs: Array) -> tuple[Array, Callable[[int], float]]:
    """Probabilities as ``_distribution`` takes them. [n_vocab]"""
    return probs, lambda token: math.log(probs[token]) if probs[token] > 0 else -math.inf
