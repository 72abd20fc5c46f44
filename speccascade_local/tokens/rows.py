"""Rows of logits of one model, and their distributions, best tokens and entropies, each computed on first use.

- *raw*: temperature 1, nothing applied.
- *plain*: temperature 1, with penalties, logit bias and grammar applied but no filters. Confidence tests read this.
- *sampling*: temperature and filters applied too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..common.lazy import LazyProperty
from .sampler import Array, Mask, Sampler, Softmax, best_tokens, draw

Float = NDArray[np.float64]

#: The most rows that one evaluation of a timeline returns: one more than the longest draft.
MAX_ROWS = 65
#: Stands for the logarithm of 0 where it is multiplied by 0; below every other logarithm here.
_LOG_OF_NOTHING = -1e4


@dataclass(frozen=True, eq=False)
class Rows:
    """k rows of one model: raw logits, and shaped logits to sample from; the same array where nothing shapes them.

    Results are computed on first use and kept as read-only arrays, so all users of the same rows share them.
    """

    logits: Array  # [k, n_vocab]
    shaped: Array  # [k, n_vocab] after penalties, logit bias and grammar
    _sampled: dict[Sampler, tuple[Float, Mask]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, logits: Array) -> Rows:
        """Return rows that nothing shapes."""
        return cls(logits, logits)

    def __len__(self) -> int:
        return len(self.logits)

    def row(self, position: int) -> Rows:
        """Return one of the rows as rows; the same object each time. [1, n_vocab]"""
        return self._singles[position]

    @LazyProperty
    def _singles(self) -> list[Rows]:
        singles = []
        for j in range(len(self)):
            logits = self.logits[j : j + 1]
            singles.append(Rows(logits, logits if self.shaped is self.logits else self.shaped[j : j + 1]))
        return singles

    @LazyProperty
    def plain(self) -> Softmax:
        """The distribution at temperature 1: shaped, not filtered."""
        plain = Softmax.of(self.shaped, self.best)
        plain.probs.flags.writeable = False
        return plain

    @LazyProperty
    def raw(self) -> Softmax:
        """The model's own distribution: temperature 1, neither shaped nor filtered."""
        return self.plain if self.shaped is self.logits else Softmax.of(self.logits)

    @LazyProperty
    def best(self) -> NDArray[np.intp]:
        """The token of each row at temperature 0. [k]"""
        return best_tokens(self.shaped)

    @LazyProperty
    def entropy(self) -> Float:
        """The entropy of the plain distribution, in nats. [k]"""
        below = np.subtract(self.shaped, self.plain.top[:, None], dtype=np.float64)
        np.maximum(below, _LOG_OF_NOTHING, out=below)
        # Neither term is negative, so nothing cancels and the smallest doubt stays above 0.
        nats: Float = np.log1p(self.plain.rest) - inner(self.plain.probs, below)
        return nats

    def probs(self, sampler: Sampler) -> Float:
        """Return the sampling distribution: the same array as the plain one where the sampler changes nothing. [k, n_vocab]"""
        return self.plain.probs if sampler.plain else self._sample(sampler)[0]

    def support(self, sampler: Sampler) -> Mask:
        """Return the tokens that filters and grammar leave possible. [k, n_vocab]"""
        return self._sample(sampler)[1] if sampler.filters else np.isfinite(self.shaped)

    def _sample(self, sampler: Sampler) -> tuple[Float, Mask]:
        if sampler not in self._sampled:
            self._sampled[sampler] = sampler.probs_and_support(self.shaped)
            for array in self._sampled[sampler]:
                array.flags.writeable = False
        return self._sampled[sampler]

    def prob(self, sampler: Sampler, token: int) -> float:
        """Return the probability of a token in the first row's sampling distribution."""
        if sampler.temperature == 0:  # a comparison needs no array
            return float(self.best[0] == token)
        return float(self.probs(sampler)[0, token])

    def draw(self, sampler: Sampler, rng: np.random.Generator) -> int:
        """Draw a token from the first row's sampling distribution; at temperature 0 no random number is taken."""
        return int(self.best[0]) if sampler.temperature == 0 else draw(self.probs(sampler)[0], rng)

    def logprob(self, token: int) -> float:
        """Return the log-probability of a token in the first row's raw distribution, in nats. It is finite for any finite logit."""
        return _logprob(self.logits, self.raw, token)

    def plain_logprob(self, token: int) -> float:
        """Return the log-probability of a token in the first row's plain distribution, in nats."""
        return _logprob(self.shaped, self.plain, token)


def _logprob(logits: Array, softmax: Softmax, token: int) -> float:
    return float(logits[0, token]) - float(softmax.top[0]) - math.log1p(softmax.rest[0])


def entropy(probs: Float) -> Float:
    """Return the Shannon entropy of each row, in nats. [k, n_vocab] -> [k]"""
    logs = np.maximum(probs, math.ulp(0))
    np.log(logs, out=logs)
    nats: Float = -inner(probs, logs)
    return nats


def total_variation(one: Float, other: Float) -> Float:
    """Return the sum of max(0, one - other) of each row. [.., n_vocab] -> [..]"""
    gain = one - other
    np.maximum(gain, 0.0, out=gain)
    distance: Float = gain.sum(axis=-1)
    return distance


def inner(one: Float, other: Float) -> Float:
    """Return the inner product of each row. [k, n_vocab] -> [k]"""
    product: Float = np.einsum("kv,kv->k", one, other)  # not by BLAS, which wakes threads that the models need
    return product
