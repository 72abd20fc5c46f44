"""The routes that list pairs and tokenize, and the OpenAPI description of all routes."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import BaseModel
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
    """The routes that list pairs and use their vocabularies; ``created`` is the time that clients see for each model."""

    def __init__(self, models: ServedPairs, created: int, large: LargeRequests) -> None:
        self._models, self._created, self._large = models, created, large

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._models.names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if not name:
            return await self.models(request)
        self._models.choose(name)
        return JSONResponse(self._model(name))

    async def pairs(self, _: Request) -> Response:
        pairs = [_describe(name, runtime) for name, runtime in self._models.pairs.items()]
        return JSONResponse({"pairs": pairs, "rules": _rules(), "own_rules": list(self._models.rules)})

    async def tokenize(self, request: Request) -> Response:
        return await read_request(request, TokenizeRequest, self._tokenize, self._large)

    async def detokenize(self, request: Request) -> Response:
        return await read_request(request, DetokenizeRequest, self._detokenize, self._large)

    def _tokenize(self, body: TokenizeRequest) -> Response:
        _, runtime, _ = self._models.choose(body.model)
        ids = _ids(body, runtime)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": runtime.n_ctx})

    def _detokenize(self, body: DetokenizeRequest) -> Response:
        _, runtime, _ = self._models.choose(body.model)
        largest = max(body.tokens, default=0)
        if largest >= runtime.n_vocab:
            raise RefusedError(400, f"tokens: unknown id {largest}; ids are 0 to {runtime.n_vocab - 1}", param="tokens")
        tokenizer = runtime.models["expert"].tokenizer
        text = b"".join(tokenizer.piece(token, special=True) for token in body.tokens).decode(errors="replace")
        return JSONResponse({"content": text, "prompt": text})

    def _model(self, name: str) -> dict[str, Any]:
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
        "n_ctx": runtime.n_ctx,
        "n_vocab": runtime.n_vocab,
        "chat": runtime.has_chat_template,
    }


def _rules() -> list[dict[str, Any]]:
    """Return the built-in rules with the range of their first dial; null where a range has no end."""
    rules = []
    for method in RULES.values():
        name, dial = next(iter(method.dials.items()), (None, None))
        rule: dict[str, Any] = {"name": method.name, "trade": method.trade, "example": method.example, "dial": None}
        if dial is not None:
            ends = {end: value if math.isfinite(value) else None for end, value in (("low", dial.low), ("high", dial.high))}
            rule["dial"] = {"name": name, "whole": dial.whole, "allowed": dial.allowed(), **ends}
        rules.append(rule)
    return rules


def _alpha(rule: Method) -> float | None:
    """The first dial, None for a rule without one."""
    inner = rule.rule if isinstance(rule, RegionalRule) else rule
    dial = next(iter(inner.dials), None)
    value = None if dial is None else getattr(inner, dial, None)
    return float(value) if isinstance(value, (int, float)) else None


def _ids(body: TokenizeRequest, runtime: Runtime) -> list[int]:
    if body.messages is not None:
        require_room(sum(message.characters for message in body.messages), runtime)
        return runtime.chat_ids(messages_of(body.messages))
    text = body.content if body.content is not None else body.prompt or ""
    require_room(len(text), runtime)
    return runtime.models["expert"].tokenizer.tokenize(text, add_special=body.add_special, parse_special=True)


# ---------------------------------------------------------------------- OpenAPI


class Endpoint(NamedTuple):
    """One route as the description shows it; ``body`` is the model of its request."""

    method: str
    summary: str
    body: type[BaseModel] | None = None
    streams: bool = False


#: All routes by path; server/app.py serves exactly these.
ENDPOINTS = {
    "/v1/models": Endpoint("GET", "The loaded pairs."),
    "/v1/models/{model}": Endpoint("GET", "One of them."),
    "/api/pairs": Endpoint("GET", "The pairs with their rules and files."),
    "/metrics": Endpoint("GET", "Counters for Prometheus."),
    "/health": Endpoint("GET", "Whether the server is alive."),
    "/v1/health": Endpoint("GET", "The same."),
    "/openapi.json": Endpoint("GET", "This description."),
    "/v1/chat/completions": Endpoint("POST", "Answer a conversation.", ChatRequest, streams=True),
    "/v1/completions": Endpoint("POST", "Continue a text.", CompletionRequest, streams=True),
    "/tokenize": Endpoint("POST", "The token ids of a text.", TokenizeRequest),
    "/detokenize": Endpoint("POST", "The text of token ids.", DetokenizeRequest),
    "/v1/embeddings": Endpoint("POST", "Refused: language models make no embeddings."),
}
_ERRORS = {
    400: "Something in the request is wrong; see the message.",
    401: "An API key is needed.",
    403: "The Host or Origin is not this server's.",
    404: "Unknown model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not application/json, or is compressed.",
    429: "The queue is full; see Retry-After.",
    503: "The server is closing, has too many connections, or llama.cpp failed.",
    504: "The reply took too long.",
}
_TEXT, _TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
_ERROR = {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL}


@lru_cache(maxsize=1)
def description() -> dict[str, Any]:
    """Return the OpenAPI document."""
    models: list[Any] = [(endpoint.body, "validation") for endpoint in ENDPOINTS.values() if endpoint.body]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    for route, model in zip(ROUTES, (ChatRequest, CompletionRequest)):
        _add_mapped(schemas["$defs"][model.__name__]["properties"], route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "speccascade-local", "version": __version__, "description": "Two local models answer as one."},
        "security": [{}, {"key": []}],
        "paths": {path: {endpoint.method.lower(): _operation(path, endpoint)} for path, endpoint in ENDPOINTS.items()},
        "components": {
            "schemas": {**schemas["$defs"], "Error": _object({"error": _object(_ERROR)})},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _add_mapped(properties: dict[str, Any], route: Route) -> None:
    """Add other servers' names of fields, each with the schema of ours unless its form differs."""
    for field in FIELDS:
        if field.ours == "mapped" and route in field.routes:
            schema = {} if field.name in FORMS else properties[field.to]
            properties[field.name] = {**schema, "description": field.meaning}


def _operation(path: str, endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {}} if path == "/metrics" else _json({"type": "object"})
    if endpoint.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses = {} if path == "/v1/embeddings" else {"200": {"description": "Success.", "content": content}}
    error = _json({"$ref": "#/components/schemas/Error"})
    responses |= {str(status): {"description": text, "content": error} for status, text in _ERRORS.items()}
    operation: dict[str, Any] = {"summary": endpoint.summary, "responses": responses}
    if endpoint.method == "POST":
        schema = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"} if endpoint.body else {"type": "object"}
        operation["requestBody"] = {"required": True, "content": _json(schema)}
    if "{model}" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    return operation


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
