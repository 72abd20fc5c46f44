"""A YAML file -> a checked value; what is wrong is told with file, line and key. Knows nothing of what the files are for.

``problem`` says it of any other checked value too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .checks import text_of
from .errors import CatalogError

Shape = TypeVar("Shape", bound=BaseModel)


def read_yaml(path: Path, shape: type[Shape]) -> Shape:
    """What stands in the file, as a ``shape``. Raises CatalogError with file, key path and line."""
    try:
        text = text_of(path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _refuse_repeated_keys(path, node)
        data = yaml.safe_load(text)
    except CatalogError:
        raise
    except Exception as error:  # besides YAMLError, whatever PyYAML trips over: dates that are none, tags that do not fit, depth
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise CatalogError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        raise CatalogError(f"{path}, line {_line(node, error.errors()[0]['loc'])}: {problem(error)}") from error


def _refuse_repeated_keys(path: Path, root: yaml.Node) -> None:
    """YAML would silently let the last of two equal keys win, and lets a mapping hold itself."""
    done: set[int] = set()

    def visit(node: yaml.Node, inside: tuple[yaml.Node, ...]) -> None:
        if node in inside:
            raise CatalogError(
                f"{path}, line {node.start_mark.line + 1}: this holds itself, by an alias within its own anchor; write it out"
            )
        if id(node) in done:  # an alias of something that was looked at
            return
        keys: set[str] = set()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in keys:
                raise CatalogError(
                    f"{path}, line {key.start_mark.line + 1}: the key {key.value!r} stands here for the second time; leave one"
                )
            if isinstance(key.value, str):
                keys.add(key.value)
            visit(value, (*inside, node))
        for value in node.value if isinstance(node, yaml.SequenceNode) else ():
            visit(value, (*inside, node))
        done.add(id(node))

    visit(root, ())


def _line(node: yaml.Node | None, keys: tuple[int | str, ...]) -> int:
    """The line (from 1) of the innermost key on the way that exists."""
    line = node.start_mark.line if node else 0
    for key in keys:
        if isinstance(key, int) and not isinstance(node, yaml.MappingNode):  # a list may be written as its only element
            if isinstance(node, yaml.SequenceNode):
                node = node.value[key]
                line = node.start_mark.line
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        for name, value in node.value:
            if name.value == str(key):
                line, node = name.start_mark.line, value
                break
        else:
            break
    return line + 1


def problem(error: ValidationError, whole: str = "the whole file") -> str:
    """The first thing that is wrong: where (``whole``, if it is no single key), what, and what was seen there."""
    first = error.errors()[0]
    known = {
        "extra_forbidden": "this key is not known",
        "missing": "this key is missing",
        "model_type": "this must be a mapping of keys and values",
        "dict_type": "this must be a mapping of keys and values",
    }
    message = known.get(first["type"], first["msg"]).removeprefix("Value error, ")
    seen = "" if first["type"] in ("missing", "json_invalid") else f"; seen: {first['input']!r:.100}"
    return f"{'.'.join(map(str, first['loc'])) or whole}: {message[0].lower()}{message[1:]}{seen}"
