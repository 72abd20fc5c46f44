"""The loop: propose, verify, commit, rewind.

Plain expert decoding (block size 0), the drafter alone (rule ``never``), lossless speculative decoding (rule ``strict``) and every
cascade are this one loop. Between blocks each session holds a prefix of the committed tokens, never more than all but the last
one, so a generator that is dropped at a ``yield`` leaves both caches true. After a fully kept draft the drafter is one token
behind, and reads it together with the bonus token.
Knows nothing of text, templates or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .drafting import Session, propose
from .rules import Rule
from .sampling import Sampler
from .stats import Stats
from .verify import Draft, Verdict, verify

FinishReason = Literal["stop", "length"]

NO_ROWS = np.empty((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Block:
    """One turn of the loop. ``finish_reason`` is set on the last one."""

    verdict: Verdict
    draft: Draft
    finish_reason: FinishReason | None


def decode(
    tokens: list[int],
    drafter: Session,
    expert: Session,
    *,
    rule: Rule,
    sampler: Sampler,
    rng: np.random.Generator,
    block_size: int,
    max_tokens: int,
    is_end: Callable[[int], bool],
    stops: Callable[[int], bool],
    stats: Stats,
) -> Iterator[Block]:
    """Continue ``tokens``, which grows in place, and yield block after block until something ends the text.

    Both sessions must hold prefixes of ``tokens`` that leave at least its last token unread. ``is_end`` tells end-of-text ids;
    ``stops`` is asked once for each emitted token, in order, and ends the text after the token for which it answers True (it is
    where end of text and stop strings are recognised). ``max_tokens`` >= 1 counts emitted tokens. A full context ends the text as
    ``"length"``: the last token that is predicted needs no room, so a prompt that fills the context still gets one token.
    """
    room = min(expert.n_ctx, drafter.n_ctx) + 1 - len(tokens)
    budget = min(max_tokens, room)
    undrafted = 1 if rule.asks_expert else 0  # the corrected or bonus token that each block adds to its draft
    finish_reason: FinishReason | None = None
    while finish_reason is None:
        before = time.perf_counter()
        draft = propose(drafter, tokens, min(block_size, budget - undrafted), sampler, rng, is_end)
        drafted = time.perf_counter()
        expert_logits = NO_ROWS
        if rule.asks_expert:
            unread = tokens[len(expert.tokens) :] + draft.token_ids
            expert_logits = expert.extend(unread, keep=len(draft.token_ids) + 1)
        scored = time.perf_counter()
        verdict = verify(draft, expert_logits, rule, sampler, rng)
        for length, token in enumerate(verdict.token_ids, start=1):
            if stops(token):
                verdict, finish_reason = verdict.cut(length), "stop"
                break
        tokens += verdict.token_ids
        budget -= len(verdict.token_ids)
        for session in (drafter, expert):
            session.rewind(min(len(session.tokens), len(tokens) - 1))
        if budget == 0 and finish_reason is None:
            finish_reason = "length"
        _count(stats, draft, verdict, rule)
        now = time.perf_counter()
        stats.draft_s += drafted - before
        stats.expert_s += scored - drafted
        stats.verify_s += now - scored
        stats.wall_s += now - before  # not the time that the consumer of this generator takes between blocks
        stats.ttft_s = stats.ttft_s or stats.wall_s
        yield Block(verdict, draft, finish_reason)


def _count(stats: Stats, draft: Draft, verdict: Verdict, rule: Rule) -> None:
    stats.blocks += 1
    stats.drafter_calls += len(draft.token_ids)
    stats.expert_calls += rule.asks_expert
    stats.drafted += len(draft.token_ids)
    stats.tokens += len(verdict.token_ids)
    stats.tested += len(verdict.deferred)
    stats.deferred += sum(verdict.deferred)
    stats.accepted += sum(origin in ("accepted", "matched") for origin in verdict.origins)
    stats.rejected += "corrected" in verdict.origins
    stats.bonus += "bonus" in verdict.origins
