"""Reads a YAML file as a checked value; errors name the file, line and key. ``problem`` does so for any other pydantic error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .errors import CatalogError
from .files import read_text
from .validation import short_repr

Shape = TypeVar("Shape", bound=BaseModel)
#: Maps the keys that lead to a value to its line, from 1.
LineOf = Callable[[tuple[int | str, ...]], int]

#: Far above what people write by hand: bytes of a file, its keys and values with every alias expanded, its depth, characters of one text.
MOST_BYTES, MOST_NODES, MOST_LEVELS, LONGEST_TEXT = 1 << 20, 20_000, 32, 16_384


def read_yaml(path: Path, shape: type[Shape]) -> Shape:
    """Return the content of a file as a ``shape``. Raises CatalogError with file, line and key."""
    return read_yaml_with_lines(path, shape)[0]


def read_yaml_with_lines(path: Path, shape: type[Shape]) -> tuple[Shape, LineOf]:
    """Return what :func:`read_yaml` returns, and a function that returns the line of a key."""
    text = read_text(path, most=MOST_BYTES)
    try:
        loader = _Bounded(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node is not None else None
    except _Refused as error:
        raise CatalogError(f"{path}, line {error.line}: {error}") from None
    except Exception as error:  # besides YAMLError, PyYAML raises others for invalid dates and tags
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise CatalogError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error!s:.200}") from error
    try:
        return shape.model_validate(data), lambda keys: _line(node, keys)
    except ValidationError as error:
        raise CatalogError(f"{path}, line {_line(node, error.errors()[0]['loc'])}: {problem(error)}") from error


class _Refused(Exception):  # noqa: N818  # becomes a CatalogError, which knows the file
    """Valid YAML that is too large or ambiguous."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


class _Bounded(yaml.SafeLoader):
    """Refuses a file while it reads: too many values with each alias expanded, too deep, or too long a text.

    It also refuses a mapping that contains itself, and two equal keys: YAML would silently take the last.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = self._depth = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line, before = event.start_mark.line + 1, self._count
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise _Refused(line, "this contains itself, by an alias inside its own anchor; write it out")
            self._count += self._sizes.get(str(event.anchor), 0)
        self._count += 1
        if self._count > MOST_NODES:
            raise _Refused(line, f"more than {MOST_NODES} values with aliases expanded; divide it into several files")
        if len(getattr(event, "value", None) or "") > LONGEST_TEXT:
            raise _Refused(line, f"a text of {len(event.value)} characters; allowed are {LONGEST_TEXT} at most")
        self._depth += 1
        if self._depth > MOST_LEVELS:
            raise _Refused(line, f"more than {MOST_LEVELS} nested levels; a pair needs five")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[event.anchor] = self._count - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str):
                if key.value in keys:
                    raise _Refused(key.start_mark.line + 1, f"the key {short_repr(key.value)} is used twice; keep one")
                keys.add(key.value)
        return node


def _line(node: yaml.Node | None, keys: tuple[int | str, ...]) -> int:
    """Return the line, from 1, of the last of these keys that exists."""
    line = node.start_mark.line if node else 0
    for key in keys:
        if isinstance(key, int) and not isinstance(node, yaml.MappingNode):  # a list of one may be written as that one
            if isinstance(node, yaml.SequenceNode):
                node = node.value[key]
                line = node.start_mark.line
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        for name, value in reversed(node.value):  # merged keys come before its own
            if name.value == str(key):
                line, node = name.start_mark.line, value
                break
        else:
            break
    return line + 1


def problem(error: ValidationError, whole: str = "the whole file") -> str:
    """Return the first error: where (``whole`` if it concerns no single key), what, and the value."""
    first = error.errors()[0]
    known = {
        "extra_forbidden": "this key is not known",
        "missing": "this key is missing",
        "model_type": "this must be a mapping of keys and values",
        "dict_type": "this must be a mapping of keys and values",
    }
    message = known.get(first["type"], first["msg"]).removeprefix("Value error, ")
    value = "" if first["type"] in ("missing", "json_invalid") else f"; seen: {short_repr(first['input'])}"
    return f"{'.'.join(map(str, first['loc'])) or whole}: {message[0].lower()}{message[1:]}{value}"
