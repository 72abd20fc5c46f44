"""Replies: tokens with their origin, chunks of them, and the whole reply. Plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ..decoding import loop
from ..decoding.fidelity import Fidelity
from ..decoding.stats import Stats
from ..decoding.verify import Origin
from ..rules.rule import Method

#: Why a text ended.
FinishReason = loop.FinishReason | Literal["cancelled"]


class Candidate(NamedTuple):
    """A candidate for a position. ``bytes`` is exact; ``text`` shows broken characters as U+FFFD."""

    id: int
    text: str
    bytes: bytes
    logprob: float


class Logprobs(NamedTuple):
    """Natural log-probabilities at one position: the emitted token's, and those of the most probable tokens, best first."""

    logprob: float
    top: tuple[Candidate, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; -inf (the model rules the token out) becomes None."""
        top = [{"id": c.id, "text": c.text, "bytes": list(c.bytes), "logprob": c.logprob} for c in self.top]
        return {"logprob": finite_or_none(self.logprob), "top": top}


class Token(NamedTuple):
    """One emitted token. Values are None where a model was not evaluated, or nothing was recorded.

    Attributes:
        id: the token id.
        text: may be empty (control tokens, parts of a character).
        origin: ``accepted`` (drafted, kept by the rule), ``matched`` (drafted, kept by the strict test), ``corrected`` (the expert's, in
            place of a rejected draft), ``bonus`` (the expert's, after a fully kept draft) or ``expert`` (there was no draft).
        dropped: text of the rejected rest of the draft that a corrected token replaces.
        tv: total variation between the distribution that the token was drawn from and the expert's own.
        expert_logprob: the token's log-probability under the expert's raw logits.
        drafter_logprob: the same under the drafter's.
        logprobs: of the distribution that the token was drawn from, or of the raw row (``logprobs_of``).
        expert_logprobs: of the expert's own sampling distribution, if asked for.
        drafter_logprobs: of the drafter's, if asked for.
    """

    id: int
    text: str
    origin: Origin
    dropped: str | None = None
    tv: float | None = None
    expert_logprob: float | None = None
    drafter_logprob: float | None = None
    logprobs: Logprobs | None = None
    expert_logprobs: Logprobs | None = None
    drafter_logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Chunk:
    """What one block added to the text.

    Attributes:
        tokens: the emitted tokens.
        finish_reason: set on the last chunk: ``"stop"`` (the model ended its text, or a stop string came), ``"length"`` (max_tokens, or a
            full context) or ``"cancelled"`` (the caller's ``cancel`` was set; such a chunk has no tokens).
        stats: a copy as of this block.
        rule: how the tokens were settled.
        seed: of the random numbers.
        confidence: in a sequential cascade, the drafter's score of its answer.
        audited: in the last chunk of a call with ``audit=True``, where the expert judged tokens afterwards: all tokens of the reply, with
            complete fidelity. That chunk has no tokens of its own.
    """

    tokens: tuple[Token, ...]
    finish_reason: FinishReason | None
    stats: Stats
    rule: Method
    seed: int
    confidence: float | None = None
    audited: tuple[Token, ...] = ()

    @property
    def text(self) -> str:
        """The visible text."""
        return "".join(token.text for token in self.tokens)

    @property
    def token_ids(self) -> list[int]:
        """The ids, including an end-of-text id."""
        return [token.id for token in self.tokens]

    @property
    def origins(self) -> list[Origin]:
        """The origin of each token."""
        return [token.origin for token in self.tokens]

    @property
    def fidelity(self) -> Fidelity | None:
        """How close these tokens are to the expert; None where nothing was recorded (``fidelity=False``)."""
        recorded = any(token.expert_logprob is not None or token.drafter_logprob is not None for token in self.tokens)
        return Fidelity.of(self.tokens) if recorded else None

    def cancelled(self) -> Chunk:
        """Return the last chunk of a text that ends, cancelled, after this one."""
        return replace(self, tokens=(), finish_reason="cancelled")

    def as_dict(self) -> dict[str, Any]:
        """Return the repeatable part for JSON, without clocks. Lists have one element per token."""
        fidelity = self.fidelity
        recorded: dict[str, Any] = {"fidelity": None}
        if fidelity:
            recorded = {"fidelity": {name: finite_or_none(value) for name, value in fidelity.as_dict().items()}}
            recorded |= {
                name: [finite_or_none(getattr(token, name)) for token in self.tokens]
                for name in ("tv", "expert_logprob", "drafter_logprob")
            }
        for name in ("logprobs", "expert_logprobs", "drafter_logprobs"):
            logprobs: list[Logprobs | None] = [getattr(token, name) for token in self.tokens]
            if any(logprobs):
                recorded[name] = [each.as_dict() if each else None for each in logprobs]
        return {
            "rule": str(self.rule),
            "seed": self.seed,
            "text": self.text,
            "token_ids": self.token_ids,
            "origins": self.origins,
            "finish_reason": self.finish_reason,
            "confidence": self.confidence,
            "stats": self.stats.counts(),
            **recorded,
        }


@dataclass(frozen=True)
class Reply(Chunk):
    """A whole reply, with the fields of a :class:`Chunk`.

    In one runtime the same prompt, settings and named seed give the same text again, whatever the caches hold. Another block size draws
    other random numbers. Another build, machine or profile evaluates other batches, as do concurrent answers; that may flip a near-tie
    (not with ``load(exact=True)``). A seed that was read from a reply promises less: its call read a warm prompt in other pieces, and had
    learnt about lengths.
    """

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Reply:
        """Join all chunks of one stream; the tokens are the audited ones where there are any."""
        last = chunks[-1]
        tokens = last.audited or tuple(token for chunk in chunks for token in chunk.tokens)
        return cls(tokens, last.finish_reason, last.stats, last.rule, last.seed, last.confidence)


def finite_or_none(value: float | None) -> float | None:
    """Return None for an infinity, which JSON does not have."""
    return None if value is None or math.isinf(value) else value
