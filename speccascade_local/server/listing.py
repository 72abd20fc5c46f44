"""What there is: the pairs as models, and their vocabularies. Knows nothing of how answers are made."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..common.version import __version__
from ..rules.combined import RegionalRule
from ..rules.registry import RULES
from ..rules.rule import Method
from ..runtime.runtime import Runtime
from .completions import messages_of, read_request, require_room
from .errors import RefusedError
from .http.large_requests import LargeRequests
from .openai.fields import FIELDS, ROUTES, Route
from .openai.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .openai.translation import FORMS
from .request_settings import ServedPairs


class Listing:
    """The routes that tell of pairs. created: when the server started, which is what clients are told of each model."""

    def __init__(self, offer: ServedPairs, created: int, large: LargeRequests) -> None:
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
        pairs = [_describe(name, runtime) for name, runtime in self._offer.pairs.items()]
        return JSONResponse({"pairs": pairs, "rules": _rules(), "own_rules": list(self._offer.rules)})

    async def tokenize(self, request: Request) -> Response:
        """``POST /tokenize``, as llama.cpp's server and vLLM have it."""
        return await read_request(request, TokenizeRequest, self._tokenized, self._large)

    async def detokenize(self, request: Request) -> Response:
        """``POST /detokenize``, likewise."""
        return await read_request(request, DetokenizeRequest, self._detokenized, self._large)

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


def _describe(name: str, runtime: Runtime) -> dict[str, Any]:
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
    inner = rule.rule if isinstance(rule, RegionalRule) else rule
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


_POSTS = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation.", True),
    "/v1/completions": (CompletionRequest, "Continue a text.", True),
    "/tokenize": (TokenizeRequest, "The token ids of a text.", False),
    "/detokenize": (DetokenizeRequest, "The text of token ids.", False),
}
_GETS = {
    "/v1/models": "The pairs that are loaded.",
    "/v1/models/{model}": "One of them.",
    "/api/pairs": "The same with their rules and files.",
    "/metrics": "Counters for Prometheus.",
    "/health": "Whether the server lives.",
    "/v1/health": "The same.",
}
_ERRORS = {
    400: "Something in the request is wrong; the message says what.",
    401: "An API key is needed.",
    403: "The Host or Origin is not this server's.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not application/json, or is packed.",
    429: "As many requests wait as may; see Retry-After.",
    503: "The server is closing, has too many connections, or llama.cpp failed.",
    504: "No whole answer in time.",
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@lru_cache(maxsize=1)
def description() -> dict[str, Any]:
    """The whole document."""
    models: list[Any] = [(model, "validation") for model, _, _ in _POSTS.values()]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    for route, model in zip(ROUTES, (ChatRequest, CompletionRequest)):
        _add_mapped(schemas["$defs"][model.__name__]["properties"], route)
    paths: dict[str, Any] = {path: {"get": _get(path, told)} for path, told in _GETS.items()}
    paths |= {path: {"post": _post(model.__name__, told, streams)} for path, (model, told, streams) in _POSTS.items()}
    refused = {"summary": "Refused: language models make no embeddings.", "requestBody": _body({"type": "object"})}
    paths["/v1/embeddings"] = {"post": refused | {"responses": _responses(None)}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "speccascade-local", "version": __version__, "description": "Two local models answer as one."},
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR_SCHEMA},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _add_mapped(properties: dict[str, Any], route: Route) -> None:
    """Other servers' names of fields, each with what ours takes, or, where it is written in another form, with anything."""
    for each in FIELDS:
        if each.ours == "mapped" and route in each.routes:
            takes = {} if each.name in FORMS else properties[each.to]
            properties[each.name] = {**takes, "description": each.meaning}


def _get(path: str, told: str) -> dict[str, Any]:
    content = {"text/plain": {}} if path == "/metrics" else {"application/json": {"schema": {"type": "object"}}}
    found: dict[str, Any] = {"summary": told, "responses": _responses(content)}
    if "{model}" in path:
        found["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    return found


def _post(model: str, told: str, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"summary": told, "requestBody": _body({"$ref": f"#/components/schemas/{model}"}), "responses": _responses(content)}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _responses(content: dict[str, Any] | None) -> dict[str, Any]:
    good = {"200": {"description": "What was asked for.", "content": content}} if content is not None else {}
    return good | {str(status): _error(status) for status in _ERRORS}


def _error(status: int) -> dict[str, Any]:
    return {"description": _ERRORS[status], "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
