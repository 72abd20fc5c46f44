"""``speccascade rules``: list every method, and what it trades."""

from __future__ import annotations

import json

from rich.table import Table
from rich.text import Text

from ...rules import registry
from .. import options
from ..terminal import stdout, write


def run(as_json: options.Json = False) -> None:
    """List every method: its syntax, what it does, its range, its lossless end, its behavior at temperature 0, and its source."""
    rows = [registry.describe(method) for method in registry.METHODS.values()]
    if as_json:
        write(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        stdout.print(Text(row.pop("method"), "bold"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2), pad_edge=True)
        for name, text in row.items():
            table.add_row(Text(name, "dim"), Text(text))
        stdout.print(table)
        stdout.print()
