"""Changes a pair's rule in a models.yaml, and nothing else there: comments, order and spelling stay.

Knows nothing of what rules mean.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..common.errors import CatalogError
from ..common.files import read_text, replace_file
from ..common.yaml_files import read_yaml
from .catalog_schema import CatalogFile


def set_rule(path: Path, pair: str, rule: str, *, comment: str = "") -> None:
    """Write ``rule`` under the pair, with a comment behind it. Raises CatalogError, and the file is as it was."""
    read_yaml(path, CatalogFile)  # a file that is wrong already is told of as usual
    text = read_text(path)
    entry = _entry(path, text, pair)
    value = json.dumps(rule) + (f"  # {comment}" if comment else "")
    changed = _replace(text, entry, value) if _value(entry, "rule") is not None else _append(text, entry, value)
    _check(path, text, changed, pair, rule)
    _write(path, changed)


def add_pair(path: Path, pair: str, entry: Mapping[str, Any], *, comment: str = "") -> None:
    """Append a pair to a file that need not exist yet. Raises CatalogError."""
    lines = [f"  {pair}:", *(f"    {name}: {json.dumps(value)}" for name, value in entry.items())]
    if comment:
        lines[-1] += f"  # {comment}"
    text = read_text(path) if path.exists() else "pairs:\n"
    if path.exists():
        known = read_yaml(path, CatalogFile).pairs
        if pair in known:
            raise CatalogError(f"{path}: has a pair {pair!r} already; change its rule there")
    _write(path, text.rstrip("\n") + "\n" + "\n".join(lines) + "\n")
    read_yaml(path, CatalogFile)


def entry_of(path: Path, pair: str) -> dict[str, Any]:
    """What stands under a pair, as it is written. Raises CatalogError."""
    read_yaml(path, CatalogFile)
    return dict(yaml.safe_load(read_text(path))["pairs"][pair])


def _entry(path: Path, text: str, pair: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = _value(root, "pairs") if isinstance(root, yaml.MappingNode) else None
    entry = _value(pairs, pair) if isinstance(pairs, yaml.MappingNode) else None
    if not isinstance(entry, yaml.MappingNode):
        raise CatalogError(f"{path}: has no pair {pair!r} to write a rule for")
    return entry


def _value(node: Any, name: str) -> Any:
    return next((value for key, value in node.value if key.value == name), None)


def _replace(text: str, entry: yaml.MappingNode, value: str) -> str:
    """The old value, and a comment that stands behind it, make room."""
    old = _value(entry, "rule")
    start: int = old.start_mark.index
    end: int = old.end_mark.index
    if entry.flow_style:
        return text[:start] + value.split("  #")[0] + text[end:]
    line_end = text.find("\n", end)
    return text[:start] + value + text[line_end if line_end >= 0 else len(text) :]


def _append(text: str, entry: yaml.MappingNode, value: str) -> str:
    """Behind the last key of the entry."""
    key, last = entry.value[-1]
    if entry.flow_style:
        return text[: last.end_mark.index] + f", rule: {value.split('  #')[0]}" + text[last.end_mark.index :]
    last = _innermost_last(last)
    line_end = text.find("\n", last.end_mark.index if last.end_mark.column else last.end_mark.index - 1)
    at: int = line_end if line_end >= 0 else len(text)
    indented = " " * key.start_mark.column
    return f"{text[:at]}\n{indented}rule: {value}{text[at:]}"


def _innermost_last(node: yaml.Node) -> yaml.Node:
    """Where a value in block style ends: its own mark stands before whatever comes next."""
    while isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(node, yaml.MappingNode) else last
    return node


def _check(path: Path, before: str, after: str, pair: str, rule: str) -> None:
    """That nothing else has changed: this file is the user's."""
    expected = yaml.safe_load(before)
    expected["pairs"] = {name: dict(entry) for name, entry in expected["pairs"].items()}  # two may share one by an alias
    expected["pairs"][pair]["rule"] = rule
    try:
        found = yaml.safe_load(after)
    except yaml.YAMLError:
        found = None
    if found != expected:
        raise CatalogError(
            f"{path}: the rule of {pair!r} cannot be changed without touching more; write it yourself: rule: {json.dumps(rule)}"
        )


def _write(path: Path, text: str) -> None:
    try:
        if path.exists() and not os.access(path, os.W_OK):  # a new file in its place would not ask
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        replace_file(path, text)
    except OSError as error:
        raise CatalogError(f"{path}: cannot be written ({error.strerror}); choose another with --models") from error
