"""Check that the evidence of a claim exists: tests, figures in result files, constants of the package, commands, citations.

Each check yields what is wrong.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from reference import options_of

from speccascade_local.cli.app import VERBS

ROOT = Path(__file__).parents[2]
FIGURE = re.compile(r"([+−-]?)([\d,]*\d)(?:\.(\d+))?(?: (kB|MB|GB|MiB|%|points))?(?![\w.]|,\d)")
#: Divisors of a value for each unit in the text.
UNITS = {None: 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "%": 0.01, "points": 0.01}


def wrong_test(name: str, root: Path = ROOT) -> Iterator[str]:
    """Check a test: ``tests/test_x.py::test_y``, with or without parameters in brackets."""
    path, _, function = name.partition("::")
    if not (root / path).is_file():
        yield f"no file {path}"
    elif function.partition("[")[0] not in _functions(root / path):
        yield f"{path} has no test {function.partition('[')[0]!r}"


def wrong_result(path: str, figures: Sequence[str] | Mapping[str, str], words: str, root: Path = ROOT) -> Iterator[str]:
    """Check a result file.

    A place in a JSON file is keys with slashes between; in a list an index, or ``key=value&...`` for the first element that has these. A
    value is the figure if it rounds to it, a share times 100 before `` %`` or `` points``. A figure without a sign gives the size alone.

    Args:
        path: the file.
        figures: texts that the file has, apart from white space; for a JSON file the figures of the claim by their place in the file.
        words: the sentence with the claim.
        root: the repository.
    """
    if not (root / path).is_file():
        yield f"no file {path}"
    elif isinstance(figures, Mapping):
        data = json.loads((root / path).read_text(encoding="utf-8"))
        for place, figure in figures.items():
            yield from _wrong_figure(f"{path}, {place}", _value(data, place), figure, words)
    else:
        text = " ".join((root / path).read_text(encoding="utf-8").split())
        yield from (f"{path} does not say {figure!r}" for figure in figures if " ".join(figure.split()) not in text)


def wrong_value(name: str, figure: str, words: str) -> Iterator[str]:
    """Check a number of the package: ``speccascade_local.module.NAME``, with an index in brackets where it is one of several."""
    module, _, attribute = name.partition("[")[0].rpartition(".")
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        yield f"no {name}"
        return
    index = re.search(r"\[(-?\d+)\]", name)
    yield from _wrong_figure(name, value[int(index[1])] if index else value, figure, words)


def wrong_command(command: str, root: Path = ROOT) -> Iterator[str]:
    """Check a command: ``python scripts/x.py --option`` or ``speccascade verb --option``."""
    program, what, *rest = [*shlex.split(command), "", ""]
    known = _options_of_script(root / what) if program == "python" else _options_of_verb(what) if program == "speccascade" else None
    if known is None:
        yield f"no command '{program} {what}'"
    else:
        options = [word.partition("=")[0] for word in rest if word.startswith("--")]
        yield from (f"{command!r}: no option {option}" for option in options if option not in known)


def wrong_source(address: str, words: str, links: Sequence[str]) -> Iterator[str]:
    """Check a citation: a link of the sentence, or the beginning of one, or the number of a paper."""
    if not any(link.startswith(address) for link in links) and address not in words:
        yield f"the sentence does not cite {address}"


@cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def _options_of_script(path: Path) -> list[str] | None:
    """Return the options that a script names; None where there is no such script."""
    return re.findall(r"[\"'](--[a-z][a-z0-9-]*)[\"']", path.read_text(encoding="utf-8")) if path.is_file() else None


def _options_of_verb(verb: str) -> list[str] | None:
    """Return the options of a verb; None where there is no such verb."""
    return re.findall(r"--[a-z][a-z0-9-]*", " ".join(option.names for option in options_of(verb))) if verb in VERBS else None


def _value(data: Any, place: str) -> Any:
    for key in place.split("/"):
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and key.isdigit():
            data = data[int(key)] if int(key) < len(data) else None
        elif isinstance(data, list):
            wanted = [each.partition("=")[::2] for each in key.split("&")]
            data = next((each for each in data if all(str(each.get(name)) == value for name, value in wanted)), None)
    return data


def _wrong_figure(place: str, value: Any, figure: str, words: str) -> Iterator[str]:
    match = FIGURE.search(figure)
    if figure not in words:
        yield f"the claim does not say {figure!r}"
    elif not match:
        yield f"{figure!r} is no figure"
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        yield f"no number at {place}"
    else:
        sign, whole, decimals, unit = match.groups()
        claimed = float(f"{whole.replace(',', '')}.{decimals or 0}") * (-1 if sign in ("−", "-") else 1)
        actual = (value if sign else abs(value)) / UNITS[unit]
        if abs(actual - claimed) > 0.5 * 10 ** -len(decimals or "") + 1e-9:
            yield f"{place} is {actual:.6g}, which is not {figure}"
