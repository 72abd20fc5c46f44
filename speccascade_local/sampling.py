"""Logits -> probabilities -> token.

The order is temperature, top-k, top-p, min-p, and both models of a pair go through the same :class:`Sampler`.
(llama.cpp's own chain filters first and applies the temperature last; at temperature 1 the two agree.)
Temperature 0 is exact: a one-hot row at the first largest logit.
Knows nothing of models, rules or blocks. Rows are the last axis; any number of leading axes is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .errors import SettingError

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def softmax(logits: Array) -> NDArray[np.float64]:
    """Row-wise softmax in float64. ``-inf`` becomes exactly 0.

    float64, because confidence tests compare ``max p`` with 1 - alpha: in float32 a confident drafter rounds to 1.0 and
    an alpha of 0 would no longer mean "always ask the expert".
    """
    rows = np.asarray(logits, dtype=np.float64)
    weights: NDArray[np.float64] = np.exp(rows - rows.max(axis=-1, keepdims=True))
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
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise SettingError(f"{field.name} is {value!r}; it must be a finite number")
        if self.temperature < 0:
            raise SettingError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise SettingError(f"top_k is {self.top_k}; it must be a whole number, 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise SettingError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise SettingError(f"min_p is {self.min_p}; it must be between 0 (off) and 1")

    @property
    def filters(self) -> bool:
        """Whether any of top-k, top-p, min-p is on."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0

    def probs(self, logits: Array) -> NDArray[np.float64]:
        """The sampling distribution of each row. [.., n_vocab] -> [.., n_vocab] float64."""
        if self.temperature == 0:
            one_hot = np.zeros(np.shape(logits))
            np.put_along_axis(one_hot, np.argmax(logits, axis=-1)[..., None], 1.0, axis=-1)
            return one_hot
        return softmax(self._filtered(logits))

    def support(self, logits: Array) -> Mask:
        """Which tokens the filters leave possible. [.., n_vocab] -> [.., n_vocab] bool.

        At temperature 0 the filters are read at temperature 1: a greedy expert has one *answer*, but not only one token that
        the user's filters allow. Ids whose logit is ``-inf`` are never in the support.
        """
        return np.isfinite(self._filtered(logits))

    def _filtered(self, logits: Array) -> NDArray[np.float64]:
        """Logits after temperature, with ``-inf`` where a filter removed the token."""
        rows: NDArray[np.float64] = np.asarray(logits, dtype=np.float64)
        # The largest logit is subtracted first, so that a tiny temperature overflows to -inf (probability 0), never to nan.
        rows = (rows - rows.max(axis=-1, keepdims=True)) / (self.temperature or 1.0)
        if not self.filters:
            return rows
        kept = np.isfinite(rows)
        # A stable sort, so that among equal logits the lower id comes first and exactly top_k tokens stay.
        order = np.argsort(-rows, axis=-1, kind="stable")
        if self.top_k:
            _drop(kept, order[..., self.top_k :])
        if self.top_p < 1:
            probs = np.take_along_axis(softmax(np.where(kept, rows, -np.inf)), order, axis=-1)
            before = np.cumsum(probs, axis=-1) - probs  # mass of everything more probable
            past = before >= self.top_p
            np.put_along_axis(kept, order, np.take_along_axis(kept, order, axis=-1) & ~past, axis=-1)
        if self.min_p > 0:
            kept &= rows >= math.log(self.min_p)  # the largest row value is 0
        return np.where(kept, rows, -np.inf)


def _drop(kept: Mask, ids: NDArray[np.intp]) -> None:
    np.put_along_axis(kept, ids, False, axis=-1)
