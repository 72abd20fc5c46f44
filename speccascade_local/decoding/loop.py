"""The decoding loop: draft, score, settle, commit.

Expert-only decoding (block size 0), the drafter alone (rule ``never``), speculative decoding (rule ``strict``) and every cascade are this
one loop. Between blocks each session holds a prefix of the committed tokens, at most all but the last one (the drafter also what it wrote
ahead). So both caches stay true where a generator is dropped at a ``yield``. After a fully kept draft the drafter is one token behind,
and reads that token together with the bonus token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, replace
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
from .ngram import NgramIndex
from .overlap import WriteAhead, reading_beside
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


@dataclass(eq=False)
class BlockLoop:
    """The decoding loop of one reply.

    Both sessions must hold prefixes of the generation's tokens that leave at least the last one unread. A full context ends the text with
    ``"length"``. The last predicted token needs no room, so a prompt that fills the context still gets one token.
    """

    generation: Generation  # the text, which grows in place
    drafter: Session
    expert: Session
    _: KW_ONLY
    rule: Rule  # decides token by token who speaks
    block_size: int  # drafted tokens per block; at least 1 where the rule never asks the expert
    max_tokens: int  # emitted tokens, at least 1
    stops: Callable[[int], bool]  # called once with each emitted token, in order; True ends the text after it (end of text, stop strings)
    stats: Stats  # counts what the reply costs
    verification: Verification = "token"
    #: "expert" adds the expert's own token to a fully kept draft, and a place without a draft is the expert's own. "cascade" drafts one
    #: more token instead and settles it like the others, so every block drafts and every token follows the rule's target.
    bonus: Bonus = "expert"
    recording: Recording | None = None
    vocabulary: Vocabulary | None = None  # for rules that look at the texts of tokens
    lengths: LengthPolicy | None = None  # decides how long each draft is, up to ``block_size``; None: always that long
    index: NgramIndex | None = None  # guesses from the text, which the drafter reviews, and which may follow a draft

    def __post_init__(self) -> None:
        self._drafts_bonus = self.bonus == "cascade" and self.rule.asks_expert and self.block_size > 0
        self._adds_token = self.rule.asks_expert and not self._drafts_bonus  # each block adds a corrected or a bonus token
        self._longest_draft = self.block_size + self._drafts_bonus
        self._lengths = self.lengths or FixedLength(self._longest_draft)
        self._room = min(self.max_tokens, min(self.expert.n_ctx, self.drafter.n_ctx) + 1 - len(self.generation.tokens))
        self._trace: list[float] = []
        self._notes: dict[Any, Any] = {}
        self._written: ReadAhead = []
        self._writer = WriteAhead(self.drafter)

    def decode(self) -> Iterator[Block]:
        """Yield block after block until something ends the text."""
        if self.index is not None:
            self.index.begin(self.generation.tokens)
        finish_reason: FinishReason | None = None
        with self._writer:
            while finish_reason is None:
                begun = time.perf_counter()
                draft = self._draft()
                drafted = time.perf_counter()
                rows = self._score(draft)
                scored = time.perf_counter()
                verdict, finish_reason = self._settle(draft, rows)
                self._commit(draft, verdict, ended=finish_reason is not None)
                self.stats.clock(begun, drafted, scored, time.perf_counter())  # without the consumer's time between blocks
                yield Block(verdict, draft, finish_reason)

    def _draft(self) -> Draft:
        """Write the next block's draft, while the expert reads the prompt where that pays."""
        tokens, drafter, expert = self.generation.tokens, self.drafter, self.expert
        unread = tokens[len(expert.tokens) : -1] if self.rule.asks_expert else []
        beside = bool(unread) and self._lengths.reads_beside(len(unread), len(tokens) - len(drafter.tokens))
        with reading_beside(expert, unread) if beside else nullcontext():
            draft = propose(
                drafter,
                self.generation,
                min(self._longest_draft, self._room - self._adds_token),
                bonus=not self._drafts_bonus,
                look_ahead=self._adds_token and self.recording is not None and self.recording.models,
                lengths=self._lengths,
                written=self._written,
                index=self.index,
            )
        self.stats.expert_calls += beside
        self.stats.drafter_calls += draft.calls
        return replace(draft, guesses=self._guesses(draft)) if self._adds_token and self.index is not None else draft

    def _guesses(self, draft: Draft) -> list[int]:
        """Return what the index adds after the draft: a horizontal cascade (Chen et al. 2312.11462)."""
        drafted = draft.token_ids
        if drafted and self.generation.is_end(drafted[-1]):
            return []
        assert self.index is not None
        guess = self.index.guess(max(min(self._room - 1 - len(drafted), LONGEST_BLOCK), 0), drafted)
        return self.generation.allowed_guesses(drafted, guess.token_ids[: self._lengths.count_guesses(guess)])

    def _score(self, draft: Draft) -> Rows:
        """Let the expert read the draft in one batch, and return its rows."""
        if not self.rule.asks_expert:
            return NO_ROWS
        tokens = self.generation.tokens
        read = draft.submitted[:-1] if self._drafts_bonus else self.generation.to_score(draft.submitted)
        may_write = self._adds_token and draft.token_ids and read == draft.token_ids
        self._writer.start(self.generation, draft, min(self._lengths.count_ahead(len(read)), self._room - len(read)) if may_write else 0)
        logits = self.expert.extend(tokens[len(self.expert.tokens) :] + read, keep=len(read) + 1)
        self._writer.join()  # before the rows: a grammar cannot follow two texts at once
        self.stats.expert_calls += 1
        self.stats.drafter_calls += self._writer.calls
        return self.generation.rows(logits, read=read)

    def _settle(self, draft: Draft, rows: Rows) -> tuple[Verdict, FinishReason | None]:
        """Apply the rule, and find the end of the text."""
        generation = self.generation
        place = Place(
            text=generation.tokens, emitted=len(generation.reply), trace=self._trace, vocabulary=self.vocabulary, notes=self._notes
        )
        verdict = verify(
            draft,
            rows,
            self.rule,
            generation.sampler,
            generation.rng,
            verification=self.verification,
            place=place,
            recording=self.recording,
        )
        drafted = len(draft.token_ids)
        tested, kept = (min(n, drafted) for n in (len(verdict.deferred), verdict.kept))
        self._lengths.learn(tested, kept, len(draft.guesses), verdict.kept - kept, len(verdict.token_ids))
        for end, token in enumerate(verdict.token_ids, start=1):
            if self.stops(token):
                return verdict.cut(end), "stop"
        return verdict, "length" if len(verdict.token_ids) == self._room else None

    def _commit(self, draft: Draft, verdict: Verdict, *, ended: bool) -> None:
        """Add the tokens to the text, and roll both caches back to it."""
        tokens = self.generation.tokens
        self._room -= len(verdict.token_ids)
        self.generation.grow(verdict.token_ids)
        self._trace += verdict.trace
        self._written = [] if ended else self._writer.tokens_after(verdict)
        for session in (self.expert,) if self._written else (self.drafter, self.expert):
            session.roll_back(min(len(session.tokens), len(tokens) - 1))
        if self.index is not None:
            self.index.append(verdict.token_ids)
        count_block(self.stats, draft, verdict)


def count_block(stats: Stats, draft: Draft, verdict: Verdict) -> None:
    """Add the tokens of a block, and what became of them."""
    stats.blocks += 1
    stats.drafted += len(draft.submitted)
    stats.guessed += len(draft.guesses)
    stats.tokens += len(verdict.token_ids)
    stats.tested += len(verdict.deferred)
    stats.deferred += sum(verdict.deferred)
    stats.accepted += verdict.kept
    stats.rejected += "corrected" in verdict.origins
    stats.bonus += "bonus" in verdict.origins
