"""Counters and clocks of one reply. Counters are exact and repeatable; clocks (``*_s``, seconds) are not."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Stats:
    """What one reply cost. A copy of it travels with every Chunk."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens found in the expert's KV cache (the drafter's, if alone)
    tokens: int = 0  # emitted, including the end-of-text token
    blocks: int = 0
    drafted: int = 0  # tokens submitted to the expert, guesses included
    guessed: int = 0  # submitted tokens that were guesses from the text
    tested: int = 0  # submitted tokens up to the first rejection; in a token cascade all tokens
    accepted: int = 0  # submitted tokens that were kept, by the rule or by the coin
    deferred: int = 0  # tested tokens that the expert decided: by the rule, and all guesses
    rejected: int = 0  # drafts that a corrected token cut off
    bonus: int = 0
    expert_calls: int = 0  # batches
    drafter_calls: int = 0
    replayed: int = 0  # tokens that recurrent models read again after a rollback
    checkpoints: int = 0  # copies made of recurrent states
    audited: int = 0  # tokens that the expert judged after the answer, for their fidelity
    draft_s: float = 0.0  # in the drafter, its prefill included
    expert_s: float = 0.0  # in the expert, its prefill included
    verify_s: float = 0.0  # rules and sampling
    rollback_s: float = 0.0  # copying and restoring recurrent states; part of draft_s and expert_s
    wall_s: float = 0.0
    ttft_s: float = 0.0  # time to the first block of text
    audit_s: float = 0.0  # for the audited tokens; not part of wall_s and expert_s

    def clock(self, begun: float, drafted: float, scored: float, ended: float) -> None:
        """Add the times of a block, in seconds of one clock; its tokens are counted already."""
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
