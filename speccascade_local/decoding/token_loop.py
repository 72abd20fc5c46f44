"""The token-level cascade: the drafter writes as long as it is sure, and the expert is asked for single tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ..rules.evidence import Evidence
from ..rules.routes import TokenCascade
from .draft import Session, next_row
from .fidelity import Recording, make_entry
from .generation import Generation
from .loop import Block, FinishReason, count_block
from .stats import Stats
from .verify import Draft, Origin, Verdict


def token_cascade(
    generation: Generation,
    drafter: Session,
    expert: Session,
    *,
    rule: TokenCascade,
    max_tokens: int,
    stops: Callable[[int], bool],
    stats: Stats,
    recording: Recording | None = None,
) -> Iterator[Block]:
    """Yield blocks of one token: drafted where the drafter is sure, else drawn from the expert.

    The arguments are those of :class:`~speccascade_local.decoding.loop.BlockLoop`. The user's filters apply to the drafter where the
    expert is not asked.
    """
    budget = min(max_tokens, min(expert.n_ctx, drafter.n_ctx) + 1 - len(generation.tokens))
    finish_reason: FinishReason | None = None
    while finish_reason is None:
        begun = time.perf_counter()
        rows = next_row(drafter, generation)
        evidence = Evidence(rows, rows, generation.sampler)  # the rule looks at the drafter alone
        unsure = bool(rule.defer(evidence)[0])
        drafted = time.perf_counter()
        asked = next_row(expert, generation) if unsure else None
        scored = time.perf_counter()
        origin: Origin = "expert" if unsure else "accepted"
        token = generation.draw(asked or rows)
        entries = (make_entry(recording, token, generation.sampler, asked, rows),) if recording else ()
        verdict = Verdict((token,), (origin,), (unsure,), entries=entries)
        draft = Draft([] if unsure else [token], [rows])
        budget -= 1
        finish_reason = "stop" if stops(token) else "length" if budget == 0 else None
        generation.grow([token])
        stats.drafter_calls += 1
        stats.expert_calls += unsure
        count_block(stats, draft, verdict)
        stats.clock(begun, drafted, scored, time.perf_counter())
        yield Block(verdict, draft, finish_reason)
