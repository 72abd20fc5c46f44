"""Changes a pair's rule in a models.yaml, or adds a pair. Comments, order and spelling of everything else stay."""

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
    """Write ``rule`` into the pair's entry, with a comment after it. Raises CatalogError and then leaves the file as it was."""
    read_yaml(path, CatalogFile)  # reports what is wrong already
    text = read_text(path)
    entry = _value(_value(yaml.compose(text, Loader=yaml.SafeLoader), "pairs"), pair)
    if entry is None:
        raise CatalogError(f"{path}: has no pair {pair!r} to write a rule for")
    changed = _splice(text, entry, json.dumps(rule), f"  # {comment}" if comment else "")
    _check(path, text, changed, pair, rule)
    _write(path, changed)


def add_pair(path: Path, pair: str, entry: Mapping[str, Any], *, comment: str = "") -> None:
    """Append a pair to a file, which need not exist yet. Raises CatalogError."""
    text = "pairs:"
    if path.exists():
        if pair in read_yaml(path, CatalogFile).pairs:
            raise CatalogError(f"{path}: has a pair {pair!r} already; change its rule there")
        text = read_text(path).rstrip("\n")
    lines = [text, f"  {pair}:", *(f"    {name}: {json.dumps(value)}" for name, value in entry.items())]
    _write(path, "\n".join(lines) + (f"  # {comment}" if comment else "") + "\n")
    read_yaml(path, CatalogFile)


def entry_of(path: Path, pair: str) -> dict[str, Any]:
    """Return the keys and values of a pair as the file has them. Raises CatalogError."""
    read_yaml(path, CatalogFile)
    return dict(yaml.safe_load(read_text(path))["pairs"][pair])


def _value(mapping: Any, name: str) -> Any:
    return next((value for key, value in mapping.value if key.value == name), None)


def _splice(text: str, entry: yaml.MappingNode, value: str, comment: str) -> str:
    """Return the text with another value for the entry's rule, or with a rule after its last key."""
    rule, last = _value(entry, "rule"), _last_leaf(entry)
    if entry.flow_style:  # {…} has no place for a comment
        if rule is None:
            return text[: last.end_mark.index] + f", rule: {value}" + text[last.end_mark.index :]
        return text[: rule.start_mark.index] + value + text[rule.end_mark.index :]
    if rule is None:
        start = end = _line_end(text, last.end_mark.index if last.end_mark.column else last.end_mark.index - 1)
        value = "\n" + " " * entry.value[0][0].start_mark.column + f"rule: {value}"
    else:  # the comment on the old value goes
        start, end = rule.start_mark.index, _line_end(text, rule.end_mark.index)
    return text[:start] + value + comment + text[end:]


def _last_leaf(node: yaml.Node) -> yaml.Node:
    """Return the last value inside a node. A block's own end mark is of no use: it is at whatever follows the block."""
    last = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    is_block = isinstance(last, yaml.MappingNode | yaml.SequenceNode) and not last.flow_style
    return _last_leaf(last) if is_block else last


def _line_end(text: str, index: int) -> int:
    return (text + "\n").index("\n", index)


def _check(path: Path, before: str, after: str, pair: str, rule: str) -> None:
    """Refuse a change of anything else, such as of a pair that shares its entry by an alias. Raises CatalogError."""
    expected = yaml.safe_load(before)
    expected["pairs"] = {name: dict(entry) for name, entry in expected["pairs"].items()}  # two may share one by an alias
    expected["pairs"][pair]["rule"] = rule
    try:
        changed = yaml.safe_load(after)
    except yaml.YAMLError:
        changed = None
    if changed != expected:
        raise CatalogError(
            f"{path}: the rule of {pair!r} cannot be changed without touching more; write it yourself: rule: {json.dumps(rule)}"
        )


def _write(path: Path, text: str) -> None:
    try:
        if path.exists() and not os.access(path, os.W_OK):  # replacing a read-only file would succeed
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        replace_file(path, text)
    except OSError as error:
        raise CatalogError(f"{path}: cannot be written ({error.strerror}); choose another with --models") from error
