"""``speccascade models``: list the pairs of models.yaml, or show one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from ...models import catalog
from ...models.catalog import Pair
from ...models.source import NGRAM, FileSource
from ...rules import registry
from .. import options
from ..terminal import for_tables, stdout

#: Columns of a terminal.
_ROOM_FOR_DESCRIPTIONS = 110


def run(
    pair: Annotated[str | None, typer.Argument(metavar="[PAIR]", show_default="all", help="Show all facts of this pair.")] = None,
    models: options.Models = None,
) -> None:
    """List the pairs in models.yaml: size, license, rule, and whether their files are on this machine."""
    if pair is not None:
        _show_pair(catalog.find(pair, models))
        return
    pairs = catalog.known_pairs(models)
    if stdout.is_terminal:
        stdout.print(_short_table(pairs))
        stdout.print(f"{len(pairs)} pairs; details: speccascade models PAIR; to fetch one: speccascade pull PAIR", style="dim")
    else:
        _print(_full_table(pairs))


def _short_table(pairs: dict[str, Pair]) -> Table:
    """Return a line for each pair, under its family, for a terminal; descriptions only where there is room."""
    table = Table("pair", "here", box=None, pad_edge=False)
    table.add_column("size", justify="right", no_wrap=True)
    for name in ("rule", "license", *(["description"] if stdout.width >= _ROOM_FOR_DESCRIPTIONS else [])):
        table.add_column(name, overflow="fold")
    families: dict[str, list[Pair]] = {}
    for pair in pairs.values():
        families.setdefault(pair.family or "", []).append(pair)
    for family, members in families.items():
        if family:
            table.add_row(Text(family, "bold"))
        for pair in members:
            row = Text(pair.name), _here(pair), _size(pair), Text(_rule(pair)), Text(_licences(pair)), Text(pair.description)
            table.add_row(*row[: len(table.columns)])
    return table


def _full_table(pairs: dict[str, Pair]) -> Table:
    """Return a line with all facts for each pair, for a pipe."""
    roles = ["drafter", "expert"]
    table = Table("pair", "rule", *roles, "family", "size", "license", "listed in", "description", box=None, pad_edge=False)
    for name, pair in pairs.items():
        facts = pair.family or "", _size(pair), _licences(pair), str(pair.source), pair.description
        table.add_row(Text(name), Text(_rule(pair)), *(Text(_file(pair, role)) for role in roles), *(Text(fact) for fact in facts))
    return table


def _show_pair(pair: Pair) -> None:
    """Print one pair, a fact in each line."""
    facts = {
        "family": pair.family,
        "description": pair.description,
        "rule": _rule(pair),
        "context": pair.context,
        "rpc": ", ".join(pair.rpc),
        "seen in": pair.seen_in,
        "listed in": pair.source,
        "to allow": "; ".join(pair.demands.values()),
    }
    table = Table("", Column(overflow="fold"), box=None, show_header=False, pad_edge=False)
    for name, fact in facts.items():
        if fact:
            table.add_row(Text(name, "dim"), Text(str(fact)))
    for role, model in pair.models.items():
        size = decimal(model.size) if model.size else ""
        details = ", ".join(filter(None, [model.hub and f"hub {model.hub}", model.revision, size, model.licence]))
        table.add_row(Text(role, "dim"), Text(model.file))
        if details:
            table.add_row("", Text(details))
        for source in model.sources:
            table.add_row("", Text(_state(source)))
    _print(table)


def _state(source: FileSource) -> str:
    if source.trouble or not source.missing:
        return source.trouble or f"here: {source.path}"
    return f"{'to pull' if source.hub else 'missing'}: {', '.join(path.name for path in source.missing)}"


def _print(table: Table) -> None:
    """Print a table so wide in a pipe that no path is cut off."""
    for_tables(width=10_000).print(table)


def _here(pair: Pair) -> Text:
    problems = [source.trouble for model in pair.models.values() for source in model.sources if source.trouble]
    if problems or not pair.missing:
        return Text("unclear", "red") if problems else Text("yes", "green")
    can_pull = all(source.hub for model in pair.models.values() for source in model.sources if source.missing)
    return Text("to pull", "yellow") if can_pull else Text("missing", "red")


def _file(pair: Pair, role: str) -> str:
    model = pair.models.get(role)
    if model is None:
        return NGRAM if role == "drafter" else ""
    if not model.missing and not model.trouble:
        return model.path.name
    return f"to pull {model.hub} {model.file}" if model.hub else f"missing {model.path}"


def _size(pair: Pair) -> str:
    # Those on disk, else as the catalog says.
    sizes = [model.size if model.missing else sum(path.stat().st_size for path in model.parts) for model in pair.models.values()]
    return decimal(sum(filter(None, sizes))) if all(sizes) else "–"


def _rule(pair: Pair) -> str:
    """Return the pair's rule, and what it needs --allow-code for."""
    demands = {"code": "code", "rpc": "other machines"}
    needs = [word for name, word in demands.items() if name in pair.demands]
    return (pair.rule or f"{registry.DEFAULT} (default)") + (f" (needs {', '.join(needs)}: --allow-code)" if needs else "")


def _licences(pair: Pair) -> str:
    return ", ".join(dict.fromkeys(model.licence for model in pair.models.values() if model.licence))
