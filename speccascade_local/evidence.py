"""What a rule may look at: the rows of both models at some positions, and where in a reply these stand.

Notation, here and in all rules: q = drafter, p = expert; ``plain`` = softmax of the raw logits (temperature 1, nothing filtered),
which confidence tests read; ``probs`` = the sampling distributions (penalties, grammar, temperature and filters applied to both
models alike), which divergences read. Everything is computed when first asked for. Knows nothing of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .errors import SettingError
from .sampling import Array, Mask, Sampler, softmax
from .vocabulary import Vocabulary

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """k rows of one model: as it computed them, and as they are sampled from. The same array where nothing shapes them."""

    logits: Array  # [k, n_vocab]
    shaped: Array  # [k, n_vocab] after penalties, logit bias and grammar

    @classmethod
    def of(cls, logits: Array) -> Rows:
        """Rows that nothing shapes."""
        return cls(logits, logits)

    def __len__(self) -> int:
        return len(self.logits)

    def row(self, position: int) -> Rows:
        """One of the rows, as rows. [1, n_vocab]"""
        one = slice(position, position + 1)
        return Rows(self.logits[one], self.shaped[one])


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

    @cached_property
    def drafter_probs(self) -> Float:
        """Sampling distribution of the drafter. [k, n_vocab]"""
        return self.sampler.probs(self.drafter.shaped)

    @cached_property
    def _expert(self) -> tuple[Float, Mask]:
        return self.sampler.probs_and_support(self.expert.shaped)

    @property
    def expert_probs(self) -> Float:
        """Sampling distribution of the expert. [k, n_vocab]"""
        return self._expert[0]

    @property
    def expert_support(self) -> Mask:
        """Tokens that the user's filters and grammar let the expert say. [k, n_vocab]"""
        return self._expert[1]

    @cached_property
    def drafter_plain(self) -> Float:
        """[k, n_vocab]"""
        return softmax(self.drafter.logits)

    @cached_property
    def expert_plain(self) -> Float:
        """[k, n_vocab]"""
        return softmax(self.expert.logits)

    @cached_property
    def drafter_max(self) -> Float:
        """The drafter's confidence, max q. [k]"""
        top: Float = self.drafter_plain.max(axis=-1)
        return top

    @cached_property
    def drafter_doubt(self) -> Float:
        """1 - max q, summed from the other tokens: it stays above 0 where max q rounds to 1. [k]"""
        others = self.drafter_plain.copy()
        np.put_along_axis(others, others.argmax(axis=-1)[:, None], 0.0, axis=-1)
        doubt: Float = others.sum(axis=-1)
        return doubt

    @cached_property
    def expert_max(self) -> Float:
        """The expert's confidence, max p. [k]"""
        top: Float = self.expert_plain.max(axis=-1)
        return top

    @cached_property
    def drafter_entropy(self) -> Float:
        """H(q) of the plain distribution, in nats. [k]"""
        return entropy(self.drafter_plain)

    @cached_property
    def expert_entropy(self) -> Float:
        """H(p) of the plain distribution, in nats. [k]"""
        return entropy(self.expert_plain)

    @cached_property
    def cross_entropy(self) -> Float:
        """-sum p log q of the plain distributions, in nats; a token that the drafter rules out counts as q = 1e-300. [k]"""
        nats: Float = -(self.expert_plain * np.log(np.maximum(self.drafter_plain, 1e-300))).sum(axis=-1)
        return nats

    @cached_property
    def tv(self) -> Float:
        """Total variation of the sampling distributions, sum of max(0, p - q). [k]"""
        return total_variation(self.expert_probs, self.drafter_probs)

    @cached_property
    def js(self) -> Float:
        """Jensen-Shannon divergence of the sampling distributions, 0 to log 2 nats. [k]"""
        middle = (self.drafter_probs + self.expert_probs) / 2
        return np.clip((_kl(self.drafter_probs, middle) + _kl(self.expert_probs, middle)) / 2, 0.0, np.log(2))

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
    """Shannon entropy of each row, in nats. [.., n_vocab] -> [..]"""
    nats: Float = -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(axis=-1)
    return nats


def total_variation(one: Float, other: Float) -> Float:
    """Sum of max(0, one - other), row by row. [.., n_vocab] -> [..]"""
    distance: Float = np.maximum(one - other, 0.0).sum(axis=-1)
    return distance


def _kl(probs: Float, other: Float) -> Float:
    """KL(probs || other) in nats, where ``other`` is positive wherever ``probs`` is."""
    possible = probs > 0
    ratio = np.divide(probs, other, out=np.ones_like(probs), where=possible)
    nats: Float = (probs * np.log(ratio)).sum(axis=-1)
    return nats
