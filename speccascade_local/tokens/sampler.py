"""Logits -> probabilities -> token.

The order is temperature, top-n-sigma, top-k, top-p, min-p, and both models of a pair share one :class:`Sampler`. llama.cpp's own chain
filters first and applies the temperature last; at temperature 1 the two agree. Temperature 0 is exact: a one-hot row at the first largest
logit. The vocabulary is the last axis; any number of leading axes is allowed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.errors import SessionError
from ..common.validation import finite_number, whole_number

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

#: The length of the stretches of weights that ``draw`` sums first.
_STRETCH = 512


def keep_freed_pages() -> None:
    """Let glibc reuse the memory of rows instead of returning it to the system.

    Rows of a wide vocabulary are megabytes each. Returned pages are zeroed again at the next allocation, which takes longer than all sums
    over them. glibc keeps blocks that are no larger than the largest one freed before, up to 32 MiB: so one is freed here.
    """
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
        np.empty(31 * 2**20, np.uint8)


@dataclass(frozen=True, eq=False)
class Softmax:
    """The softmax of rows, with its largest logit and the rest of its sum. Leading axes are those of the rows.

    It is float64, because rules compare confidences: in float32 a confident drafter rounds to 1.0.
    """

    probs: NDArray[np.float64]  # [.., n_vocab]; exactly 0 where a logit is -inf
    top: NDArray[np.float64]  # [..] the largest logit
    rest: NDArray[np.float64]  # [..] sum of exp(logit - top) over all other tokens

    @classmethod
    def of(cls, logits: Array, best: NDArray[np.intp] | None = None) -> Softmax:
        """Return the softmax of rows. best: their best tokens, if known. Raises SessionError for nan or +inf."""
        best = best_tokens(logits) if best is None else best
        top = logits[_at(best)].astype(np.float64)
        weights = np.subtract(logits, top[..., None], dtype=np.float64)
        np.exp(weights, out=weights)
        # The others are summed without the best, so their share stays above 0 where the best one's rounds to 1.
        weights[_at(best)] = 0.0
        rest = weights.sum(axis=-1)
        weights[_at(best)] = 1.0
        weights /= 1 + rest[..., None]
        return cls(weights, top, rest)

    @property
    def max(self) -> NDArray[np.float64]:
        """The largest probability. [..]"""
        top: NDArray[np.float64] = 1 / (1 + self.rest)
        return top

    @property
    def doubt(self) -> NDArray[np.float64]:
        """1 - max, above 0 also where max rounds to 1. [..]"""
        others: NDArray[np.float64] = self.rest / (1 + self.rest)
        return others


def softmax(logits: Array) -> NDArray[np.float64]:
    """Return the softmax of each row in float64; ``-inf`` becomes exactly 0. Raises SessionError for nan or +inf."""
    return Softmax.of(logits).probs


def best_tokens(logits: Array) -> NDArray[np.intp]:
    """Return the first largest logit of each row. [.., n_vocab] -> [..]. Raises SessionError for nan or +inf."""
    best: NDArray[np.intp] = np.asarray(logits.argmax(axis=-1))  # nan counts as the largest of all
    if not np.isfinite(logits[_at(best)]).all():
        raise SessionError("a model computed nan or inf as logits; its file is damaged, or its build is broken on this machine")
    return best


def _at(tokens: NDArray[np.intp]) -> tuple[NDArray[np.intp], ...]:
    """Return the index of one token in each row. np.take_along_axis is slower for small rows."""
    return (np.arange(len(tokens)), tokens) if tokens.ndim == 1 else (*np.indices(tokens.shape, sparse=True), tokens)


def draw(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Return one token id with probability proportional to ``weights`` ([n_vocab], non-negative, not all zero).

    Takes exactly one random number and never returns an id of weight 0.
    """
    # The cumulative sum is inverted in two steps, first over stretches of the vocabulary: one of the whole costs more than all the rest.
    stretches = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _STRETCH)))
    target = rng.random() * stretches[-1]
    at = _invert(stretches, target)
    start = at * _STRETCH
    before = stretches[at - 1] if at else 0.0
    return start + _invert(np.cumsum(weights[start : start + _STRETCH]), target - before)


def _invert(cumulative: NDArray[np.float64], target: float) -> int:
    """Return the first place whose cumulative sum exceeds ``target``, or the last that adds to the sum if rounding leaves none."""
    return min(int(np.searchsorted(cumulative, target, side="right")), int(np.searchsorted(cumulative, cumulative[-1])))


