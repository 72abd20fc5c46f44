"""What a reply is as OpenAI's objects: chat completions, completions, their chunks, log-probabilities, usage; and our own account.

``timings`` has llama.cpp's names for what was drafted and kept; ``speccascade`` tells the rule, who wrote each token, how far it is from
the expert, and what it cost. Knows nothing of how replies are made or sent.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...decoding.stats import Stats
from ...runtime.reply import Chunk, Logprobs, Reply, Token
from ...runtime.settings import BlockSize
from .requests import CascadeOptions
from .tool_calls import CallReader, calls_in

#: What OpenAI writes where a token has no probability at all.
NEVER = -9999.0
Kind = Literal["chat", "text"]
_OBJECTS = {"chat": ("chat.completion", "chat.completion.chunk", "chatcmpl-"), "text": ("text_completion", "text_completion", "cmpl-")}


@dataclass(frozen=True)
class ResponseForm:
    """In which form one request is answered. piece: what an id stands for; top: how many candidates are told, None for no logprobs.
    tools: the names of the functions that may be called.
    """

    kind: Kind
    model: str
    options: CascadeOptions
    block_size: BlockSize
    piece: Callable[[int], bytes]
    top: int | None = None
    tools: frozenset[str] = frozenset()
    id: str = field(default="")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", _OBJECTS[self.kind][2] + secrets.token_hex(12))

    # ------------------------------------------------------------------ whole answers

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """All choices in one object."""
        last = replies[-1]
        return {
            **self._head(streamed=False),
            "choices": [self._choice(index, reply) for index, reply in enumerate(replies)],
            "usage": usage([reply.stats for reply in replies]),
            "timings": timings(last.stats),
            "speccascade": self._account(last)
            | ({"tokens": [describe_token(token) for token in last.tokens]} if self._tells_tokens else {}),
        }

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        text, calls = calls_in(reply.text, self.tools)
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
        said = {"message": message | ({"tool_calls": calls} if calls else {})} if self.kind == "chat" else {"text": text}
        logprobs = self._logprobs(reply.tokens, 0)
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": _ending(reply.finish_reason, len(calls))}

    # ------------------------------------------------------------------ streams

    def first(self, index: int) -> dict[str, Any]:
        """What a chat's stream begins with."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def part(self, index: int, chunk: Chunk, offset: int, reader: CallReader) -> dict[str, Any]:
        """One block. offset: characters of the text before it. reader: what reads the calls out of this choice's text."""
        first = reader.count
        text, calls = reader.feed(chunk.text)
        if chunk.finish_reason is not None:
            rest, last = reader.finish()
            text, calls = text + rest, calls + last
        numbered = [{"index": place, **call} for place, call in enumerate(calls, start=first)]
        delta = {"content": text} | ({"tool_calls": numbered} if numbered else {})
        said: dict[str, Any] = {"delta": delta} if self.kind == "chat" else {"text": text}
        part = self._chunk(index, said, self._logprobs(chunk.tokens, offset), _ending(chunk.finish_reason, reader.count))
        account: dict[str, Any] = {"tokens": [describe_token(token) for token in chunk.tokens]} if self._tells_tokens else {}
        account |= {"audited": [describe_token(token) for token in chunk.audited]} if chunk.audited and self._tells_tokens else {}
        return part | ({"speccascade": account} if account else {})

    def ended(self, part: dict[str, Any], chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The last block of a choice, with what the whole of it cost. chunks: all of them."""
        reply = Reply.of(chunks)
        return part | {"timings": timings(reply.stats), "speccascade": part.get("speccascade", {}) | self._account(reply)}

    def usage(self, stats: Sequence[Stats]) -> dict[str, Any]:
        """The chunk behind the last choice, for whoever asked for it."""
        return {**self._head(streamed=True), "choices": [], "usage": usage(stats)}

    def _chunk(self, index: int, said: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head(streamed=True), "choices": [choice]}

    # ------------------------------------------------------------------ parts of both

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        name = _OBJECTS[self.kind][streamed]
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, "system_fingerprint": None}

    @property
    def _tells_tokens(self) -> bool:
        return self.options.origins or self.options.model_logprobs

    def _account(self, reply: Reply) -> dict[str, Any]:
        fidelity = reply.fidelity if self.options.fidelity else None
        return {
            "rule": str(reply.rule),
            "block_size": self.block_size,
            "seed": reply.seed,
            "fidelity": {name: _finite(value) for name, value in fidelity.as_dict().items()} if fidelity else None,
            "stats": reply.stats.counts() | reply.stats.clocks(),
        }

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
        if self.top is None:
            return None
        known = [(token, token.logprobs) for token in tokens if token.logprobs is not None]
        if self.kind == "chat":
            return {"content": [self._place(token, logprobs) for token, logprobs in known], "refusal": None}
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, logprobs in known:
            own = _key(self.piece(token.id))
            found["tokens"].append(own)
            found["token_logprobs"].append(_logprob(logprobs.logprob))
            top: dict[str, float] = {}
            for text, value in [*((_key(c.bytes), c.logprob) for c in logprobs.top[: self.top]), (own, logprobs.logprob)]:
                top.setdefault(text, _logprob(value))  # the best of equal texts stays
            found["top_logprobs"].append(top)
            found["text_offset"].append(offset)
            offset += len(token.text)
        return found

    def _place(self, token: Token, logprobs: Logprobs) -> dict[str, Any]:
        piece = self.piece(token.id)
        top = [{"token": c.text, "logprob": _logprob(c.logprob), "bytes": list(c.bytes)} for c in logprobs.top[: self.top]]
        own = {"token": piece.decode(errors="replace"), "logprob": _logprob(logprobs.logprob), "bytes": list(piece)}
        return own | {"top_logprobs": top}


def describe_token(token: Token) -> dict[str, Any]:
    """One token's account; what is not known of it is left out."""
    known = {"dropped": token.dropped, "tv": token.tv}
    known |= {name: _finite(getattr(token, name)) for name in ("expert_logprob", "drafter_logprob")}
    models = {"expert": token.expert_logprobs, "drafter": token.drafter_logprobs}
    top = {name: [[c.text, c.logprob] for c in found.top] for name, found in models.items() if found is not None}
    account = {"text": token.text, "origin": str(token.origin)} | {name: value for name, value in known.items() if value is not None}
    return account | ({"top": top} if top else {})


def usage(stats: Sequence[Stats]) -> dict[str, Any]:
    """Tokens read and written, over all choices; the prompt counts once."""
    prompt, written = stats[0].prompt_tokens, sum(each.tokens for each in stats)
    cached = {"cached_tokens": stats[0].cached_tokens}
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written, "prompt_tokens_details": cached}


def timings(stats: Stats) -> dict[str, Any]:
    """As llama.cpp's server names them; milliseconds. The first block's time counts as the prompt's."""
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


def _ending(finish_reason: str | None, calls: int) -> str | None:
    return "tool_calls" if calls and finish_reason == "stop" else finish_reason


def _key(piece: bytes) -> str:
    """A token's text where no bytes stand beside it. Parts of characters as OpenAI writes them there, so that no two look alike."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _logprob(value: float) -> float:
    return max(value, NEVER)


def _finite(value: float | None) -> float | None:
    return None if value is None or value in (float("inf"), float("-inf")) else value
