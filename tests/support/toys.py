"""Sessions without a model: a function from a text to the next row, under the real cache contract.

The rows are one shared buffer that turns into nan at the next call, so code that keeps a view too long fails loudly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from speccascade_local.decoding.generation import Generation
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler

RowOf = Callable[[Sequence[int]], np.ndarray]


def never_ends(_token: int) -> bool:
    return False


def writing(
    tokens: list[int], sampler: Sampler | float = 1.0, rng: np.random.Generator | int = 0, is_end=never_ends, **settings
) -> Generation:
    """A text in the making. sampler: or a temperature. rng: or its seed."""
    sampler = sampler if isinstance(sampler, Sampler) else Sampler(sampler)
    return Generation(tokens, sampler, np.random.default_rng(rng) if isinstance(rng, int) else rng, is_end, **settings)


def one_by_one(logits: np.ndarray) -> list[Rows]:
    """Rows as a draft has them. [k, n_vocab] -> k times [1, n_vocab]"""
    return [Rows.of(row[None]) for row in np.asarray(logits)]


class ToySession:
    def __init__(self, row_of: RowOf, n_vocab: int, n_ctx: int = 64) -> None:
        self.row_of, self.n_vocab, self.n_ctx = row_of, n_vocab, n_ctx
        self.tokens: list[int] = []
        self.calls: list[int] = []  # how many tokens each extend evaluated
        self._rows = np.empty((0, n_vocab), np.float32)

    def extend(self, tokens: list[int], keep: int) -> np.ndarray:
        assert tokens, "extend reads at least one token"
        assert 0 <= keep <= len(tokens), "extend needs at least the tokens whose rows are kept"
        assert len(self.tokens) + len(tokens) <= self.n_ctx, "the context is full"
        self._rows[:] = np.nan
        self.calls.append(len(tokens))
        start = len(self.tokens) + len(tokens) - keep
        self.tokens += tokens
        self._rows = np.array([self.row_of(self.tokens[: start + i + 1]) for i in range(keep)], np.float32)
        return self._rows

    def roll_back(self, length: int) -> None:
        assert 0 <= length <= len(self.tokens)
        del self.tokens[length:]


@lru_cache(maxsize=100_000)
def _random_row(n_vocab: int, *seeds: int) -> np.ndarray:
    row = np.random.default_rng(seeds).normal(size=n_vocab)
    row.flags.writeable = False  # everyone gets the same array
    return row


def random_rows(n_vocab: int, seed: int, scale: float = 2.0) -> RowOf:
    """Return a fixed random row for each pair of last tokens: a small Markov model."""
    return lambda text: scale * _random_row(n_vocab, seed, *map(int, text[-2:]))


def certain(token_after: Callable[[Sequence[int]], int], n_vocab: int) -> RowOf:
    """A row with all its mass on one token."""

    def row(text: Sequence[int]) -> np.ndarray:
        logits = np.full(n_vocab, -np.inf)
        logits[token_after(text)] = 0.0
        return logits

    return row


def always_accepts(n_vocab: int = 7, n_ctx: int = 64) -> tuple[ToySession, ToySession]:
    """Drafter and expert are the same model: every draft survives every rule."""
    row = random_rows(n_vocab, seed=1)
    return ToySession(row, n_vocab, n_ctx), ToySession(row, n_vocab, n_ctx)


def never_accepts(n_vocab: int = 7, n_ctx: int = 64) -> tuple[ToySession, ToySession]:
    """The expert gives no mass to what the drafter writes: the strict test drops every draft."""
    drafter = certain(lambda text: (text[-1] + 1) % n_vocab, n_vocab)
    expert = certain(lambda text: (text[-1] + 2) % n_vocab, n_vocab)
    return ToySession(drafter, n_vocab, n_ctx), ToySession(expert, n_vocab, n_ctx)


def sometimes_accepts(n_vocab: int = 7, n_ctx: int = 64, seed: int = 3) -> tuple[ToySession, ToySession]:
    """Two models that agree in part."""
    shared, own = random_rows(n_vocab, seed), random_rows(n_vocab, seed + 1000)
    return ToySession(lambda text: shared(text) + 0.7 * own(text), n_vocab, n_ctx), ToySession(shared, n_vocab, n_ctx)


class ScriptedRandom:
    """Stands for numpy's Generator where a test wants to choose the coins."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)
