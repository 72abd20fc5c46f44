"""Logits -> probabilities -> token.

The order is temperature, top-n-sigma, top-k, top-p, min-p, and both models of a pair go through the same :class:`Sampler`.
(llama.cpp's own chain filters first and applies the temperature last; at temperature 1 the two agree.)
Temperature 0 is exact: a one-hot row at the first largest logit.
Knows nothing of models, rules or blocks. Rows are the last axis; any number of leading axes is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.errors import SessionError
from ..common.validation import finite_number, whole_number

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

# Rows of a wide vocabulary come and go by the megabyte, and a C library that gives each back to the system at once has its pages zeroed
# anew each time, which takes longer than all sums over them. glibc stops that for what is not larger than anything freed before, up to
# 32 MiB: so something is freed.
np.empty(31 * 2**20, np.uint8)


#: Tokens whose weights are summed before one of them is looked for, see ``draw``.
_STRETCH = 512


@dataclass(frozen=True, eq=False)
class Softmax:
    """The softmax of rows, and what falls out of computing it. Leading axes as the rows have them.

    float64, because rules compare confidences: in float32 a confident drafter rounds to 1.0.
    """

    probs: NDArray[np.float64]  # [.., n_vocab]; exactly 0 where a logit is -inf
    top: NDArray[np.float64]  # [..] the largest logit
    rest: NDArray[np.float64]  # [..] sum of exp(logit - top) over all other tokens

    @classmethod
    def of(cls, logits: Array, best: NDArray[np.intp] | None = None) -> Softmax:
        """best: the favourites, if they are known. Raises SessionError for rows that are no logits (nan, +inf)."""
        best = favourites(logits) if best is None else best
        top = logits[_at(best)].astype(np.float64)
        weights = np.subtract(logits, top[..., None], dtype=np.float64)
        np.exp(weights, out=weights)
        # The others are summed without the best: what they have stays above 0 where the best one's share rounds to 1.
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
    """Row-wise softmax in float64, ``-inf`` becoming exactly 0. Raises SessionError for rows that are no logits (nan, +inf)."""
    return Softmax.of(logits).probs


def favourites(logits: Array) -> NDArray[np.intp]:
    """The first largest logit of each row. [.., n_vocab] -> [..]. Raises SessionError for rows that are no logits (nan, +inf)."""
    best: NDArray[np.intp] = np.asarray(logits.argmax(axis=-1))  # nan counts as the largest of all
    if not np.isfinite(logits[_at(best)]).all():
        raise SessionError(
            "a model computed logits that are no numbers (nan or inf); its file is damaged, or its build is broken on this machine"
        )
    return best


def _at(tokens: NDArray[np.intp]) -> tuple[NDArray[np.intp], ...]:
    """Index of one token in each row. (In place of take_along_axis, which takes longer than small rows do.)"""
    return (np.arange(len(tokens)), tokens) if tokens.ndim == 1 else (*np.indices(tokens.shape, sparse=True), tokens)


def draw(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    """One token id, with probability proportional to ``weights`` ([n_vocab], non-negative, not all zero).

    Takes exactly one random number. Never returns an id of weight 0.
    """
    # Inverts the cumulative sum in two steps, first over stretches of the vocabulary: a whole one costs more than all the rest.
    stretches = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _STRETCH)))
    target = rng.random() * stretches[-1]
    at = _invert(stretches, target)
    start = at * _STRETCH
    before = stretches[at - 1] if at else 0.0
    return start + _invert(np.cumsum(weights[start : start + _STRETCH]), target - before)


def _invert(cumulative: NDArray[np.float64], target: float) -> int:
    """The first place whose cumulative sum lies above ``target``; the last that adds to it where rounding left none."""
    return min(int(np.searchsorted(cumulative, target, side="right")), int(np.searchsorted(cumulative, cumulative[-1])))


@dataclass(frozen=True)
class Sampler:
    """How a row of logits becomes the distribution that tokens are drawn from.

    temperature: 0 (greedy) or more. top_k: 0 switches it off. top_p: in (0, 1]; the smallest set of most probable tokens whose
    mass reaches it. min_p: in [0, 1]; drops tokens below ``min_p`` times the largest probability. top_n_sigma: 0 switches it off; drops
    tokens whose logit lies more than so many standard deviations below the largest (Tang et al. 2411.07641). The deviation is that of all
    finite logits of the row. Temperature makes no difference to what it keeps.

    Raises SettingError for a value outside its range.
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
        """Whether any token is left out."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0 or self.top_n_sigma > 0

    @property
    def plain(self) -> bool:
        """Whether a sampling distribution is the softmax of its row."""
        return self.temperature == 1 and not self.filters

    def probs(self, logits: Array) -> NDArray[np.float64]:
        """The sampling distribution of each row. [.., n_vocab] -> [.., n_vocab] float64."""
        return self.probs_and_support(logits)[0]

    def probs_and_support(self, logits: Array) -> tuple[NDArray[np.float64], Mask]:
        """The sampling distribution, and which tokens the filters leave possible. Both [.., n_vocab].

        At temperature 0 the filters are read at temperature 1: a greedy model has one *answer*, but not only one token that
        the user's filters allow. Ids whose logit is ``-inf`` are never in the support.
        """
        support = np.isfinite(logits)
        if self.plain:
            return softmax(logits), support
        best = favourites(logits)
        if self.temperature == 0:
            probs = np.zeros(logits.shape)
            probs[_at(best)] = 1.0
            return probs, support & self._kept(self._scaled(logits, best)) if self.filters else support
        rows = self._scaled(logits, best)
        if self.filters:
            support &= self._kept(rows)
            np.copyto(rows, -np.inf, where=~support)
        np.exp(rows, out=rows)
        rows /= rows.sum(axis=-1, keepdims=True)
        return rows, support

    def _scaled(self, logits: Array, best: NDArray[np.intp]) -> NDArray[np.float64]:
        """Rows at the sampler's temperature, shifted so that their largest value is 0: nothing overflows."""
        rows = np.subtract(logits, logits[_at(best)][..., None], dtype=np.float64)
        if self.temperature not in (0, 1):
            rows /= self.temperature
        return rows

    def _kept(self, rows: NDArray[np.float64]) -> Mask:
        """What top-n-sigma, top-k, top-p and min-p leave of rows whose largest value is 0."""
        kept = np.ones(rows.shape, dtype=bool)
        if self.top_n_sigma > 0:
            kept = rows >= -self.top_n_sigma * np.std(rows, axis=-1, where=np.isfinite(rows), keepdims=True)
        if self.top_k or self.top_p < 1:
            for place in np.ndindex(rows.shape[:-1]):
                kept[place] &= self._most_probable(np.where(kept[place], rows[place], -np.inf))
        if self.min_p > 0:
            kept &= rows >= math.log(self.min_p)
        return kept

    def _most_probable(self, row: NDArray[np.float64]) -> Mask:
        """Top-k, then top-p within what it keeps, of one row whose largest value is 0. Among equal logits lower ids come first."""
        kept = np.ones(len(row), dtype=bool)
        if 0 < self.top_k < len(row):
            kept = _first(row, self.top_k)
        if self.top_p < 1:
            total = np.exp(row[kept]).sum()
            candidates = min(256, len(row))
            # Sorting a whole vocabulary is slow, and the tokens that carry the mass are nearly always few.
            while True:
                ids = np.flatnonzero(kept & _first(row, candidates))
                ids = ids[np.argsort(-row[ids], kind="stable")]
                mass = np.cumsum(np.exp(row[ids])) / total
                if mass[-1] >= self.top_p or candidates == len(row):
                    break
                candidates = min(16 * candidates, len(row))
            kept = np.zeros(len(row), dtype=bool)
            kept[ids[: int(np.searchsorted(mass, self.top_p)) + 1]] = True
        return kept


def most_probable(row: Array, k: int) -> list[int]:
    """The ids of the k largest values of a row, or of all, best first; among equal ones the lower ids. [n_vocab]; probabilities or logits.

    Takes one partition of the row, never a sort of it.
    """
    if k == 0:
        return []
    ids = np.flatnonzero(_first(row, min(k, len(row))))
    best: list[int] = ids[np.argsort(-row[ids], kind="stable")].tolist()
    return best


def _first(row: Array, k: int) -> Mask:
    """The k largest values of a row; among equal ones the lower ids."""
    smallest = row.min()
    kept: Mask = row > smallest
    # What filters or a grammar deny is equal and lies at the bottom; a partition takes fifty times as long with it.
    higher = row[kept]
    if k < len(higher):
        smallest = np.partition(higher, len(higher) - k)[len(higher) - k]
        kept = row > smallest
    ties = np.flatnonzero(row == smallest)
    kept[ties[: k - int(kept.sum())]] = True
    return kept
