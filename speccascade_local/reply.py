"""What comes back: tokens with who wrote them, chunks of them, and the whole reply.

Plain values; knows nothing of how they are made or shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .cascade import FinishReason
from .rules import Rule
from .stats import Stats
from .verify import Origin


class Token(NamedTuple):
    """One emitted token. ``text`` may be empty (control tokens, parts of a character).

    origin: ``accepted`` (draft kept by the rule), ``matched`` (draft kept by the strict test), ``corrected`` (the expert's, in place
    of a dropped draft), ``bonus`` (the expert's, after a fully kept draft) or ``expert`` (there was no draft).
    """

    id: int
    text: str
    origin: Origin
    dropped: str | None = None  # text of the rest of the draft that this one, a corrected one, replaces


@dataclass(frozen=True)
class Chunk:
    """What one block added to the text. ``stats`` is a copy as of this block; ``finish_reason`` is set on the last chunk.

    finish_reason: ``"stop"`` (the model ended its text, or a stop string came) or ``"length"`` (max_tokens, or a full context).
    """

    tokens: tuple[Token, ...]
    finish_reason: FinishReason | None
    stats: Stats
    rule: Rule
    seed: int

    @property
    def text(self) -> str:
        """The visible text of this chunk."""
        return "".join(token.text for token in self.tokens)

    @property
    def token_ids(self) -> list[int]:
        """The ids, an end-of-text id included."""
        return [token.id for token in self.tokens]

    @property
    def origins(self) -> list[Origin]:
        """Who wrote each token, in the order of ``token_ids``."""
        return [token.origin for token in self.tokens]

    def as_dict(self) -> dict[str, Any]:
        """The repeatable part, for JSON: no clocks."""
        return {
            "rule": str(self.rule),
            "seed": self.seed,
            "text": self.text,
            "token_ids": self.token_ids,
            "origins": self.origins,
            "finish_reason": self.finish_reason,
            "stats": self.stats.counts(),
        }


@dataclass(frozen=True)
class Reply(Chunk):
    """A whole answer. With the same ``seed`` and settings, the same prompt gives the same text again.

    What a seed does not promise: another block size draws other random numbers, and another build, machine or cache state
    evaluates in other batches, which may flip a near-tie.
    """

    confidence: float | None = None  # of a sequential cascade: the drafter's mean margin

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Reply:
        """All chunks of one stream, joined."""
        last = chunks[-1]
        return cls(tuple(token for chunk in chunks for token in chunk.tokens), last.finish_reason, last.stats, last.rule, last.seed)
