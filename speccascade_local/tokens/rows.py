"""Rows of one model, and what follows from them: distributions, favourites, entropies, each computed when first asked for.

*Plain* means what may be said at temperature 1 (penalties, logit bias and grammar applied, nothing filtered), which confidence tests read;
*raw* is the same before anything was applied; a *sampling distribution* has temperature and filters applied too. Knows nothing of which
model they are of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..common.lazy import LazyProperty
from .sampler import Array, Mask, Sampler, Softmax, draw, favourites

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
    _sampled: dict[Sampler, tuple[Float, Mask]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, logits: Array) -> Rows:
        """Rows that nothing shapes."""
        return cls(logits, logits)

    def __len__(self) -> int:
        return len(self.logits)

    def row(self, position: int) -> Rows:
        """One of the rows, as rows; the same object each time. [1, n_vocab]"""
        return self._cut[position]

    @LazyProperty
    def _cut(self) -> list[Rows]:
        singles = []
        for j in range(len(self)):
            logits = self.logits[j : j + 1]
            singles.append(Rows(logits, logits if self.shaped is self.logits else self.shaped[j : j + 1]))
        return singles

    @LazyProperty
    def plain(self) -> Softmax:
        """What may be said at temperature 1: shaped, and nothing filtered."""
        found = Softmax.of(self.shaped, self.best)
        found.probs.flags.writeable = False
        return found

    @LazyProperty
    def raw(self) -> Softmax:
        """The model's own distribution: temperature 1, nothing filtered or shaped."""
        return self.plain if self.shaped is self.logits else Softmax.of(self.logits)

    @LazyProperty
    def best(self) -> NDArray[np.intp]:
        """The token of each row at temperature 0. [k]"""
        return favourites(self.shaped)

    @LazyProperty
    def entropy(self) -> Float:
        """Of the plain distribution, in nats. [k]"""
        below = np.subtract(self.shaped, self.plain.top[:, None], dtype=np.float64)
        np.maximum(below, _LOG_OF_NOTHING, out=below)
        # Two terms that are not negative: nothing cancels, so a doubt however small is told from none.
        nats: Float = np.log1p(self.plain.rest) - inner(self.plain.probs, below)
        return nats

    def probs(self, sampler: Sampler) -> Float:
        """The sampling distribution; the very array of the plain one where the sampler changes nothing. [k, n_vocab]"""
        return self.plain.probs if sampler.plain else self._sample(sampler)[0]

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
        """The log-probability of a token in the first row's raw distribution, in nats; never leaves logarithms."""
        return _logprob(self.logits, self.raw, token)

    def plain_logprob(self, token: int) -> float:
        """The same in its plain distribution: among what may be said."""
        return _logprob(self.shaped, self.plain, token)


def _logprob(logits: Array, found: Softmax, token: int) -> float:
    return float(logits[0, token]) - float(found.top[0]) - math.log1p(found.rest[0])


def entropy(probs: Float) -> Float:
    """Shannon entropy of each row, in nats. [k, n_vocab] -> [k]"""
    logs = np.maximum(probs, math.ulp(0))
    np.log(logs, out=logs)
    nats: Float = -inner(probs, logs)
    return nats


def total_variation(one: Float, other: Float) -> Float:
    """Sum of max(0, one - other), row by row. [.., n_vocab] -> [..]"""
    gain = one - other
    np.maximum(gain, 0.0, out=gain)
    distance: Float = gain.sum(axis=-1)
    return distance


def inner(one: Float, other: Float) -> Float:
    """The inner product of each row. [k, n_vocab] -> [k]. (Not by BLAS, which would wake threads that the models need.)"""
    product: Float = np.einsum("kv,kv->k", one, other)
    return product


#: The most rows that a timeline can ask for at once, and so one more than the longest draft.
MAX_ROWS = 65
