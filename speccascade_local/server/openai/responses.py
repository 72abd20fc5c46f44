"""Replies as OpenAI's objects: chat completions, completions, their chunks, log-probabilities and usage.

``timings`` has llama.cpp's names for drafted and accepted tokens. ``speccascade`` reports the rule, who wrote each token, the distance from
the expert, and the cost.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...decoding.stats import Stats
from ...runtime.reply import Chunk, Logprobs, Reply, Token, finite_or_none
from ...runtime.settings import BlockSize
from .requests import CascadeOptions
from .tool_calls import CallReader, calls_in

#: OpenAI's log-probability of an impossible token.
NEVER = -9999.0
Kind = Literal["chat", "text"]
_OBJECTS = {"chat": ("chat.completion", "chat.completion.chunk", "chatcmpl-"), "text": ("text_completion", "text_completion", "cmpl-")}


@dataclass(frozen=True)
class ResponseForm:
    """Builds the responses to one request."""

    kind: Kind  # chat completions or text completions
    model: str  # the model's name as the client wrote it
    options: CascadeOptions  # the request's ``speccascade`` fields
    block_size: BlockSize  # drafted tokens per block, for the report
    piece: Callable[[int], bytes]  # returns the bytes of a token id
    top: int | None = None  # number of candidates per token; None for no log-probabilities
    tools: frozenset[str] = frozenset()  # names of the functions that may be called
    id: str = field(default="")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", _OBJECTS[self.kind][2] + secrets.token_hex(12))

    def response(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """Return all choices in one object."""
        last = replies[-1]
        return {
            **self._head(streamed=False),
            "choices": [self._choice(index, reply) for index, reply in enumerate(replies)],
            "usage": usage([reply.stats for reply in replies]),
            "timings": timings(last.stats),
            "speccascade": self._report(last) | self._tokens("tokens", last.tokens),
        }

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        text, calls = calls_in(reply.text, self.tools)
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
        content = {"message": message | ({"tool_calls": calls} if calls else {})} if self.kind == "chat" else {"text": text}
        logprobs = self._logprobs(reply.tokens, 0)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": _finish_reason(reply.finish_reason, len(calls))}

    def first_event(self, index: int) -> dict[str, Any]:
        """Return the event that begins a choice of a chat's stream."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def event(self, index: int, chunk: Chunk, offset: int, reader: CallReader) -> dict[str, Any]:
        """Return the event of one block of a choice, which begins after ``offset`` characters."""
        first = reader.count
        text, calls = reader.feed(chunk.text)
        if chunk.finish_reason is not None:
            rest, last = reader.finish()
            text, calls = text + rest, calls + last
        numbered = [{"index": place, **call} for place, call in enumerate(calls, start=first)]
        delta = {"content": text} | ({"tool_calls": numbered} if numbered else {})
        content: dict[str, Any] = {"delta": delta} if self.kind == "chat" else {"text": text}
        finish_reason = _finish_reason(chunk.finish_reason, reader.count)
        event = self._chunk(index, content, self._logprobs(chunk.tokens, offset), finish_reason)
        report = self._tokens("tokens", chunk.tokens) | (self._tokens("audited", chunk.audited) if chunk.audited else {})
        return event | ({"speccascade": report} if report else {})

    def add_totals(self, event: dict[str, Any], chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Return the last event of a choice with the costs of all its chunks."""
        reply = Reply.of(chunks)
        return event | {"timings": timings(reply.stats), "speccascade": event.get("speccascade", {}) | self._report(reply)}

    def usage_event(self, stats: Sequence[Stats]) -> dict[str, Any]:
        """Return the event after the last choice, for clients that ask for usage."""
        return {**self._head(streamed=True), "choices": [], "usage": usage(stats)}

    def _chunk(self, index: int, content: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head(streamed=True), "choices": [choice]}

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        name = _OBJECTS[self.kind][streamed]
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, "system_fingerprint": None}

    def _tokens(self, key: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """Return what is known of each token under a key, if the client asks for it."""
        return {key: list(map(describe_token, tokens))} if self.options.origins or self.options.model_logprobs else {}

    def _report(self, reply: Reply) -> dict[str, Any]:
        fidelity = reply.fidelity if self.options.fidelity else None
        return {
            "rule": str(reply.rule),
            "block_size": self.block_size,
            "seed": reply.seed,
            "fidelity": {name: finite_or_none(value) for name, value in fidelity.as_dict().items()} if fidelity else None,
            "stats": reply.stats.counts() | reply.stats.clocks(),
        }

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
        if self.top is None:
            return None
        known = [(token, token.logprobs) for token in tokens if token.logprobs is not None]
        if self.kind == "chat":
            return {"content": [self._chat_logprobs(token, logprobs) for token, logprobs in known], "refusal": None}
        lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, logprobs in known:
            own = _key(self.piece(token.id))
            lists["tokens"].append(own)
            lists["token_logprobs"].append(_logprob(logprobs.logprob))
            top: dict[str, float] = {}
            for text, value in [*((_key(c.bytes), c.logprob) for c in logprobs.top[: self.top]), (own, logprobs.logprob)]:
                top.setdefault(text, _logprob(value))  # of equal texts the most probable one counts
            lists["top_logprobs"].append(top)
            lists["text_offset"].append(offset)
            offset += len(token.text)
        return lists

    def _chat_logprobs(self, token: Token, logprobs: Logprobs) -> dict[str, Any]:
        piece = self.piece(token.id)
        top = [{"token": c.text, "logprob": _logprob(c.logprob), "bytes": list(c.bytes)} for c in logprobs.top[: self.top]]
        own = {"token": piece.decode(errors="replace"), "logprob": _logprob(logprobs.logprob), "bytes": list(piece)}
        return own | {"top_logprobs": top}


def describe_token(token: Token) -> dict[str, Any]:
    """Return what is known of a token."""
    known = {"dropped": token.dropped, "tv": token.tv}
    known |= {name: finite_or_none(getattr(token, name)) for name in ("expert_logprob", "drafter_logprob")}
    models = {"expert": token.expert_logprobs, "drafter": token.drafter_logprobs}
    top = {name: [[c.text, c.logprob] for c in logprobs.top] for name, logprobs in models.items() if logprobs is not None}
    description = {"text": token.text, "origin": str(token.origin)} | {name: value for name, value in known.items() if value is not None}
    return description | ({"top": top} if top else {})


def usage(stats: Sequence[Stats]) -> dict[str, Any]:
    """Return the numbers of tokens over all choices; the prompt counts once."""
    prompt, written = stats[0].prompt_tokens, sum(each.tokens for each in stats)
    cached = {"cached_tokens": stats[0].cached_tokens}
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written, "prompt_tokens_details": cached}


def timings(stats: Stats) -> dict[str, Any]:
    """Return times in milliseconds by llama.cpp's names. The first block counts as the prompt's time."""
    written_s = max(0.0, stats.wall_s - stats.ttft_s)
    return {
        "cache_n": stats.cached_tokens,
        "prompt_n": stats.prompt_tokens - stats.cached_tokens,
        "prompt_ms": 1000 * stats.ttft_s,
        "predicted_n": stats.tokens,
        "predicted_ms": 1000 * written_s,
        "predicted_per_second": stats.tokens_per_s,
        "draft_n": stats.drafted,
        "draft_n_accepted": stats.accepted,
    }


def _finish_reason(finish_reason: str | None, calls: int) -> str | None:
    return "tool_calls" if calls and finish_reason == "stop" else finish_reason


def _key(piece: bytes) -> str:
    """Return a token's text, or OpenAI's ``bytes:`` form for parts of characters, so that no two tokens look alike."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _logprob(value: float) -> float:
    return max(value, NEVER)
