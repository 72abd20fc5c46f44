"""Which batches give the same rows to the bit: found by reading the same tokens in batches of every size, and comparing.

llama.cpp rounds by the size of a batch: other kernels do the work, and sum in another order. Near a tie that is enough for another
word, and what it writes into the cache differs too, so reading the one place again by itself does not bring the single token's row back.
But sizes that one kernel serves agree to the bit. A context that evaluates in no other sizes gives the same text with drafts and without.
Knows nothing of drafts.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..common.errors import ModelLoadError
from ..tokens.sampler import Array
from . import rollback_trial
from .batch import Part, Timeline

#: A single token is read as a batch of two, the second forgotten again: kernels for single tokens divide the work by threads and length.
LEAST = 2
#: The largest batch that is tried: a usual draft and the token before it.
LARGEST = 8
#: Kernels change with how much is held, too: where a batch reaches beyond 32 or 256 tokens, by which caches are padded, and beyond 512.
_DEPTHS = (28, 252, 600)


class Context(rollback_trial.Context, Protocol):
    """As much of a :class:`~speccascade_local.llama.context.LlamaContext` as is needed here."""

    exact: int


def largest_exact_batch(context: Context) -> int:
    """The largest batch that gives each token the row which it has by itself, at every depth; from 2 to ``LARGEST``.

    Raises ModelLoadError where not even two tokens do, or the memory cannot drop a single token.
    """
    name = context.model.path.name
    advice = "load it without exact (--exact); block_size 0 is the expert alone, token by token"
    if not context.rollback.pads:
        raise ModelLoadError(f"{name}: exact needs a memory that drops single tokens, and this one has a recurrent state; {advice}")
    ids = ((np.arange(max(_DEPTHS) + LARGEST) * 7 + 3) % context.model.n_vocab).tolist()
    most, timeline = LARGEST, context.open()
    try:
        for depth in [depth for depth in _DEPTHS if depth + LARGEST <= context.n_ctx] or [0]:
            context.exact = most
            if unread := ids[len(timeline.tokens) : depth]:
                context.evaluate([Part(timeline, unread, 0)])
            most = _most(context, timeline, ids[depth : depth + most])
    finally:
        context.exact = 0
        context.release(timeline)
    if most < LEAST:
        raise ModelLoadError(f"{name}: on this machine a batch of two tokens is rounded otherwise than one, so exact has no use; {advice}")
    return most


def _most(context: Context, timeline: Timeline, tokens: list[int]) -> int:
    """The largest batch of the first tokens that gives the rows which they have one by one."""
    singly = _rows(context, timeline, tokens, 1)
    for size in range(2, len(tokens) + 1):
        if not np.array_equal(_rows(context, timeline, tokens[:size], size), singly[:size]):
            return size - 1
    return len(tokens)


def _rows(context: Context, timeline: Timeline, tokens: list[int], size: int) -> Array:
    """All of the tokens, read so many at a time and forgotten again."""
    held = len(timeline.tokens)
    context.exact = size
    rows = context.evaluate([Part(timeline, tokens, len(tokens))])[0]
    context.drop(timeline, held)
    return rows
