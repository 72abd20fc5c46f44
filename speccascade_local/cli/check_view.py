"""The verdict on a pair in a terminal, and the ranking of drafters for an expert."""

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
from ..models.local import LocalModels
from .terminal import for_tables, stderr, stdout

#: Each grade's word and color, in the order in which they are printed.
LOOKS: dict[Grade, tuple[str, str]] = {
    "no": ("no", "bold red"),
    "warning": ("but", "bold yellow"),
    "note": ("–", "dim"),
    "well": ("ok", "green"),
}
_VERDICTS = {"yes": "bold green", "yes, but": "bold yellow", "no": "bold red"}
_MOST_OTHERS = 20


def show_verdict(report: PairReport) -> None:
    """Print the verdict, the models, the findings by grade, and the memory needed."""
    console = for_tables()
    n = len(report.of("warning"))
    verdicts = {"yes": "they pair", "yes, but": f"they pair, with {n} warning{'' if n == 1 else 's'}", "no": "they do not pair"}
    _print_line(Text.assemble((report.answer, _VERDICTS[report.answer]), f"  {report.name}: {verdicts[report.answer]}"))
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for role, model in (report.models or {}).items():
        table.add_row("", Text(role), Text(f"{model.path.name}: {_describe(model)}"))
    for grade, look in LOOKS.items():
        for finding in report.of(grade):
            table.add_row(Text(*look), Text(finding.about), Text(finding.text))
    console.print(table)
    if report.needs:
        console.print()
        console.print(_memory_table(report))


def _describe(model: ModelPlan) -> str:
    """Return llama.cpp's description with a size of our own, because llama.cpp names only the usual sizes."""
    words = model.description.replace(" ?B", "").replace(" (guessed)", "")
    n = model.n_parameters
    size = f"{n / 1e9:.3g} G" if n >= 1e9 else f"{n / 1e6:.3g} M"
    return f"{words}, {size} parameters, trained for {model.n_ctx_train} tokens"


def _memory_table(report: PairReport) -> Table:
    """Return bytes by part and model, in main memory and on a GPU."""
    needs = report.needs or {}
    table = Table(f"memory at {report.n_ctx} tokens", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for role in needs:
        table.add_column(role, justify="right")
    table.add_column("total", justify="right")

    def add(row: str, sizes: list[int]) -> None:
        if any(sizes):
            table.add_row(row, *(decimal(size) if size else "" for size in sizes), decimal(sum(sizes)))

    for part in dict.fromkeys(part for need in needs.values() for part in need.own):
        add(part, [need.own.get(part, 0) for need in needs.values()])
    for part in dict.fromkeys(part for need in needs.values() for part in need.gpu):
        add(f"{part} on the GPU", [need.gpu.get(part, 0) for need in needs.values()])
    add("total", [need.own_bytes + need.gpu_bytes for need in needs.values()])
    for where, free in (report.free or {}).items():
        table.add_row("free" if where == "memory" else f"free on {where}", *("" for _ in needs), decimal(free))
    return table


def show_suggestions(suggestions: Suggestions, found: LocalModels, places: dict[str, Path], measured: bool) -> None:
    """Print the ranking, and why the other models are not in it; ``measured`` says whether speeds rest on measurements here."""
    console = for_tables()
    if not suggestions.ranked:
        folders = [name if name == str(folder) else f"{name} ({folder})" for name, folder in places.items()]
        where = f"looked in {', '.join(folders)}" if folders else "found no folder to look in; name one with --folder"
        _print_line(Text(f"no model pairs with the expert; {where}"))
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
        basis = "from measurements on this machine" if measured else "an upper bound from sizes, as nothing is measured here yet"
        acceptance = f"if {ACCEPTANCE_RATES[0]:.0%} to {ACCEPTANCE_RATES[1]:.0%} of drafts are accepted"
        _print_line(Text(f"(speed-up: {basis}, {acceptance}; to see how many are: speccascade compare)"))
    if suggestions.untried:
        _print_line(Text(f"{len(suggestions.untried)} others may pair too, but promise no more (--best N tries more)", "dim"))
    for model, reason in suggestions.others[:_MOST_OTHERS]:
        _print_line(Text(f"not {model.name}: {reason}", "dim"))
    if len(suggestions.others) > _MOST_OTHERS:
        _print_line(Text(f"and {len(suggestions.others) - _MOST_OTHERS} others do not pair (--json lists all)", "dim"))
    for trouble in found.troubles:
        stderr.print(f"(skipped: {trouble})", soft_wrap=True, markup=False)


def _print_line(text: Text) -> None:
    """Print a line, broken between words in a terminal and never in a pipe."""
    stdout.print(text, soft_wrap=not stdout.is_terminal)
