"""Whether caches hold what they say."""

from __future__ import annotations

import numpy as np

import speccascade_local as sc
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.session import LlamaSession

QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]


def assert_caches_are_true(runtime: sc.Runtime) -> None:
    """What the next token's row is from the cache equals what it is from a fresh reading."""
    for session in (runtime._drafter, runtime._expert):
        if not session.tokens:
            continue
        held = list(session.tokens)
        session.roll_back(len(held) - 1)
        from_cache = session.extend(held[-1:], keep=1).copy()
        fresh = LlamaSession(LlamaContext(session.model, n_ctx=runtime.n_ctx, n_threads=1), n_vocab=runtime.n_vocab)
        # Weights of 8 bits round batches of other shapes differently, by up to 0.15 in 900 replies; a token
        # too few moves them by 1 to 2, as a rule.
        np.testing.assert_allclose(from_cache, fresh.extend(held, keep=1), atol=0.4)
        fresh.context.close()
