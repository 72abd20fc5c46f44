"""Logits -> probabilities -> token.

The order is temperature, top-k, top-p, min-p, and both models of a pair go through the same :class:`Sampler`.
(llama.cpp's own chain filters first and applies the temperature last; at temperature 1 the two agree.)
Temperature 0 is exact: a one-hot row at the first largest logit.
Knows nothing of models, rules or blocks. Rows are the last axis; any number of leading axes is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checks import finite_number, whole_number
from .errors import SessionError

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def softmax(logits: Array) -> NDArray[np.float64]:
    """Row-wise softmax in float64, ``-inf`` becoming exactly 0. Raises SessionError for rows that are no logits (nan, +inf).

    float64, because rules compare confidences: in float32 a confident drafter rounds to 1.0.
    """
    weights: NDArray[np.float64] = np.exp(_below_top(logits))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def draw(weights: Array, rng: np.random.Generator) -> int:
    """One token id, with probability proportional to ``weights`` ([n_vocab], non-negative, not all zero).

    Takes exactly one random number. Never returns an id of weight 0.
    """
    cumulative = np.cumsum(weights, dtype=np.float64)
    token = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    if token == len(cumulative):  # the product rounded up to the total
        token = int(np.flatnonzero(weights)[-1])
    return token


@dataclass(frozen=True)
class Sampler:
    """How a row of logits becomes the distribution that tokens are drawn from.

    temperature: 0 (greedy) or more. top_k: 0 switches it off. top_p: in (0, 1]; the smallest set of most probable tokens whose
    mass reaches it. min_p: in [0, 1]; drops tokens below ``min_p`` times the largest probability.

    Raises SettingError for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        finite_number("temperature", self.temperature, 0, math.inf, "0 (greedy) or more")
        whole_number("top_k", self.top_k, 0, 2**31 - 1)
        finite_number("top_p", self.top_p, math.ulp(0), 1, "above 0 and at most 1 (off)")
        finite_number("min_p", self.min_p, 0, 1, "between 0 (off) and 1")

    def probs(self, logits: Array) -> NDArray[np.float64]:
        """The sampling distribution of each row. [.., n_vocab] -> [.., n_vocab] float64."""
        return self.probs_and_support(logits)[0]

    def probs_and_support(self, logits: Array) -> tuple[NDArray[np.float64], Mask]:
        """The sampling distribution, and which tokens the filters leave possible. Both [.., n_vocab].

        At temperature 0 the filters are read at temperature 1: a greedy model has one *answer*, but not only one token that
        the user's filters allow. Ids whose logit is ``-inf`` are never in the support.
        """
        rows = _below_top(logits) / (self.temperature or 1.0)
        support = np.isfinite(logits)
        if self.top_k or self.top_p < 1:
            for place in np.ndindex(rows.shape[:-1]):
                support[place] &= self._most_probable(rows[place])
        if self.min_p > 0:
            support &= rows >= math.log(self.min_p)  # the largest value of a row is 0
        if self.temperature == 0:
            probs = np.zeros(rows.shape)
            np.put_along_axis(probs, np.argmax(rows, axis=-1)[..., None], 1.0, axis=-1)
            return probs, support
        return softmax(np.where(support, rows, -np.inf)), support

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


def _below_top(logits: Array) -> NDArray[np.float64]:
    """Rows shifted so that their largest value is 0: nothing overflows, whatever the temperature."""
    rows = np.asarray(logits, dtype=np.float64)
    top = rows.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise SessionError(
            "a model computed logits that are no numbers (nan or inf); its file is damaged, or its build is broken on this machine"
        )
    shifted: NDArray[np.float64] = rows - top
    return shifted


def _first(row: NDArray[np.float64], k: int) -> Mask:
    """The k largest values of a row; among equal ones the lower ids."""
    smallest = np.partition(row, len(row) - k)[len(row) - k]
    kept: Mask = row > smallest
    ties = np.flatnonzero(row == smallest)
    kept[ties[: k - int(kept.sum())]] = True
    return kept