@dataclass(frozen=True)
class Sampler:
    """Turns a row of logits into the distribution that tokens are drawn from. Raises SettingError for a value outside its range.

    Args:
        temperature: 0 (greedy) or more.
        top_k: Keeps the ``top_k`` most probable tokens; 0 is off.
        top_p: Keeps the smallest set of most probable tokens with at least this mass; in (0, 1], 1 is off.
        min_p: Drops tokens below ``min_p`` times the largest probability; in [0, 1], 0 is off.
        top_n_sigma: Drops tokens whose logit is more than this many standard deviations below the largest (Tang et al. 2411.07641), the
            deviation being that of all finite logits of the row. Temperature does not change what it keeps. 0 is off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_n_sigma: float = 0.0

    def __post_init__(self) -> None:
        finite_number("temperature", self.temperature, 0, math.inf, "0 (greedy) or more")
        whole_number("top_k", self.top_k, 0, 2**31 - 1)
        finite_number("top_p", self.top_p, math.ulp(0), 1, "above 0 and at most 1 (off)")
        finite_number("min_p", self.min_p, 0, 1, "between 0 (off) and 1")
        finite_number("top_n_sigma", self.top_n_sigma, 0, math.inf, "0 (off) or more")

    @property
    def filters(self) -> bool:
        """Whether any filter is on."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0 or self.top_n_sigma > 0

    @property
    def plain(self) -> bool:
        """Whether the sampling distribution is the softmax of its row."""
        return self.temperature == 1 and not self.filters

    def probs(self, logits: Array) -> NDArray[np.float64]:
        """Return the sampling distribution of each row. [.., n_vocab] -> [.., n_vocab] float64."""
        return self.probs_and_support(logits)[0]

    def probs_and_support(self, logits: Array) -> tuple[NDArray[np.float64], Mask]:
        """Return the sampling distribution, and which tokens the filters allow. Both [.., n_vocab].

        At temperature 0 the filters apply at temperature 1: a greedy model has one best token, but the user's filters allow more. Ids
        whose logit is ``-inf`` are never in the support.
        """
        support = np.isfinite(logits)
        if self.plain:
            return softmax(logits), support
        best = best_tokens(logits)
        if self.temperature == 0:
            probs = np.zeros(logits.shape)
            probs[_at(best)] = 1.0
            return probs, support & self._filter(self._scale(logits, best)) if self.filters else support
        rows = self._scale(logits, best)
        if self.filters:
            support &= self._filter(rows)
            np.copyto(rows, -np.inf, where=~support)
        np.exp(rows, out=rows)
        rows /= rows.sum(axis=-1, keepdims=True)
        return rows, support

    def _scale(self, logits: Array, best: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the rows at the sampler's temperature, shifted so that their largest value is 0 and nothing overflows."""
        rows = np.subtract(logits, logits[_at(best)][..., None], dtype=np.float64)
        if self.temperature not in (0, 1):
            rows /= self.temperature
        return rows

    def _filter(self, rows: NDArray[np.float64]) -> Mask:
        """Return the tokens that top-n-sigma, top-k, top-p and min-p keep of rows whose largest value is 0."""
        mask = np.ones(rows.shape, dtype=bool)
        if self.top_n_sigma > 0:
            mask = rows >= -self.top_n_sigma * np.std(rows, axis=-1, where=np.isfinite(rows), keepdims=True)
        if self.top_k or self.top_p < 1:
            for place in np.ndindex(rows.shape[:-1]):
                mask[place] &= self._top_k_then_p(np.where(mask[place], rows[place], -np.inf))
        if self.min_p > 0:
            mask &= rows >= math.log(self.min_p)
        return mask

    def _top_k_then_p(self, row: NDArray[np.float64]) -> Mask:
        """Apply top-k and then top-p to one row whose largest value is 0. Among equal logits lower ids come first."""
        mask = np.ones(len(row), dtype=bool)
        if 0 < self.top_k < len(row):
            mask = _largest(row, self.top_k)
        if self.top_p < 1:
            total = np.exp(row[mask]).sum()
            candidates = min(256, len(row))
            # Sorting a whole vocabulary is slow, and few tokens nearly always carry the mass.
            while True:
                ids = np.flatnonzero(mask & _largest(row, candidates))
                ids = ids[np.argsort(-row[ids], kind="stable")]
                mass = np.cumsum(np.exp(row[ids])) / total
                if mass[-1] >= self.top_p or candidates == len(row):
                    break
                candidates = min(16 * candidates, len(row))
            mask = np.zeros(len(row), dtype=bool)
            mask[ids[: int(np.searchsorted(mass, self.top_p)) + 1]] = True
        return mask


def most_probable(row: Array, k: int) -> list[int]:
    """Return the ids of the k largest values of a row, best first; among equal ones the lower ids. [n_vocab], probabilities or logits.

    It partitions the row once and never sorts the whole.
    """
    if k == 0:
        return []
    ids = np.flatnonzero(_largest(row, min(k, len(row))))
    best: list[int] = ids[np.argsort(-row[ids], kind="stable")].tolist()
    return best


def _largest(row: Array, k: int) -> Mask:
    """Return the k largest values of a row; among equal ones the lower ids."""
    smallest = row.min()
    mask: Mask = row > smallest
    # Tokens that filters or a grammar deny are all equal and smallest; a partition takes fifty times as long with them.
    higher = row[mask]
    if k < len(higher):
        smallest = np.partition(higher, len(higher) - k)[len(higher) - k]
        mask = row > smallest
    ties = np.flatnonzero(row == smallest)
    mask[ties[: k - int(mask.sum())]] = True
    return mask
