"""Finds which batch sizes give rows equal to the bit, by reading the same tokens in batches of every size.

llama.cpp rounds by batch size: other kernels do the work, and sum in another order. Near a tie that is enough for another word. The
cache differs too, so reading one position again alone does not give the single token's row. But sizes that one kernel serves agree to
the bit. A context that evaluates only such sizes gives the same text with drafts and without.
"""

from __future__ import annotations

import numpy as np

from ..common.errors import ModelLoadError
from ..tokens.sampler import Array
from .batch import Part, Timeline
from .rollback_trial import Context

#: A single token is read as a batch of two, and the second dropped: kernels for single tokens divide the work by threads and length.
MIN_BATCH = 2
#: The largest batch to try: a usual draft and the token before it.
MAX_BATCH = 8
#: Kernels also change with the number of tokens held: beyond 32 or 256, by which caches are padded, and beyond 512.
_DEPTHS = (28, 252, 600)


def largest_exact_batch(context: Context) -> int:
    """Return the largest batch, 2 to ``LARGEST``, that gives each token the row that it has alone, at every depth.

    Raises ModelLoadError where not even two tokens agree, or the memory cannot drop a single token.
    """
    name = context.model.path.name
    advice = "load it without exact (--exact); block_size 0 is the expert alone, token by token"
    if not context.rollback.pads:
        raise ModelLoadError(f"{name}: exact needs a memory that drops single tokens, and this one has a recurrent state; {advice}")
    ids = ((np.arange(max(_DEPTHS) + MAX_BATCH) * 7 + 3) % context.model.n_vocab).tolist()
    size, timeline = MAX_BATCH, context.open()
    try:
        for depth in [depth for depth in _DEPTHS if depth + MAX_BATCH <= context.n_ctx] or [0]:
            context.exact = size
            if unread := ids[len(timeline.tokens) : depth]:
                context.evaluate([Part(timeline, unread, 0)])
            size = _largest_equal_batch(context, timeline, ids[depth : depth + size])
    finally:
        context.exact = 0
        context.release(timeline)
    if size < MIN_BATCH:
        raise ModelLoadError(f"{name}: here a batch of two tokens rounds differently from one token, so exact is impossible; {advice}")
    return size


def _largest_equal_batch(context: Context, timeline: Timeline, tokens: list[int]) -> int:
    """Return the size of the largest batch of first tokens whose rows equal those of single tokens."""
    single = _rows(context, timeline, tokens, 1)
    for size in range(2, len(tokens) + 1):
        if not np.array_equal(_rows(context, timeline, tokens[:size], size), single[:size]):
            return size - 1
    return len(tokens)


def _rows(context: Context, timeline: Timeline, tokens: list[int], size: int) -> Array:
    """Return the rows of all tokens, read in batches of ``size`` and then dropped."""
    held = len(timeline.tokens)
    context.exact = size
    rows = context.evaluate([Part(timeline, tokens, len(tokens))])[0]
    context.drop(timeline, held)
    return rows
