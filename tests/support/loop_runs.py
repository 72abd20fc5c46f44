"""Runs the loop on toy sessions."""

from __future__ import annotations

from toys import never_ends, writing

from speccascade_local.decoding.loop import BlockLoop
from speccascade_local.decoding.stats import Stats
from speccascade_local.tokens.shaping import UNSHAPED


def run(
    pair,
    rule,
    *,
    prompt=(1, 2),
    temperature=1.0,
    block_size=4,
    max_tokens=12,
    seed=0,
    end=None,
    stops=None,
    rng=None,
    shaper=UNSHAPED,
    **mode,
):
    """Decode to the end; returns the text, the blocks and the statistics."""
    drafter, expert = pair
    tokens, stats = list(prompt), Stats()
    ends = (lambda token: token == end) if end is not None else never_ends
    generation = writing(tokens, temperature, rng or seed, ends, shaper=shaper)
    more = {"block_size": block_size, "max_tokens": max_tokens, "stops": stops or ends, "stats": stats}
    blocks = list(BlockLoop(generation, drafter, expert, rule=rule, **more, **mode).decode())
    return tokens[len(prompt) :], blocks, stats
