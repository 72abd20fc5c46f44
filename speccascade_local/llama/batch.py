"""What llama_decode reads: parts of timelines, tokens with their places in a sequence, and after which of them logits are wanted.

Knows nothing of models.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import llama_cpp
import numpy as np

from ..tokens.sampler import Array

#: As many tokens as one llama_decode takes.
BATCH_TOKENS = 512


#: So many copies of a recurrent state are kept at most.
MOST_COPIES = 4


@dataclass
class Rollbacks:
    """What going back has cost so far: recurrent states copied and put back, tokens read again, seconds for the copies alone."""

    saved: int = 0
    restored: int = 0
    replayed: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class Timeline:
    """One sequence of tokens in a context. sequence: its number there. n_vocab: how wide its rows are wanted. tokens: what it stands for.

    The rest is for going back (llama/rollback.py). held: how many tokens llama.cpp's memory has of it. uncertain: set while that memory is
    changed, so after an interruption nothing behind ``held`` counts, and of a recurrent state nothing at all. A new one is uncertain:
    its sequence may hold what an earlier timeline left. batch: how many tokens it read last, in one batch, 0 for unknown. settled:
    whether it was rewound since. checkpoints: copies of its state.

    aligned: how many of its first tokens lie in the memory as reading them into an empty one writes them (``LlamaContext.aligned``).
    """

    sequence: int
    n_vocab: int
    tokens: list[int] = field(default_factory=list)
    closed: bool = False
    held: int = 0
    uncertain: bool = True
    batch: int = 0
    aligned: int = 0
    settled: bool = True
    checkpoints: list[Any] = field(default_factory=list)
    rollbacks: Rollbacks = field(default_factory=Rollbacks)


class Part(NamedTuple):
    """What one timeline has to read: tokens to append, and after how many of the last ones logits are wanted."""

    timeline: Timeline
    tokens: list[int]
    keep: int


class Batch:
    """A ``llama_batch`` whose arrays are numpy's, so nothing is to be freed by hand."""

    def __init__(self) -> None:
        self.ids, self.positions, self.owners, self.counts = (np.zeros(BATCH_TOKENS, np.int32) for _ in range(4))
        self.wanted = np.zeros(BATCH_TOKENS, np.int8)
        self.counts[:] = 1
        self._views: dict[tuple[int, int], Array] = {}  # by address and number of rows
        of_ids = ctypes.POINTER(llama_cpp.llama_seq_id)
        first = self.owners.ctypes.data
        self._owners = (of_ids * BATCH_TOKENS)(*(ctypes.cast(first + 4 * i, of_ids) for i in range(BATCH_TOKENS)))
        self._batch = llama_cpp.llama_batch(
            0,
            self.ids.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token)),
            None,
            self.positions.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_pos)),
            self.counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._owners,
            self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def put(self, at: int, tokens: list[int], position: int, sequence: int, keep: int = 0) -> int:
        """These tokens, from place ``at`` of the batch on, stand from ``position`` on in that sequence; logits are wanted after the last
        ``keep``. Returns the place behind them.
        """
        end = at + len(tokens)
        self.ids[at:end] = tokens
        self.positions[at:end] = np.arange(position, position + len(tokens))
        self.owners[at:end] = sequence
        self.wanted[at : end - keep] = 0
        self.wanted[end - keep : end] = 1
        return end

    def decode(self, context: Any, size: int) -> int:
        """Evaluate the first ``size`` of them; llama.cpp's return code."""
        self._batch.n_tokens = size
        code: int = llama_cpp.llama_decode(context, self._batch)
        return code

    def rows(self, context: Any, count: int, n_vocab: int) -> Array:
        """What was wanted of the last evaluation, [count, n_vocab] float32: a view into llama.cpp's buffer.

        The array over it is kept: making one takes longer than a small row is worth.
        """
        buffer = llama_cpp.llama_get_logits(context)
        place = ctypes.addressof(buffer.contents), count
        if place not in self._views:
            self._views[place] = np.ctypeslib.as_array(buffer, (count, n_vocab))
        return self._views[place]
