"""How a benchmark looks in a terminal: a few columns of what the files have in full.

Knows nothing of verbs and options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ..bench.export import notes, points, verdict
from ..bench.grid import BASE
from ..bench.summary import ArmSummary, Summary
from .terminal import for_tables

ALL_COLUMNS = 110
STYLES = {"faster": "green", "better": "green", "slower": "red", "worse": "red"}


def print_scores(summary: Summary, setup: Mapping[str, Any]) -> None:
    """A table for each temperature, and what must be known to trust them."""
    console = for_tables()
    for temperature, arms in summary.by_temperature.items():
        console.print(scores(arms, temperature, console.width))
        console.print()
    for note in notes(summary, setup):
        console.print(Text(note, "dim"), soft_wrap=not console.is_terminal)


def scores(arms: list[ArmSummary], temperature: float, width: int) -> Table:
    """The arms beside the expert alone, in their order; fits 80 columns by leaving some out."""
    columns: dict[str, Callable[[ArmSummary], str]] = {
        "× the expert": lambda arm: str(arm.speedup),
        "right": lambda arm: "–" if arm.quality is None else f"{100 * arm.quality:.0f} %",
        "less, points": lambda arm: points(arm.quality_gain),
        "calls\n/token": lambda arm: f"{arm.expert_calls_per_token:.2f}",
        "TV": lambda arm: "–" if arm.mean_tv is None else f"{arm.mean_tv:.3f}",
    }
    for name in ("right", "calls\n/token", "TV") if width < ALL_COLUMNS else ():
        del columns[name]
    title = f"temperature {temperature:g}, {arms[0].n} questions"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    table.add_column("surely", vertical="bottom")
    for arm in arms:
        words = Text(", ").join(Text(word, STYLES[word]) for word in verdict(arm).split(", ") if word)
        table.add_row(Text(arm.arm, "bold" if arm.arm == BASE else ""), *(value(arm) for value in columns.values()), words)
    return table
