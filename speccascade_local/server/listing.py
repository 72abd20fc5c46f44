"""What there is: the pairs as models, and their vocabularies. Knows nothing of how answers are made."""

from __future__ import annotations

import math
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..deferral import Method
from ..guards import Guarded
from ..methods import RULES
from ..runtime import Runtime
from .asking import messages_of, require_room, understood
from .choosing import Offer
from .large_requests import LargeRequests
from .protocol import DetokenizeRequest, TokenizeRequest
from .refusals import RefusedError


class Listing:
    """The routes that tell of pairs. created: when the server started, which is what clients are told of each model."""

    def __init__(self, offer: Offer, created: int, large: LargeRequests) -> None:
        self._offer, self._created, self._large = offer, created, large

    async def models(self, _: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse({"object": "list", "data": [self._told(name) for name in self._offer.names]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/{model}``."""
        name = request.path_params["model"]
        if not name:
            return await self.models(request)
        self._offer.chosen(name)
        return JSONResponse(self._told(name))

    async def pairs(self, _: Request) -> Response:
        """``GET /api/pairs``: what the page shows to choose from."""
        pairs = [_described(name, runtime) for name, runtime in self._offer.pairs.items()]
        return JSONResponse({"pairs": pairs, "rules": _rules(), "own_rules": list(self._offer.rules)})

    async def tokenize(self, request: Request) -> Response:
        """``POST /tokenize``, as llama.cpp's server and vLLM have it."""
        return await understood(request, TokenizeRequest, self._tokenized, self._large)

    async def detokenize(self, request: Request) -> Response:
        """``POST /detokenize``, likewise."""
        return await understood(request, DetokenizeRequest, self._detokenized, self._large)

    def _tokenized(self, wanted: TokenizeRequest) -> Response:
        _, runtime, _ = self._offer.chosen(wanted.model)
        ids = _ids(wanted, runtime)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": runtime.n_ctx})

    def _detokenized(self, wanted: DetokenizeRequest) -> Response:
        _, runtime, _ = self._offer.chosen(wanted.model)
        wrong = max(wanted.tokens, default=0)
        if wrong >= runtime.n_vocab:
            raise RefusedError(400, f"tokens: there is no id {wrong}; ids are 0 to {runtime.n_vocab - 1}", param="tokens")
        text = _text(wanted.tokens, runtime)
        return JSONResponse({"content": text, "prompt": text})

    def _told(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "speccascade-local"}


def _described(name: str, runtime: Runtime) -> dict[str, Any]:
    pair = runtime.pair
    return {
        "name": name,
        "description": pair.description,
        "rule": str(runtime.rule),
        "alpha": _alpha(runtime.rule),
        "drafter": pair.drafter.name,
        "expert": pair.expert.name,
        "small": pair.small.name if pair.small else None,
        "n_ctx": runtime.n_ctx,
        "n_vocab": runtime.n_vocab,
        "chat": runtime.has_chat_template,
    }


def _rules() -> list[dict[str, Any]]:
    """The built-in rules with the range of their first dial; null where a range has no end."""
    found = []
    for method in RULES.values():
        name, dial = next(iter(method.dials.items()), (None, None))
        told: dict[str, Any] = {"name": method.name, "trade": method.trade, "example": method.example, "dial": None}
        if dial is not None:
            ends = {end: value if math.isfinite(value) else None for end, value in (("low", dial.low), ("high", dial.high))}
            told["dial"] = {"name": name, "whole": dial.whole, "allowed": dial.allowed(), **ends}
        found.append(told)
    return found


def _alpha(rule: Method) -> float | None:
    """The first dial, None for a rule without one."""
    inner = rule.rule if isinstance(rule, Guarded) else rule
    dial = next(iter(inner.dials), None)
    value = None if dial is None else getattr(inner, dial, None)
    return float(value) if isinstance(value, (int, float)) else None


def _ids(wanted: TokenizeRequest, runtime: Runtime) -> list[int]:
    if wanted.messages is not None:
        require_room(sum(message.characters for message in wanted.messages), runtime)
        return runtime.chat_ids(messages_of(wanted.messages))
    text = wanted.content if wanted.content is not None else wanted.prompt or ""
    require_room(len(text), runtime)
    return runtime.models["expert"].tokenizer.tokenize(text, add_special=wanted.add_special, parse_special=True)


def _text(tokens: list[int], runtime: Runtime) -> str:
    tokenizer = runtime.models["expert"].tokenizer
    return b"".join(tokenizer.piece(token, special=True) for token in tokens).decode(errors="replace")
