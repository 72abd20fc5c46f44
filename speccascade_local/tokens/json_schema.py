"""Rewrites JSON schemas for llguidance: without annotations, and with limits on what is costly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from ..common.errors import SettingError
from .lark import HEADER, MOST_STEPS, depth_of

#: White space between the parts of a JSON text: enough for indented JSON, but bounded, or a model may write nothing but blanks.
JSON_BLANKS = {"whitespace_pattern": r" |\n[ \t]{0,20}"}
#: The formats that llguidance enforces. JSON Schema calls others annotations: they change nothing.
FORMATS = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
#: The largest multipleOf, without its decimal point: an automaton has that many states.
LARGEST_MULTIPLE = 100_000
#: The most schemas within one.
MOST_SCHEMAS = 20_000
#: Keywords whose value is a schema, a list of schemas, or a mapping from names to schemas.
_ONE = ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then", "unevaluatedItems")
_SEVERAL = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


def from_json_schema(schema: str | Mapping[str, Any] | bool) -> str:
    """Return a JSON schema, given as text or as an object, in llguidance's form.

    llguidance's own options, such as ``whitespace_flexible``, are read from ``x-guidance``. Formats that it does not know are annotations
    and left out. Raises SettingError where the schema is not valid JSON or exceeds a limit.
    """
    if not isinstance(schema, (str, Mapping, bool)):
        raise SettingError(f'the JSON schema is {schema!r:.40}; it must be an object, such as {{"type": "object"}}')
    try:
        text = schema if isinstance(schema, str) else json.dumps(dict(schema) if isinstance(schema, Mapping) else schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingError(f"the JSON schema cannot be used: {error}") from None
    return _spell(text)


@lru_cache(maxsize=4)
def _spell(text: str) -> str:
    """Return the schema; cached, because the same settings are checked and used several times."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"the JSON schema is not valid JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise SettingError(f'the JSON schema is {text:.40}; it must be an object, such as {{"type": "object"}}')
    if schema is not False:
        schema = {} if schema is True else schema
        _clean(schema)
        options = schema.get("x-guidance", {})
        if isinstance(options, Mapping) and not {"whitespace_pattern", "whitespace_flexible"} & options.keys():
            schema["x-guidance"] = {**JSON_BLANKS, **options}
    try:
        return f"{HEADER}start: %json {json.dumps(schema, allow_nan=False)}\n"
    except (ValueError, RecursionError) as error:
        raise SettingError(f"the JSON schema cannot be used: {error}") from None


def _clean(root: dict[str, Any]) -> None:
    """Remove annotations from all schemas within it, in place. Raises SettingError for what costs too much."""
    graph: dict[str, list[str]] = {}
    waiting: list[tuple[str, dict[str, Any]]] = [("#", root)]
    while waiting:
        place, schema = waiting.pop()
        if place in graph:
            continue
        parts = _subschemas(schema, place, root)
        graph[place] = [*parts]
        if len(graph) > MOST_SCHEMAS:
            raise SettingError(f"the JSON schema holds more than {MOST_SCHEMAS} schemas, which is the limit; make it smaller")
        if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
            del schema["format"]
        if schema.get("uniqueItems") is False:  # the default, which llguidance does not accept
            del schema["uniqueItems"]
        _check_multiple(schema.get("multipleOf"))
        waiting += parts.items()
    depth = depth_of(graph, "#")
    if depth > MOST_STEPS:
        raise SettingError(
            f"the JSON schema is {depth} schemas deep, references included; at most {MOST_STEPS} are allowed, make it flatter"
        )


def _subschemas(schema: Mapping[str, Any], place: str, root: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schemas directly within a schema and the one that it refers to, by the JSON pointers to them."""
    parts = {f"{place}/{keyword}": schema.get(keyword) for keyword in _ONE}
    for keyword in _SEVERAL:
        if isinstance(several := schema.get(keyword), list):
            parts |= {f"{place}/{keyword}/{index}": part for index, part in enumerate(several)}
    for keyword in _NAMED:
        if isinstance(named := schema.get(keyword), dict):
            parts |= {f"{place}/{keyword}/{name.replace('~', '~0').replace('/', '~1')}": part for name, part in named.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        parts[reference] = _resolve(reference, root)
    return {pointer: part for pointer, part in parts.items() if isinstance(part, dict)}


def _resolve(reference: str, root: Mapping[str, Any]) -> object:
    """Return what a JSON pointer (RFC 6901) names within the schema; None for nothing."""
    value: object = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and name.isascii() and name.isdecimal() and int(name[:9]) < len(value):
            value = value[int(name[:9])]
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            return None
    return value


def _check_multiple(value: object) -> None:
    """Raise SettingError for a ``multipleOf`` that costs too much."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    zeros = max(int(exponent), 0)
    if len(digits) + zeros > len(str(LARGEST_MULTIPLE)) or int("".join(map(str, digits))) * 10**zeros > LARGEST_MULTIPLE:
        raise SettingError(
            f"multipleOf is {value!r:.40}; without its decimal point it may be at most {LARGEST_MULTIPLE}, because more takes too long"
        )
