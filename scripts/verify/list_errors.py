"""Print every message that the package raises on purpose, to be read as its user would: problem, value, what is allowed, what to do.

python scripts/verify/list_errors.py [MODULE ...]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import speccascade_local
from speccascade_local.common import errors

PACKAGE = Path(speccascade_local.__file__).parent
KINDS = {name for name in vars(errors) if name.endswith("Error")}


def messages(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of each message; what is filled in stands in braces."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
            yield node.lineno, node.func.id, spelled(node.args[0])


def spelled(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values)
    return f"{{{ast.unparse(node)}}}"


def main() -> None:
    chosen = set(sys.argv[1:])
    for path in sorted(PACKAGE.rglob("*.py")):
        if not chosen or path.stem in chosen:
            for line, kind, text in messages(path.read_text(encoding="utf-8")):
                print(f"{path.relative_to(PACKAGE)}:{line}: {kind}: {text}")


if __name__ == "__main__":
    main()
