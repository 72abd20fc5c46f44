"""The fidelity of each emitted token: from which distribution it was drawn, and how far that is from the expert's own.

Notation: π is the target that the token was drawn from, p the expert, q the drafter, all three as sampling distributions; *plain* is the
softmax of the raw logits, whatever temperature and filters are.
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

#: What log-probabilities are of: the distribution that the token was drawn from (π), or a model's raw row at temperature 1.
LogprobsOf = Literal["drawn", "raw"]
LOGPROBS_OF: tuple[LogprobsOf, ...] = get_args(LogprobsOf)


@dataclass(frozen=True)
class Recording:
    """What to record of each token."""

    #: Number of the most probable tokens, each with its log-probability; None for no log-probabilities. Costs a pass or two over the
    #: vocabulary per token.
    top: int | None = None
    models: bool = False  # whether to record those of p and q too
    of: LogprobsOf = "drawn"  # "raw" takes the expert's row wherever it was evaluated, else the drafter's


class Distribution(NamedTuple):
    """The log-probability (nats) of the emitted token, and the most probable tokens, best first; tokens of probability 0 are left out."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Entry(NamedTuple):
    """What was recorded of one token. None where a model was not evaluated at that position."""

    tv: float | None  # total variation of π and p
    expert_logprob: float | None  # the token's plain log-probability under the expert, in nats
    drafter_logprob: float | None  # the same under the drafter
    logprobs: Distribution | None = None  # of π, or of the raw row
    expert: Distribution | None = None  # of p
    drafter: Distribution | None = None  # of q


def make_entry(
    recording: Recording, token: int, sampler: Sampler, expert: Rows | None, drafter: Rows | None, decision: Decision | None = None
) -> Entry:
    """Return the entry of ``token`` from the row that it follows, of each model that gave one.

    ``decision`` has the target that it was drawn from; None where the expert drew it alone, or the drafter where there is no expert.
    """
    distributions: list[Distribution | None] = [None, None, None]
    if recording.top is not None:
        ranked = partial(_distribution, token=token, k=recording.top)
        own = expert or drafter
        if own and recording.of == "raw":
            distributions[0] = ranked(own.logits[0], own.logprob)
        elif own:
            distributions[0] = ranked(*_sampled_logprobs(decision.target[0] if decision else own.probs(sampler)[0]))
        if recording.models:
            distributions[1:] = [ranked(*_sampled_logprobs(rows.probs(sampler)[0])) if rows else None for rows in (expert, drafter)]
    return Entry(
        tv=None if expert is None else float(decision.tv[0]) if decision else 0.0,
        expert_logprob=expert.logprob(token) if expert else None,
        drafter_logprob=drafter.logprob(token) if drafter else None,
        logprobs=distributions[0],
        expert=distributions[1],
        drafter=distributions[2],
    )


class Judged(Protocol):
    """What :class:`Fidelity` needs of each token: an :class:`Entry`, or anything else with these."""

    @property
    def tv(self) -> float | None: ...
    @property
    def expert_logprob(self) -> float | None: ...
    @property
    def drafter_logprob(self) -> float | None: ...


@dataclass(frozen=True)
class Fidelity:
    """How close a reply is to its expert, over all of its tokens.

    With ``audit=True`` the expert judges afterwards the tokens that it was not asked about.

    Attributes:
        mean_tv: mean total variation between what each token was drawn from and the expert's own sampling distribution; None unless the
            expert was evaluated for every token.
        max_tv: the largest of them; None likewise.
        expert_logprob: sum of the plain log-probabilities (nats) of the ``judged`` tokens; None where there are none.
        drafter_logprob: the same of the ``drafted`` tokens under the drafter. It does not read the expert's own tokens before they are
            emitted; with ``model_logprobs`` it does, and then both sums are of the same tokens.
        judged: tokens that the expert was evaluated for.
        drafted: tokens that the drafter was evaluated for.
        tokens: all tokens.
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
        """Return the sums over a reply."""
        entries = list(entries)
        tvs = [entry.tv for entry in entries if entry.tv is not None]
        experts = [entry.expert_logprob for entry in entries if entry.expert_logprob is not None]
        drafters = [entry.drafter_logprob for entry in entries if entry.drafter_logprob is not None]
        mean, top = (sum(tvs) / len(tvs), max(tvs)) if 0 < len(tvs) == len(entries) else (None, None)
        expert, drafter = (math.fsum(logprobs) if logprobs else None for logprobs in (experts, drafters))
        return cls(mean, top, expert, drafter, judged=len(experts), drafted=len(drafters), tokens=len(entries))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def _distribution(row: Array, logprob: Callable[[int], float], token: int, k: int) -> Distribution:
    """Return the ``k`` tokens with the largest values of ``row``, [n_vocab], and ``token``, each with its log-probability."""
    top = ((best, logprob(best)) for best in most_probable(row, k))
    return Distribution(logprob(token), tuple((best, value) for best, value in top if value > -math.inf))


def _sampled_logprobs(probs: Array) -> tuple[Array, Callable[[int], float]]:
    """Return probabilities, [n_vocab], as ``_distribution`` takes them."""
    return probs, lambda token: math.log(probs[token]) if probs[token] > 0 else -math.inf
