"""What a rule may look at: the rows of both models at some positions, and where in a reply these stand.

Notation, here and in all rules: q = drafter, p = expert; ``plain`` = softmax of the raw logits (temperature 1, nothing filtered),
which confidence tests read; ``probs`` = the sampling distributions (penalties, grammar, temperature and filters applied to both
models alike), which divergences read. Everything is computed when first asked for. Knows nothing of rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SettingError
from .sampling import Array, Mask, Sampler, Softmax, draw, favourites
from .vocabulary import Vocabulary

Float = NDArray[np.float64]


#: What stands for the logarithm of 0 where it is multiplied by 0, and exceeds no other that is met.
_LOG_OF_NOTHING = -1e4


@dataclass(frozen=True, eq=False)
class Rows:
    """k rows of one model: as it computed them, and as they are sampled from. The same array where nothing shapes them.

    What follows from them is computed when first asked for and kept, so whoever is handed the same rows pays once. Arrays that are kept
    cannot be written to.
    """

    logits: Array  # [k, n_vocab]
    shaped: Array  # [k, n_vocab] after penalties, logit bias and grammar
    #: The same rows one by one, where something was computed of them already.
    each: Sequence[Rows] = field(default=(), repr=False)
    _sampled: dict[Sampler, tuple[Float, Mask]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, logits: Array) -> Rows:
        """Rows that nothing shapes."""
        return cls(logits, logits)

    @classmethod
    def joined(cls, each: Sequence[Rows], logits: Array) -> Rows:
        """Single rows as one; ``logits`` is the array that theirs are a part of. [k, n_vocab]"""
        shaped = any(rows.shaped is not rows.logits for rows in each)
        return cls(logits, np.concatenate([rows.shaped for rows in each]) if shaped else logits, each)

    def __len__(self) -> int:
        return len(self.logits)

    def row(self, position: int) -> Rows:
        """One of the rows, as rows; the same object each time. [1, n_vocab]"""
        return (self.each or self._cut)[position]

    @cached_property
    def _cut(self) -> list[Rows]:
        singles = []
        for j in range(len(self)):
            logits = self.logits[j : j + 1]
            singles.append(Rows(logits, logits if self.shaped is self.logits else self.shaped[j : j + 1]))
        return singles

    @cached_property
    def plain(self) -> Softmax:
        """The model's own distribution: temperature 1, nothing filtered or shaped."""
        found = Softmax.of(self.logits, self.best if self.shaped is self.logits else None)
        found.probs.flags.writeable = False
        return found

    @cached_property
    def best(self) -> NDArray[np.intp]:
        """The token of each row at temperature 0. [k]"""
        return favourites(self.shaped)

    @cached_property
    def entropy(self) -> Float:
        """Of the plain distribution, in nats. [k]"""
        below = np.subtract(self.logits, self.plain.top[:, None], dtype=np.float64)
        np.maximum(below, _LOG_OF_NOTHING, out=below)
        # Two terms that are not negative: nothing cancels, so a doubt however small is told from none.
        nats: Float = np.log1p(self.plain.rest) - _inner(self.plain.probs, below)
        return nats

    def sampled_plainly(self, sampler: Sampler) -> bool:
        """Whether the sampling distribution is the plain one, and then the same array."""
        return sampler.plain and self.shaped is self.logits

    def probs(self, sampler: Sampler) -> Float:
        """The sampling distribution. [k, n_vocab]"""
        return self.plain.probs if self.sampled_plainly(sampler) else self._sample(sampler)[0]

    def support(self, sampler: Sampler) -> Mask:
        """Tokens that filters and grammar leave possible. [k, n_vocab]"""
        return self._sample(sampler)[1] if sampler.filters else np.isfinite(self.shaped)

    def _sample(self, sampler: Sampler) -> tuple[Float, Mask]:
        if sampler not in self._sampled:
            self._sampled[sampler] = sampler.probs_and_support(self.shaped)
            for array in self._sampled[sampler]:
                array.flags.writeable = False
        return self._sampled[sampler]

    def prob(self, sampler: Sampler, token: int) -> float:
        """The probability of a token in the first row's sampling distribution."""
        if sampler.temperature == 0:  # no array is made where a comparison will do
            return float(self.best[0] == token)
        return float(self.probs(sampler)[0, token])

    def draw(self, sampler: Sampler, rng: np.random.Generator) -> int:
        """A token from the first row's sampling distribution; at temperature 0 no random number is spent."""
        return int(self.best[0]) if sampler.temperature == 0 else draw(self.probs(sampler)[0], rng)

    def logprob(self, token: int) -> float:
        """The log-probability of a token in the first row's plain distribution, in nats; never leaves logarithms."""
        return float(self.logits[0, token]) - float(self.plain.top[0]) - math.log1p(self.plain.rest[0])


