"""What comes back: tokens with who wrote them, chunks of them, and the whole reply.

Plain values; knows nothing of how they are made or shown.
"""

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
    """A token that could have stood at a place. ``bytes``: what it stands for exactly; ``text`` shows broken characters as U+FFFD."""

    id: int
    text: str
    bytes: bytes
    logprob: float


class Logprobs(NamedTuple):
    """Natural log-probabilities at one place: the emitted token's, and those of the most probable tokens, best first."""

    logprob: float
    top: tuple[Candidate, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; -inf (the model would never say it here) becomes None."""
        top = [{"id": c.id, "text": c.text, "bytes": list(c.bytes), "logprob": c.logprob} for c in self.top]
        return {"logprob": _json(self.logprob), "top": top}


class Token(NamedTuple):
    """One emitted token. ``text`` may be empty (control tokens, parts of a character).

    origin: ``accepted`` (draft kept by the rule), ``matched`` (draft kept by the strict test), ``corrected`` (the expert's, in place
    of a dropped draft), ``bonus`` (the expert's, after a fully kept draft) or ``expert`` (there was no draft).
    tv: total variation between the distribution that the token was drawn from and the expert's own. expert_logprob, drafter_logprob:
    the token's log-probability under each model's raw logits. None where a model was not evaluated, or nothing was recorded.
    logprobs: of the distribution that the token was drawn from, or of the raw row (``logprobs_of``). expert_logprobs, drafter_logprobs:
    of the models' own sampling distributions, if asked for.
    """

    id: int
    text: str
    origin: Origin
    dropped: str | None = None  # text of the rest of the draft that this one, a corrected one, replaces
    tv: float | None = None
    expert_logprob: float | None = None
    drafter_logprob: float | None = None
    logprobs: Logprobs | None = None
    expert_logprobs: Logprobs | None = None
    drafter_logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Chunk:
    """What one block added to the text.

    tokens: what was emitted, with who wrote it. finish_reason: set on the last chunk: ``"stop"`` (the model ended its text, or a stop
    string came), ``"length"`` (max_tokens, or a full context) or ``"cancelled"`` (the caller's ``cancel`` was set; such a chunk has no
    tokens). stats: a copy as of this block. rule: how the tokens were settled. seed: that of the random numbers. confidence: of a
    sequential cascade, the drafter's score of its answer. audited: with ``audit=True`` and where the expert had something to judge
    afterwards, the last chunk has no tokens of its own, and here all of the reply's, each with its complete account.
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

    @property
    def fidelity(self) -> Fidelity | None:
        """How true these tokens are to the expert; None where no account was kept (``fidelity=False``)."""
        recorded = any(token.expert_logprob is not None or token.drafter_logprob is not None for token in self.tokens)
        return Fidelity.of(self.tokens) if recorded else None

    def cancelled(self) -> Chunk:
        """The last chunk of a text that is not continued after this one."""
        return replace(self, tokens=(), finish_reason="cancelled")

    def as_dict(self) -> dict[str, Any]:
        """The repeatable part, for JSON: no clocks. Lists have one element per token."""
        fidelity = self.fidelity
        account: dict[str, Any] = {"fidelity": None}
        if fidelity:
            account = {"fidelity": {name: _json(value) for name, value in fidelity.as_dict().items()}}
            account |= {
                name: [_json(getattr(token, name)) for token in self.tokens] for name in ("tv", "expert_logprob", "drafter_logprob")
            }
        for name in ("logprobs", "expert_logprobs", "drafter_logprobs"):
            found: list[Logprobs | None] = [getattr(token, name) for token in self.tokens]
            if any(found):
                account[name] = [each.as_dict() if each else None for each in found]
        return {
            "rule": str(self.rule),
            "seed": self.seed,
            "text": self.text,
            "token_ids": self.token_ids,
            "origins": self.origins,
            "finish_reason": self.finish_reason,
            "confidence": self.confidence,
            "stats": self.stats.counts(),
            **account,
        }


@dataclass(frozen=True)
class Reply(Chunk):
    """A whole answer, with the fields of a :class:`Chunk`. With the same ``seed`` and settings, the same prompt gives the same text again.

    So it does in one runtime, whatever the caches hold. Another block size draws other random numbers. Another build, machine or profile
    evaluates in other batches, as do answers made at the same time; that may flip a near-tie (not with ``load(exact=True)``). A seed that
    was not named but read from this reply promises less: that call read a warm prompt in other pieces, and had learnt about lengths.
    """

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Reply:
        """All chunks of one stream, joined. The tokens are the audited ones where there are any."""
        last = chunks[-1]
        tokens = last.audited or tuple(token for chunk in chunks for token in chunk.tokens)
        return cls(tokens, last.finish_reason, last.stats, last.rule, last.seed, last.confidence)


def _json(value: float | None) -> float | None:
    """JSON has no infinity: a token that a model rules out has no log-probability there."""
    return None if value is None or math.isinf(value) else value
