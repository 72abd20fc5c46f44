"""The verbs that list what there is: pairs and methods."""

from __future__ import annotations

import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .. import catalog, methods
from . import options
from .terminal import stdout


def models_verb(models: options.Models = None) -> None:
    """List the pairs in models.yaml, and whether their files are there."""
    pairs = catalog.known_pairs(models)
    small = ["small"] if any(pair.small for pair in pairs.values()) else []
    table = Table("pair", "rule", *small, "drafter", "expert", "named in", "description", box=None, pad_edge=False)
    for name, pair in pairs.items():
        paths = [*([pair.small] if small else []), pair.drafter, pair.expert]
        files = [
            "" if path is None else f"[red]missing[/] {escape(str(path))}" if path in pair.missing else escape(path.name) for path in paths
        ]
        table.add_row(escape(name), pair.rule or f"{methods.DEFAULT} (default)", *files, escape(str(pair.source)), escape(pair.description))
    (stdout if stdout.is_terminal else Console(width=10_000)).print(table)  # a pipe has no width, and no path is cut short for it


def rules_verb(as_json: options.Json = False) -> None:
    """List every method: how it is written, what it does, its range, its lossless end, temperature 0, its source."""
    rows = [methods.described(method) for method in methods.METHODS.values()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        stdout.print(Text(row.pop("method"), "bold"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2), pad_edge=True)
        for name, told in row.items():
            table.add_row(Text(name, "dim"), Text(told))
        stdout.print(table)
        stdout.print()