@dataclass(frozen=True, eq=False)
class Place:
    """Where in a reply a position stands; what rules that look beyond their own row read."""

    text: Sequence[int] = ()  # prompt and reply up to the block
    emitted: int = 0  # tokens of the reply before this position
    drafted: Sequence[int] = ()  # the whole block's draft
    position: int = 0  # in the block, from 0
    expert: Rows | None = None  # the expert's rows of the whole block
    trace: Sequence[float] = ()  # what the rule remembers of the tested positions before this one, see Rule.remember
    vocabulary: Vocabulary | None = None
    #: What rules found out about ``text`` and need not find out again; the same one for a whole reply, whose text only grows.
    notes: MutableMapping[Any, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        """Prompt and reply up to this position."""
        return [*self.text, *self.drafted[: self.position]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Both models' rows at k positions. ``place`` tells of one position, so k is 1 wherever a rule uses it."""

    drafter: Rows  # [k, n_vocab]
    expert: Rows  # [k, n_vocab]
    sampler: Sampler
    place: Place = Place()

    @property
    def drafter_probs(self) -> Float:
        """Sampling distribution of the drafter. [k, n_vocab]"""
        return self.drafter.probs(self.sampler)

    @property
    def expert_probs(self) -> Float:
        """Sampling distribution of the expert. [k, n_vocab]"""
        return self.expert.probs(self.sampler)

    @cached_property
    def expert_support(self) -> Mask:
        """Tokens that the user's filters and grammar let the expert say. [k, n_vocab]"""
        support = self.expert.support(self.sampler)
        support.flags.writeable = False
        return support

    @property
    def drafter_plain(self) -> Float:
        """[k, n_vocab]"""
        return self.drafter.plain.probs

    @property
    def expert_plain(self) -> Float:
        """[k, n_vocab]"""
        return self.expert.plain.probs

    @property
    def drafter_max(self) -> Float:
        """The drafter's confidence, max q. [k]"""
        return self.drafter.plain.max

    @property
    def drafter_doubt(self) -> Float:
        """1 - max q, summed from the other tokens: it stays above 0 where max q rounds to 1. [k]"""
        return self.drafter.plain.doubt

    @property
    def expert_max(self) -> Float:
        """The expert's confidence, max p. [k]"""
        return self.expert.plain.max

    @property
    def drafter_entropy(self) -> Float:
        """H(q) of the plain distribution, in nats. [k]"""
        return self.drafter.entropy

    @property
    def expert_entropy(self) -> Float:
        """H(p) of the plain distribution, in nats. [k]"""
        return self.expert.entropy

    @cached_property
    def cross_entropy(self) -> Float:
        """-sum p log q of the plain distributions, in nats; a token that the drafter rules out counts as q = 1e-300. [k]"""
        drafter = self.drafter.plain
        log_q = np.subtract(self.drafter.logits, (drafter.top + np.log1p(drafter.rest))[:, None], dtype=np.float64)
        np.maximum(log_q, math.log(1e-300), out=log_q)
        nats: Float = -_inner(self.expert_plain, log_q)
        return nats

    @cached_property
    def tv(self) -> Float:
        """Total variation of the sampling distributions, sum of max(0, p - q). [k]"""
        if self.sampler.temperature == 0:
            differ: Float = (self.drafter.best != self.expert.best).astype(np.float64)
            return differ
        return total_variation(self.expert_probs, self.drafter_probs)

    @cached_property
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
        return rows.entropy if rows.sampled_plainly(self.sampler) else entropy(rows.probs(self.sampler))

    def tokens_where(self, predicate: Callable[[str], bool]) -> Mask:
        """For which ids ``predicate`` holds of the token's text (remembered per predicate: give a named function). [n_vocab]

        Raises SettingError where the texts of the tokens are not known.
        """
        return self.vocabulary.where(predicate)

    @property
    def vocabulary(self) -> Vocabulary:
        """What the ids stand for. Raises SettingError where that is not known, as in ``target_probs``."""
        if self.place.vocabulary is None:
            raise SettingError("this rule looks at the texts of tokens, and here are only rows; use it on a loaded pair")
        return self.place.vocabulary


def entropy(probs: Float) -> Float:
    """Shannon entropy of each row, in nats. [k, n_vocab] -> [k]"""
    logs = np.maximum(probs, math.ulp(0))
    np.log(logs, out=logs)
    nats: Float = -_inner(probs, logs)
    return nats


def total_variation(one: Float, other: Float) -> Float:
    """Sum of max(0, one - other), row by row. [.., n_vocab] -> [..]"""
    gain = one - other
    np.maximum(gain, 0.0, out=gain)
    distance: Float = gain.sum(axis=-1)
    return distance


def _inner(one: Float, other: Float) -> Float:
    """The inner product of each row. [k, n_vocab] -> [k]. (Not by BLAS, which would wake threads that the models need.)"""
    product: Float = np.einsum("kv,kv->k", one, other)
    return product
