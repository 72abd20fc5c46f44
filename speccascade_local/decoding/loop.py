"""The loop: propose, verify, commit, roll back.

Plain expert decoding (block size 0), the drafter alone (rule ``never``), lossless speculative decoding (rule ``strict``) and every
cascade are this one loop. Between blocks each session holds a prefix of the committed tokens, never more than all but the last
one (the drafter also what it wrote ahead), so a generator that is dropped at a ``yield`` leaves both caches true. After a fully kept
draft the drafter is one token behind, and reads it together with the bonus token.
Knows nothing of text, templates or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from ..rules.evidence import Place
from ..rules.rule import Rule
from ..tokens.rows import Rows
from ..tokens.vocabulary import Vocabulary
from .draft import ReadAhead, Session, propose
from .fidelity import Recording
from .generation import Generation
from .lengths import LONGEST_BLOCK, FixedLength, LengthPolicy
from .ngram import NOTHING, NgramIndex
from .overlap import WriteAhead, reading_meanwhile
from .stats import Stats
from .verify import Draft, Verdict, Verification, verify

FinishReason = Literal["stop", "length"]
#: What follows a draft that was kept whole.
Bonus = Literal["expert", "cascade"]
BONUSES: tuple[Bonus, ...] = get_args(Bonus)

NO_ROWS = Rows.of(np.empty((0, 0), np.float32))


@dataclass(frozen=True, eq=False)
class Block:
    """One turn of the loop. ``finish_reason`` is set on the last one."""

    verdict: Verdict
    draft: Draft
    finish_reason: FinishReason | None


def decode(
    generation: Generation,
    drafter: Session,
    expert: Session,
    *,
    rule: Rule,
    block_size: int,
    max_tokens: int,
    stops: Callable[[int], bool],
    stats: Stats,
    verification: Verification = "token",
    bonus: Bonus = "expert",
    wanted: Recording | None = None,
    vocabulary: Vocabulary | None = None,
    pace: LengthPolicy | None = None,
    index: NgramIndex | None = None,
) -> Iterator[Block]:
    """Continue the generation, which grows in place, and yield block after block until something ends the text.

    Both sessions must hold prefixes of its tokens that leave at least the last one unread. ``stops`` is asked once for each emitted
    token, in order, and ends the text after the token for which it answers True (it is where end of text and stop strings are
    recognised). ``max_tokens`` >= 1 counts emitted tokens. A full context ends the text as ``"length"``: the last token that is predicted
    needs no room, so a prompt that fills the context still gets one token.

    block_size: at least 1 where the rule never asks the expert. bonus: "expert" adds the expert's own token to a fully kept draft;
    "cascade" drafts one token more and settles it like the others, against the row that the bonus would have been drawn from. Then every
    block drafts at least one token, and every token follows the rule's target. With "expert" a place without a draft is the expert's own.
    wanted: what to record of each token. vocabulary: for rules that look at the texts of tokens.
    pace: decides about the length of each draft, up to ``block_size``; without one it is always that. index: guesses from the text, which the
    drafter reviews, and which follow a draft.
    """
    tokens = generation.tokens
    extra = 1 if bonus == "cascade" and rule.asks_expert and block_size else 0  # drafted tokens in place of a bonus
    pace = pace or FixedLength(block_size + extra)
    own = 1 - extra if rule.asks_expert else 0  # the corrected or bonus token that each block adds to its draft
    look_ahead = wanted is not None and wanted.models and rule.asks_expert and not extra
    room = min(max_tokens, min(expert.n_ctx, drafter.n_ctx) + 1 - len(tokens))
    trace: list[float] = []
    notes: dict[Any, Any] = {}
    if index is not None:
        index.begin(tokens)
    finish_reason: FinishReason | None = None
    written: ReadAhead = []
    with WriteAhead(drafter) as ahead:
        while finish_reason is None:
            begun = time.perf_counter()
            unread = tokens[len(expert.tokens) : -1] if rule.asks_expert else []
            beside = bool(unread) and pace.beside(len(unread), len(tokens) - len(drafter.tokens))
            with reading_meanwhile(expert, unread) if beside else nullcontext():
                length = min(block_size + extra, room - own)
                draft = propose(
                    drafter, generation, length, bonus=not extra, look_ahead=look_ahead, pace=pace, written=written, index=index
                )
            if rule.asks_expert and not extra:
                draft = replace(draft, guesses=_guesses(draft, room - own, generation, index, pace))
            drafted = time.perf_counter()
            rows = NO_ROWS
            if rule.asks_expert:
                read = draft.submitted[:-1] if extra else generation.scored(draft.submitted)
                hopeful = own and draft.token_ids and read == draft.token_ids
                ahead.start(generation, draft, min(pace.ahead(len(read)), room - len(read)) if hopeful else 0)
                logits = expert.extend(tokens[len(expert.tokens) :] + read, keep=len(read) + 1)
                ahead.join()  # before the rows: a grammar cannot follow two texts at once
                rows = generation.rows(logits, read=read)
            scored = time.perf_counter()
            place = Place(text=tokens, emitted=len(generation.reply), trace=trace, vocabulary=vocabulary, notes=notes)
            verdict = verify(draft, rows, rule, generation.sampler, generation.rng, verification=verification, place=place, wanted=wanted)
            _learn(pace, draft, verdict)
            for end, token in enumerate(verdict.token_ids, start=1):
                if stops(token):
                    verdict, finish_reason = verdict.cut(end), "stop"
                    break
            room -= len(verdict.token_ids)
            if room == 0 and finish_reason is None:
                finish_reason = "length"
            generation.grow(verdict.token_ids)
            trace += verdict.trace
            written = ahead.kept(verdict) if finish_reason is None else []
            for session in (drafter, expert):
                if not (written and session is drafter):
                    session.roll_back(min(len(session.tokens), len(tokens) - 1))
            if index is not None:
                index.append(verdict.token_ids)
            stats.drafter_calls += draft.calls + ahead.calls
            stats.expert_calls += rule.asks_expert + beside
            count(stats, draft, verdict)
            stats.clock(begun, drafted, scored, time.perf_counter())  # not the time that the consumer takes between blocks
            yield Block(verdict, draft, finish_reason)


def _guesses(draft: Draft, room: int, generation: Generation, index: NgramIndex | None, pace: LengthPolicy) -> list[int]:
    """What the index adds behind a draft: a horizontal cascade (Chen et al. 2312.11462)."""
    drafted = draft.token_ids
    if drafted and generation.is_end(drafted[-1]):
        return []
    guess = NOTHING if index is None else index.guess(max(min(room - len(drafted), LONGEST_BLOCK), 0), drafted)
    return generation.count_allowed(drafted, guess.token_ids[: pace.tail(guess)])


def _learn(pace: LengthPolicy, draft: Draft, verdict: Verdict) -> None:
    drafted = len(draft.token_ids)
    tested, kept = (min(n, drafted) for n in (len(verdict.deferred), verdict.kept))
    pace.learn(tested, kept, len(draft.guesses), verdict.kept - kept, len(verdict.token_ids))


def count(stats: Stats, draft: Draft, verdict: Verdict) -> None:
    """Add what a block came to, all but the models' calls."""
    stats.blocks += 1
    stats.drafted += len(draft.submitted)
    stats.guessed += len(draft.guesses)
    stats.tokens += len(verdict.token_ids)
    stats.tested += len(verdict.deferred)
    stats.deferred += sum(verdict.deferred)
    stats.accepted += verdict.kept
    stats.rejected += "corrected" in verdict.origins
    stats.bonus += "bonus" in verdict.origins
