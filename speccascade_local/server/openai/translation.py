"""Requests in this server's own names: other servers' fields are mapped, and fields that cannot be honored are refused by name.

The table is server/openai/fields.py. Only names and forms are translated here; server/openai/requests.py checks the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pydantic_core

from ...common.validation import short_repr
from ..errors import RefusedError
from .fields import RequestField, Route, field_of

#: Fields that constrain the reply's text; only one can apply.
CONSTRAINTS = ("grammar", "json_schema", "response_format")
#: Maximum number of texts to choose a reply from, and of their characters in all.
MAX_ALTERNATIVES, MAX_ALTERNATIVE_CHARACTERS = 1024, 50_000


class Translation(NamedTuple):
    """``fields`` by the names of server/openai/requests.py, and for each of them the name that the client wrote."""

    fields: dict[str, Any]
    names: dict[str, str]

    def refusal(self, refusal: RefusedError) -> RefusedError:
        """Return a refusal with the name that the client wrote."""
        head, point, rest = (refusal.param or "").partition(".")
        name = self.names.get(head, head)
        if name == head:
            return refusal
        message = str(refusal).replace(head, name, 1)
        return RefusedError(refusal.status, message, kind=refusal.kind, param=name + point + rest, code=refusal.code)


def translate(body: Mapping[str, Any], route: Route) -> Translation:
    """Return the fields of a body that count, each once. Raises RefusedError for unsupported and for contradicting fields."""
    translation = Translation({}, {})
    unsupported: list[tuple[RequestField, Any]] = []
    for name, value in body.items():
        row = field_of(route, name)
        if value is None or row is None or row.ours == "ignored" or any(_same(value, each) for each in row.neutral):
            continue
        if row.ours == "refused":
            unsupported.append((row, value))
            continue
        to, value = FORMS[name](name, value) if name in FORMS else (row.to or name, value)
        _add(translation, to, value, name)
    for row, value in unsupported:
        if not row.beside or any(each in translation.fields for each in row.beside):
            raise _refusal(row, value)
    return translation


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _add(translation: Translation, to: str, value: Any, name: str) -> None:
    fields, names = translation
    rivals = [each for each in CONSTRAINTS if each in fields and each != to] if to in CONSTRAINTS and not _is_text(to, value) else []
    if to in fields and fields[to] != value:
        rivals.append(to)
    if rivals:
        raise _wrong(name, f"{names[rivals[0]]} and {name} contradict each other; give one of them")
    if not _is_text(to, value):
        fields[to], names[to] = value, name


def _is_text(to: str, value: Any) -> bool:
    """Return whether this is the response_format that constrains nothing."""
    return to == "response_format" and isinstance(value, dict) and value == {"type": "text"}


def _wrong(param: str, message: str) -> RefusedError:
    return RefusedError(400, message, param=param, code="invalid_value")


def _refusal(row: RequestField, value: Any) -> RefusedError:
    neutral = f" or give {', '.join(pydantic_core.to_json(each).decode() for each in row.neutral)}" if row.neutral else ""
    besides = f" beside {', '.join(row.beside)}" if row.beside else ""
    message = f"{row.name}: this server does not support it ({row.meaning}){besides}; {row.instead}{neutral}; it is {_short(value)}"
    return RefusedError(400, message, param=row.name, code="unsupported_value")


def _short(value: Any) -> str:
    return short_repr(value, 60)


# ---------------------------------------------------------------------- forms


def _prompt(name: str, value: Any) -> tuple[str, Any]:
    """Take the only prompt out of a list."""
    if isinstance(value, list) and value and isinstance(value[0], (str, list)):
        if len(value) > 1:
            raise _wrong(name, f"{name}: a request has one prompt; it is a list of {len(value)}")
        return name, value[0]
    return name, value


def _schema(name: str, value: Any) -> tuple[str, Any]:
    """Take a JSON schema, or its JSON text."""
    if isinstance(value, str):
        try:
            value = pydantic_core.from_json(value, allow_inf_nan=False)
        except ValueError as error:
            raise _wrong(name, f"{name}: not valid JSON: {error}") from None
    return "json_schema", value


def _format(name: str, value: Any) -> tuple[str, Any]:
    """Take Ollama's ``json``, or a schema."""
    if isinstance(value, str) and value != "json":
        raise _wrong(name, f'{name}: must be "json" or a JSON schema; it is {_short(value)}')
    return "json_schema", {"type": "object"} if value == "json" else value


def _choice(name: str, value: Any) -> tuple[str, Any]:
    """Make a grammar whose alternatives are the texts."""
    if not (isinstance(value, list) and value and all(isinstance(each, str) for each in value[: MAX_ALTERNATIVES + 1])):
        raise _wrong(name, f"{name}: must be a list of texts; it is {_short(value)}")
    if len(value) > MAX_ALTERNATIVES or sum(map(len, value)) > MAX_ALTERNATIVE_CHARACTERS:
        limits = f"{MAX_ALTERNATIVES} texts of {MAX_ALTERNATIVE_CHARACTERS:,} characters in all"
        raise _wrong(name, f"{name}: at most {limits} are allowed; it is {_short(value)}")
    return "grammar", "root ::= " + " | ".join(map(_literal, value))


def _literal(text: str) -> str:
    """Return a text as a GBNF literal."""
    return '"' + "".join(each if each.isalnum() or each == " " else f"\\U{ord(each):08X}" for each in text) + '"'


def _structured_output(name: str, value: Any) -> tuple[str, Any]:
    """Take the only constraint in vLLM's object."""
    if not isinstance(value, dict):
        raise _wrong(name, f"{name}: must be an object; it is {_short(value)}")
    ways = {key: each for key, each in value.items() if each is not None and each is not False}
    if len(ways) != 1:
        raise _wrong(name, f"{name}: has {len(ways)} constraints; give one of {', '.join(_WAYS)}")
    ((key, way),) = ways.items()
    if key not in _WAYS:
        raise _wrong(f"{name}.{key:.60}", f"{name}.{key:.60}: is not supported; give one of {', '.join(_WAYS)}")
    return _WAYS[key](f"{name}.{key}", way)


_WAYS: dict[str, Callable[[str, Any], tuple[str, Any]]] = {
    "json": _schema,
    "json_object": lambda name, value: ("json_schema", {"type": "object"}),
    "choice": _choice,
    "grammar": lambda name, value: ("grammar", value),
}
#: Fields whose value has another form, by name. Each function returns our field and its value.
FORMS: dict[str, Callable[[str, Any], tuple[str, Any]]] = {
    "prompt": _prompt,
    "json_schema": _schema,
    "guided_json": _schema,
    "guided_choice": _choice,
    "structured_outputs": _structured_output,
    "format": _format,
}
