"""One page about a benchmark that needs nothing but itself: charts, samples coloured by who wrote them, the whole table.

Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..common.errors import CatalogError
from ..common.plots import figure_class, svg_text
from ..machine.profile_cache import read_profile
from . import charts
from .charts import draw_staircase
from .export import family_table, full_table, notes
from .grid import BASE, DRAFTER
from .rows import Row
from .run import ORIGINS
from .summary import Summary

#: Samples and disagreements that are shown; the file of rows has all.
SAMPLES, DISAGREEMENTS = 4, 12
_NAMES = {letter: origin for origin, letter in ORIGINS.items()}


def write_report(path: Path, summary: Summary, rows: Sequence[Row], setup: Mapping[str, Any]) -> None:
    """Write the page. Raises SettingError without matplotlib, CatalogError where it cannot be written."""
    figure = figure_class(Path("any.svg"))  # refuses before anything is drawn
    parts = [_part(figure, temperature, summary, rows) for temperature in summary.by_temperature]
    try:
        profile = read_profile(setup["profile"]) if "profile" in setup else None
    except ValueError as error:
        raise CatalogError(f"the profile in the first line of the results is none ({error!s:.200}); take it out there") from error
    page = (
        _environment()
        .get_template("report.html")
        .render(
            pair=setup.get("pair", "a pair"),
            parts=parts,
            notes=notes(summary, setup),
            staircase=_draw(figure, "staircase", lambda each: draw_staircase(each, profile)) if profile else None,
            command=setup.get("command"),
            origins=list(ORIGINS),
            asked=setup.get("asked", {}),
        )
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CatalogError(f"{path}: cannot be written ({error.strerror})") from error


def _part(figure: Callable[..., Any], temperature: float, summary: Summary, rows: Sequence[Row]) -> dict[str, Any]:
    arms = summary.by_temperature[temperature]
    here = [row for row in rows if row["temperature"] == temperature]
    names = [arm.arm for arm in arms]
    drafting = [name for name in names if name not in (BASE, DRAFTER)][: len(charts.LOOKS)]
    shown = charts.curve_styles(name for each in summary.by_temperature.values() for name in charts.curves(each))
    quality = None
    if any(arm.quality_gain for arm in arms):
        quality = _draw(figure, f"quality {temperature}", lambda each: charts.quality_against_time(each, arms, shown))
    return {
        "temperature": f"{temperature:g}",
        "table": full_table(arms),
        "families": family_table(summary, temperature),
        "quality": quality,
        "blocks": _draw(figure, f"blocks {temperature}", lambda each: charts.tokens_per_block(each, here, drafting)),
        "samples": samples(here, names),
        "disagreements": disagreements(here, names),
    }


def samples(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """A few questions with every arm's answer, in pieces with who wrote each."""
    by_question: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["repetition"] == 0:
            by_question.setdefault(row["question"], {})[row["arm"]] = row
    chosen = [answers for answers in by_question.values() if len(answers) == len(names)][:SAMPLES]
    return [
        {"question": next(iter(answers.values()))["question"], "answers": [(name, pieces(answers[name])) for name in names]}
        for answers in chosen
    ]


def pieces(row: Row) -> list[tuple[str, str]]:
    """The text in runs of one origin each: (origin, text)."""
    found: list[tuple[str, str]] = []
    at = 0
    for letter, length in zip(row["origins"], row["lengths"]):
        text, at = row["text"][at : at + length], at + length
        if found and found[-1][0] == _NAMES[letter]:
            found[-1] = (found[-1][0], found[-1][1] + text)
        else:
            found.append((_NAMES[letter], text))
    return found


def disagreements(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """Questions at which an arm and the expert alone are not equally right: who was right, and what each said."""
    answers = {(row["question"], row["arm"]): row for row in rows if row["repetition"] == 0 and row["quality"] is not None}
    found = []
    for question in dict.fromkeys(question for question, _ in answers):
        expert = answers.get((question, BASE))
        others = [answers[question, name] for name in names if (question, name) in answers]
        apart = [row for row in others if expert and row["quality"] != expert["quality"]]
        if expert and apart:
            found.append({"question": question, "expert": expert, "others": apart})
    return found[:DISAGREEMENTS]


def _draw(figure: Callable[..., Any], name: str, draw: Callable[[Any], None]) -> str:
    """The SVG itself, to stand within the page."""
    canvas = figure(figsize=(6.6, 4.4), layout="constrained")
    draw(canvas)
    return svg_text(canvas, name)


def _environment() -> Environment:
    loader = PackageLoader("speccascade_local.bench", ".")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
