"""JSON schemas in llguidance's form, cleaned of what is only a note and bounded in what is costly. Knows nothing of tokens and masks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from ..common.errors import SettingError
from .lark import HEADER, MOST_STEPS, depth_of

#: Between the parts of a JSON text: as much as indented JSON needs, but not without end, or a model may write nothing but blanks.
JSON_BLANKS = {"whitespace_pattern": r" |\n[ \t]{0,20}"}
#: The formats that llguidance holds a text to. JSON Schema calls others annotations: they change nothing.
FORMATS = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
#: The most that multipleOf may be, a decimal point left out: an automaton has as many states.
LARGEST_MULTIPLE = 100_000
#: How many schemas may stand within one.
MOST_SCHEMAS = 20_000
_ONE = ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then", "unevaluatedItems")
_SEVERAL = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


def from_json_schema(schema: str | Mapping[str, Any] | bool) -> str:
    """A JSON schema, as text or as an object -> llguidance's own form. Raises SettingError for what is no JSON or exceeds a limit.

    llguidance's own options, such as ``whitespace_flexible``, may stand in the schema under ``x-guidance``. Formats that it does not know
    are left out, as the annotations that they are.
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
    """Remembered, because the same settings are checked and used several times."""
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
    """Take notes out of all schemas within it, in place. Raises SettingError for what costs too much."""
    graph: dict[str, list[str]] = {}
    waiting: list[tuple[str, dict[str, Any]]] = [("#", root)]
    while waiting:
        place, schema = waiting.pop()
        if place in graph:
            continue
        graph[place] = []
        if len(graph) > MOST_SCHEMAS:
            raise SettingError(f"the JSON schema holds more than {MOST_SCHEMAS} schemas, which is what is read; make it smaller")
        if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
            del schema["format"]
        if schema.get("uniqueItems") is False:  # which asks for nothing
            del schema["uniqueItems"]
        _check_multiple(schema.get("multipleOf"))
        for name, part in _within(schema, place, root):
            graph[place].append(name)
            waiting.append((name, part))
    steps = depth_of(graph, "#")
    if steps > MOST_STEPS:
        raise SettingError(f"the JSON schema is {steps} schemas deep, references included; at most {MOST_STEPS} are read, make it flatter")


def _within(schema: Mapping[str, Any], place: str, root: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas right within a schema and the one that it refers to, each with the JSON pointer to it."""
    for keyword in _ONE:
        yield from _as_schema(f"{place}/{keyword}", schema.get(keyword))
    for keyword in _SEVERAL:
        parts = schema.get(keyword)
        for at, part in enumerate(parts if isinstance(parts, list) else ()):
            yield from _as_schema(f"{place}/{keyword}/{at}", part)
    for keyword in _NAMED:
        parts = schema.get(keyword)
        for name, part in parts.items() if isinstance(parts, dict) else ():
            yield from _as_schema(f"{place}/{keyword}/{name.replace('~', '~0').replace('/', '~1')}", part)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        yield from _as_schema(reference, _target(reference, root))


def _as_schema(place: str, part: object) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(part, dict):
        yield place, part


def _target(reference: str, root: Mapping[str, Any]) -> object:
    """What a JSON pointer (RFC 6901) names within the schema; None for nothing."""
    found: object = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isascii() and name.isdecimal() and int(name[:9]) < len(found):
            found = found[int(name[:9])]
        elif isinstance(found, dict):
            found = found.get(name)
        else:
            return None
    return found


def _check_multiple(value: object) -> None:
    """Raises SettingError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    zeros = max(int(exponent), 0)
    if len(digits) + zeros > len(str(LARGEST_MULTIPLE)) or int("".join(map(str, digits))) * 10**zeros > LARGEST_MULTIPLE:
        raise SettingError(
            f"multipleOf is {value!r:.40}; written without a point it may be {LARGEST_MULTIPLE} at most, because more takes too long"
        )
