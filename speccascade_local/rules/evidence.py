"""What a rule may look at: the rows of both models at some positions, and where in a reply these stand.

Notation, here and in all rules:

- q: the drafter.
- p: the expert.
- ``plain``: distributions at temperature 1, with penalties, logit bias and grammar applied but no filters. Confidence tests read these.
- ``probs``: sampling distributions, with temperature and filters applied too. Divergences read these.

Everything is computed on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..common.errors import SettingError
from ..common.lazy import LazyProperty
from ..tokens.rows import Float, Rows, entropy, inner, total_variation
from ..tokens.sampler import Mask, Sampler
from ..tokens.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Place:
    """Where in a reply a position stands, for rules that look beyond their own row."""

    text: Sequence[int] = ()  # prompt and reply up to the block
    emitted: int = 0  # tokens of the reply before this position
    drafted: Sequence[int] = ()  # the whole block's draft
    position: int = 0  # in the block, from 0
    expert: Rows | None = None  # the expert's rows of the whole block
    trace: Sequence[float] = ()  # what Rule.remember returned for the tested positions before this one
    vocabulary: Vocabulary | None = None
    #: A cache that rules keep about ``text``; the same one for a whole reply, whose text only grows.
    notes: MutableMapping[Any, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        """Prompt and reply up to this position, as token ids."""
        return [*self.text, *self.drafted[: self.position]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Both models' rows at k positions. ``place`` describes one position, so k is 1 wherever a rule uses it."""

    drafter: Rows  # [k, n_vocab]
    expert: Rows  # [k, n_vocab]
    sampler: Sampler
    place: Place = Place()

    @property
    def drafter_probs(self) -> Float:
        """The drafter's sampling distribution. [k, n_vocab]"""
        return self.drafter.probs(self.sampler)

    @property
    def expert_probs(self) -> Float:
        """The expert's sampling distribution. [k, n_vocab]"""
        return self.expert.probs(self.sampler)

    @LazyProperty
    def expert_support(self) -> Mask:
        """The tokens that the user's filters and grammar allow the expert. [k, n_vocab]"""
        support = self.expert.support(self.sampler)
        support.flags.writeable = False
        return support

    @property
    def drafter_plain(self) -> Float:
        """The drafter's distribution at temperature 1, unfiltered. [k, n_vocab]"""
        return self.drafter.plain.probs

    @property
    def expert_plain(self) -> Float:
        """The expert's distribution at temperature 1, unfiltered. [k, n_vocab]"""
        return self.expert.plain.probs

    @property
    def drafter_max(self) -> Float:
        """The drafter's confidence, max q of the plain distribution. [k]"""
        return self.drafter.plain.max

    @property
    def drafter_doubt(self) -> Float:
        """1 - max q, summed from the other tokens: it stays above 0 where max q rounds to 1. [k]"""
        return self.drafter.plain.doubt

    @property
    def expert_max(self) -> Float:
        """The expert's confidence, max p of the plain distribution. [k]"""
        return self.expert.plain.max

    @property
    def drafter_entropy(self) -> Float:
        """H(q) of the plain distribution, in nats. [k]"""
        return self.drafter.entropy

    @property
    def expert_entropy(self) -> Float:
        """H(p) of the plain distribution, in nats. [k]"""
        return self.expert.entropy

    @LazyProperty
    def cross_entropy(self) -> Float:
        """-sum q log p of the plain distributions, in nats; a token that the expert rules out counts as p = 1e-300. [k]

        It is how much the drafter's tokens surprise the expert on average: the drafter's entropy plus its divergence KL(q || p).
        """
        expert = self.expert.plain
        log_p = np.subtract(self.expert.shaped, (expert.top + np.log1p(expert.rest))[:, None], dtype=np.float64)
        np.maximum(log_p, math.log(1e-300), out=log_p)
        nats: Float = -inner(self.drafter_plain, log_p)
        return nats

    @LazyProperty
    def tv(self) -> Float:
        """Total variation of the sampling distributions, sum of max(0, p - q). [k]"""
        if self.sampler.temperature == 0:
            differ: Float = (self.drafter.best != self.expert.best).astype(np.float64)
            return differ
        return total_variation(self.expert_probs, self.drafter_probs)

    @LazyProperty
    def js(self) -> Float:
        """Jensen-Shannon divergence of the sampling distributions, 0 to log 2 nats. [k]"""
        if self.sampler.temperature == 0:
            nats: Float = np.log(2) * self.tv
            return nats
        middle = self.drafter_probs + self.expert_probs
        middle /= 2
        nats = entropy(middle) - (self._sampling_entropy(self.drafter) + self._sampling_entropy(self.expert)) / 2
        return np.clip(nats, 0.0, np.log(2))

    def _sampling_entropy(self, rows: Rows) -> Float:
        return rows.entropy if self.sampler.plain else entropy(rows.probs(self.sampler))

    def tokens_where(self, predicate: Callable[[str], bool]) -> Mask:
        """Return for which ids ``predicate`` holds of the token's text. [n_vocab]

        The answer is remembered per predicate, so give a named function. Raises SettingError where the texts of the tokens are not known.
        """
        return self.vocabulary.where(predicate)

    @property
    def vocabulary(self) -> Vocabulary:
        """The texts of the token ids. Raises SettingError where they are not known, as in ``target_probs``."""
        if self.place.vocabulary is None:
            raise SettingError("this rule looks at the texts of tokens, and only rows are given; use it on a loaded pair")
        return self.place.vocabulary
