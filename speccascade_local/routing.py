"""Sequential cascades: the drafter answers in full, and a score of its confidence decides whether the expert starts over.

The baseline that speculative cascades are compared with. Knows nothing of how either answer is made.
"""

from __future__ import annotations

import numpy as np

from .sampling import Array, softmax

#: Below this mean margin the drafter's answer is thrown away.
DEFAULT_THRESHOLD = 0.9


def margins(logits: Array) -> Array:
    """Probability of the drafter's first choice minus that of its second, at temperature 1. [k, n_vocab] -> [k]

    Their mean over an answer is the confidence score; 1 minus it is the uncertainty u of UCCI (arXiv 2605.18796).
    """
    top_two = np.partition(softmax(logits), -2, axis=-1)[..., -2:]
    gap: Array = top_two[..., 1] - top_two[..., 0]
    return gap
