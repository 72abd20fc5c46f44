"""Turn an OpenAPI document into Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sections import cell

from speccascade_local.bench.export import markdown_table


def http(document: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    """Return the routes of an OpenAPI document: the fields of their requests, their answers, and once the errors that several share.

    Args:
        document: the OpenAPI document.
        meanings: by its name, what a field means that has no description of its own.
    """
    methods = ("post", "get", "put", "patch", "delete")
    routes = [(method, path, verbs[method]) for method in methods for path, verbs in document["paths"].items() if method in verbs]
    answers = [
        {code: _resolved(each, document).get("description", "") for code, each in route["responses"].items()} for _, _, route in routes
    ]
    pairs = [pair for own in answers for pair in own.items()]
    shared = {code: what for code, what in pairs if pairs.count((code, what)) > 1}
    lines: list[str] = []
    for (method, path, route), own in zip(routes, answers, strict=True):
        lines += [f"## {method.upper()} {path}", "", *_paragraphs(route.get("summary"), route.get("description"))]
        lines += _fields_table("path and query", _parameters(route, meanings))
        for content in route.get("requestBody", {}).get("content", {}).values():
            lines += _fields_table("body", _properties(content.get("schema", {}), document, meanings))
        lines += _answers({code: what for code, what in own.items() if code not in shared})
    errors = {code: what for code, what in shared.items() if code >= "400"}
    return "\n".join([*lines, *(["## Errors", "", "Of all routes.", "", *_answers(errors)] if errors else [])])


def _answers(given: Mapping[str, str]) -> list[str]:
    return [markdown_table([["status", "when"], *([code, cell(given[code])] for code in sorted(given))]).strip(), ""] if given else []


def _paragraphs(*texts: str | None) -> list[str]:
    return [line for text in texts if text for line in (text.strip(), "")]


def _fields_table(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    return [markdown_table([[title, "type", "default", "what it is"], *rows]).strip(), ""] if rows else []


def _parameters(route: Mapping[str, Any], meanings: Mapping[str, str]) -> list[list[str]]:
    rows = []
    for each in route.get("parameters", ()):
        schema = each.get("schema", {})
        name = each["name"]
        rows.append(
            [f"`{name}`", _schema_type(schema, {}), _schema_default(schema), cell(each.get("description") or meanings.get(name, ""))]
        )
    return rows


def _properties(schema: Mapping[str, Any], document: Mapping[str, Any], meanings: Mapping[str, str], prefix: str = "") -> list[list[str]]:
    """Return a line for each field of an object, with dotted names for the fields of objects within it."""
    rows = []
    for name, each in _resolved(schema, document).get("properties", {}).items():
        each = _resolved(each, document)
        default = "required" if name in _resolved(schema, document).get("required", ()) else _schema_default(each)
        meaning = each.get("description") or meanings.get(prefix + name, "")
        rows.append([f"`{prefix}{name}`", _schema_type(each, document), default, cell(meaning)])
        within = [kind for kind in (each, *(_resolved(kind, document) for kind in each.get("anyOf", ()))) if kind.get("properties")]
        if len(within) == 1 and prefix.count(".") < 2:
            rows += _properties(within[0], document, meanings, f"{prefix}{name}.")
    return rows


def _schema_type(schema: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Return the type in words, without null."""
    schema = _resolved(schema, document)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        kinds = dict.fromkeys(_schema_type(each, document) for each in several)
        return " or ".join(kind for kind in kinds if kind != "null" or len(kinds) == 1)
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(each for each in kind if each != "null")
    if kind == "array" and schema.get("items"):
        return f"array of {_schema_type(schema['items'], document)}"
    return ", ".join([kind, *_bounds(schema)])


def _bounds(schema: Mapping[str, Any]) -> list[str]:
    """Return the bounds, without those of 32-bit numbers."""
    words = (
        ("minimum", "{:g} or more"),
        ("exclusiveMinimum", "above {:g}"),
        ("maximum", "{:g} or less"),
        ("exclusiveMaximum", "below {:g}"),
    )
    bounds = {key: text.format(schema[key]) for key, text in words if key in schema and abs(schema[key]) < 2**31 - 1}
    if {"minimum", "maximum"} <= bounds.keys():
        return [f"{schema['minimum']:g} to {schema['maximum']:g}"]
    return list(bounds.values())


def _schema_default(schema: Mapping[str, Any]) -> str:
    return f"`{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that a reference names."""
    while "$ref" in schema and document:
        target: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        schema = target
    return schema
