"""Plain counters and clocks of one reply; rates are derived from them when asked for.

Counters are exact and repeatable; clocks (``*_s``, seconds) are not. Knows nothing of who counts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Stats:
    """What one reply cost. A copy of it travels with every Chunk."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens whose cache was reused from an earlier call, in the expert (or the drafter, if alone)
    tokens: int = 0  # emitted, the end-of-text token included
    blocks: int = 0
    drafted: int = 0  # tokens submitted to the expert, by whomever
    guessed: int = 0  # those of them that an index of the text guessed
    tested: int = 0  # submitted tokens that were looked at: up to the first rejection; in a token cascade all tokens
    accepted: int = 0  # submitted tokens that were kept, by the rule or by the coin
    deferred: int = 0  # tested tokens that were for the expert to decide: those that the rule handed over, and all guesses
    rejected: int = 0  # drafted tokens that were dropped for a corrected one
    bonus: int = 0
    expert_calls: int = 0  # batches
    drafter_calls: int = 0
    replayed: int = 0  # tokens read again by recurrent models, after a draft was rejected in part
    checkpoints: int = 0  # copies that were made of recurrent states
    audited: int = 0  # tokens that the expert judged when the answer was there, for the account alone
    draft_s: float = 0.0  # in the drafter, its reading of the prompt included
    expert_s: float = 0.0  # in the expert, its reading of the prompt included
    verify_s: float = 0.0  # rules and sampling
    rollback_s: float = 0.0  # copying recurrent states and putting them back, without the reading again; part of draft_s and expert_s
    wall_s: float = 0.0
    ttft_s: float = 0.0  # time to the first block of text
    audit_s: float = 0.0  # for the audited tokens; no part of wall_s and expert_s, because the answer did not need it

    def clock(self, begun: float, drafted: float, scored: float, ended: float) -> None:
        """A block took from ``begun`` to ``ended``, in seconds of one clock; its tokens are counted already."""
        self.draft_s += drafted - begun
        self.expert_s += scored - drafted
        self.verify_s += ended - scored
        self.wall_s += ended - begun
        if self.blocks == 1:
            self.ttft_s = self.wall_s

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted; None when nothing was drafted."""
        return _ratio(self.accepted, self.drafted)

    @property
    def deferral_rate(self) -> float | None:
        """Deferred / tested; None when nothing was tested. A deferred token can still be accepted."""
        return _ratio(self.deferred, self.tested)

    @property
    def tokens_per_block(self) -> float | None:
        """Emitted tokens per expert call, bonus included; None when the expert was never called."""
        return _ratio(self.tokens, self.expert_calls)

    @property
    def tokens_per_s(self) -> float | None:
        """Emitted tokens per second of wall time, prompt included."""
        return _ratio(self.tokens, self.wall_s)

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first block, spread over all tokens but the first."""
        return _ratio(self.wall_s - self.ttft_s, self.tokens - 1)

    def counts(self) -> dict[str, Any]:
        """The repeatable part: counters and their rates, without clocks."""
        counted = {field.name: getattr(self, field.name) for field in fields(self) if not field.name.endswith("_s")}
        return counted | {name: getattr(self, name) for name in ("acceptance_rate", "deferral_rate", "tokens_per_block")}

    def clocks(self) -> dict[str, Any]:
        """The part that differs from run to run, in seconds (and tokens per second)."""
        clocks = {field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_s")}
        return clocks | {"tpot_s": self.tpot_s, "tokens_per_s": self.tokens_per_s}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
