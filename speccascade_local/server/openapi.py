"""The routes for programs that read OpenAPI, made of the models that requests are checked with. Knows nothing of how they are answered."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic.json_schema import models_json_schema

from .. import __version__
from .fields import FIELDS, ROUTES, Route
from .protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .translating import FORMS

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
