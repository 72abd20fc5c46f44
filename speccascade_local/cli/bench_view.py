"""A benchmark in a terminal: the most important columns of what the files hold in full."""

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
    """Print a table for each temperature, and the notes."""
    console = for_tables()
    for temperature, arms in summary.by_temperature.items():
        console.print(score_table(arms, temperature, console.width))
        console.print()
    for note in notes(summary, setup):
        console.print(Text(note, "dim"), soft_wrap=not console.is_terminal)


def score_table(arms: list[ArmSummary], temperature: float, width: int) -> Table:
    """Return a table that compares the arms with the expert alone; below ALL_COLUMNS it drops columns to fit 80."""
    columns: dict[str, Callable[[ArmSummary], str]] = {
        "speed-up": lambda arm: str(arm.speedup),
        "right": lambda arm: "–" if arm.quality is None else f"{100 * arm.quality:.0f} %",
        "right vs. expert,\npoints": lambda arm: points(arm.quality_gain),
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
    table.add_column("verdict", vertical="bottom")
    for arm in arms:
        words = Text(", ").join(Text(word, STYLES[word]) for word in verdict(arm).split(", ") if word)
        table.add_row(Text(arm.arm, "bold" if arm.arm == BASE else ""), *(value(arm) for value in columns.values()), words)
    return table
