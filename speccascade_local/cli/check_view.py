"""How the verdict on a pair looks in a terminal, and the ranking of drafters for an expert.

Knows nothing of how either was found.
"""

from __future__ import annotations

from pathlib import Path

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ..machine.check import PairReport
from ..machine.dry_run import ModelPlan
from ..machine.findings import Grade
from ..machine.plan import ACCEPTANCE_RATES
from ..machine.suggest import Suggestions
from ..models.local import Found
from .terminal import for_tables, stderr, stdout

#: Each grade's word and colour, in the order of telling.
LOOKS: dict[Grade, tuple[str, str]] = {
    "no": ("no", "bold red"),
    "warning": ("but", "bold yellow"),
    "note": ("–", "dim"),
    "well": ("ok", "green"),
}
_VERDICTS = {"yes": "bold green", "yes, but": "bold yellow", "no": "bold red"}
_MOST_OTHERS = 20


def show_verdict(checked: PairReport) -> None:
    """The verdict first, then what it rests on: what forbids it, what is to be known, what is well."""
    console = for_tables()
    n = len(checked.of("warning"))
    told = {"yes": "they pair", "yes, but": f"they pair, with {n} thing{'' if n == 1 else 's'} to know", "no": "they do not pair"}
    verdict = Text.assemble((checked.answer, _VERDICTS[checked.answer]), f"  {checked.name}: {told[checked.answer]}")
    _say(verdict)
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for role, model in (checked.models or {}).items():
        table.add_row("", Text(role), Text(f"{model.path.name}: {_describe(model)}"))
    for grade, look in LOOKS.items():
        for finding in checked.of(grade):
            table.add_row(Text(*look), Text(finding.about), Text(finding.text))
    console.print(table)
    if checked.needs:
        console.print()
        console.print(_memory_table(checked))


def _describe(model: ModelPlan) -> str:
    """In llama.cpp's words, but for the size, of which it knows the usual ones only."""
    words = model.description.replace(" ?B", "").replace(" (guessed)", "")
    n = model.n_parameters
    size = f"{n / 1e9:.3g} G" if n >= 1e9 else f"{n / 1e6:.3g} M"
    return f"{words}, {size} parameters, trained for {model.n_ctx_train} tokens"


def _memory_table(checked: PairReport) -> Table:
    """By part and model, in this machine's own memory and on a GPU."""
    needs = checked.needs or {}
    table = Table(f"memory at {checked.n_ctx} tokens", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for role in needs:
        table.add_column(role, justify="right")
    table.add_column("together", justify="right")

    def add(row: str, sizes: list[int]) -> None:
        if any(sizes):
            table.add_row(row, *(decimal(size) if size else "" for size in sizes), decimal(sum(sizes)))

    for part in dict.fromkeys(part for need in needs.values() for part in need.own):
        add(part, [need.own.get(part, 0) for need in needs.values()])
    for part in dict.fromkeys(part for need in needs.values() for part in need.gpu):
        add(f"{part} on the GPU", [need.gpu.get(part, 0) for need in needs.values()])
    add("all", [need.own_bytes + need.gpu_bytes for need in needs.values()])
    for where, free in (checked.free or {}).items():
        table.add_row("free" if where == "memory" else f"free on {where}", *("" for _ in needs), decimal(free))
    return table


def show_suggestions(suggestions: Suggestions, found: Found, places: dict[str, Path], measured: bool) -> None:
    """The ranking, and why the others are none. measured: whether speeds rest on what was measured on this machine."""
    console = for_tables()
    if not suggestions.ranked:
        looked = [name if name == str(folder) else f"{name} ({folder})" for name, folder in places.items()]
        said = f"looked in {', '.join(looked)}" if looked else "looked in no folder: name one with --folder"
        _say(Text(f"no model pairs with it; {said}"))
    else:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("drafter", overflow="fold")
        for name in ("size", "expert reads", "speed-up", "rollback"):
            table.add_column(name, justify="right", no_wrap=True)
        for each in suggestions.ranked:
            low, high = each.speedup
            cells = (decimal(each.model.size), f"{each.ratio:.3g} ×", f"{low:.1f}–{high:.1f} ×", each.rollback)
            table.add_row(Text(each.model.name), *cells)
        console.print(table)
        basis = "as fast as models were that were measured here" if measured else "at most, by size alone, as nothing was measured here"
        kept = f"{ACCEPTANCE_RATES[0]:.0%} to {ACCEPTANCE_RATES[1]:.0%} of drafts are accepted"
        _say(Text(f"(speed-up: {basis}, where {kept}; how many are, only asking tells: speccascade compare)"))
    if suggestions.untried:
        _say(Text(f"{len(suggestions.untried)} others may pair too, but promise no more (--best N tries more)", "dim"))
    for model, reason in suggestions.others[:_MOST_OTHERS]:
        _say(Text(f"not {model.name}: {reason}", "dim"))
    if len(suggestions.others) > _MOST_OTHERS:
        _say(Text(f"and {len(suggestions.others) - _MOST_OTHERS} others do not pair (--json lists all)", "dim"))
    for trouble in found.troubles:
        stderr.print(f"(left out: {trouble})", soft_wrap=True, markup=False)


def _say(text: Text) -> None:
    """A line, broken between words in a terminal and not at all in a pipe."""
    stdout.print(text, soft_wrap=not stdout.is_terminal)
