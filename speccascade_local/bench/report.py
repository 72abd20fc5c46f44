"""A self-contained page about a benchmark: charts, samples colored by origin, the full tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..common.errors import CatalogError
from ..common.plots import figure_class, svg_text
from ..machine.profile_cache import read_profile
from . import charts
from .export import family_table, full_table, notes
from .grid import BASE, DRAFTER
from .rows import Row
from .run import ORIGINS
from .summary import Summary

#: Most samples and disagreements on the page; the file of rows has all.
SAMPLES, DISAGREEMENTS = 4, 12
_NAMES = {letter: origin for origin, letter in ORIGINS.items()}


def write_report(path: Path, summary: Summary, rows: Sequence[Row], setup: Mapping[str, Any]) -> None:
    """Write the page. Raises SettingError without matplotlib, and CatalogError if it cannot be written."""
    figure = figure_class(Path("any.svg"))
    parts = [_part(figure, temperature, summary, rows) for temperature in summary.by_temperature]
    try:
        profile = read_profile(setup["profile"]) if "profile" in setup else None
    except ValueError as error:
        raise CatalogError(f"the profile in the first line of the results is not valid ({error!s:.200}); remove it there") from error
    loader = PackageLoader("speccascade_local.bench", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html").render(
        pair=setup.get("pair", "a pair"),
        parts=parts,
        notes=notes(summary, setup),
        batch_times=_draw(figure, "staircase", lambda each: charts.draw_batch_times(each, profile)) if profile else None,
        command=setup.get("command"),
        origins=list(ORIGINS),
        questions=setup.get("asked", {}),
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
    styles = charts.curve_styles(name for each in summary.by_temperature.values() for name in charts.curves(each))
    quality = None
    if any(arm.quality_gain for arm in arms):
        quality = _draw(figure, f"quality {temperature}", lambda each: charts.draw_quality(each, arms, styles))
    return {
        "temperature": f"{temperature:g}",
        "table": full_table(arms),
        "families": family_table(summary, temperature),
        "quality": quality,
        "blocks": _draw(figure, f"blocks {temperature}", lambda each: charts.draw_tokens_per_block(each, here, drafting)),
        "samples": samples(here, names),
        "disagreements": disagreements(here, names),
    }


def samples(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a few questions with every arm's answer, in pieces by origin."""
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
    """Return the text in runs of one origin: (origin, text)."""
    runs: list[tuple[str, str]] = []
    at = 0
    for letter, length in zip(row["origins"], row["lengths"]):
        text, at = row["text"][at : at + length], at + length
        if runs and runs[-1][0] == _NAMES[letter]:
            runs[-1] = (runs[-1][0], runs[-1][1] + text)
        else:
            runs.append((_NAMES[letter], text))
    return runs


def disagreements(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the questions that an arm answers better or worse than the expert alone, with the rows of both."""
    answers = {(row["question"], row["arm"]): row for row in rows if row["repetition"] == 0 and row["quality"] is not None}
    differences = []
    for question in dict.fromkeys(question for question, _ in answers):
        expert = answers.get((question, BASE))
        others = [answers[question, name] for name in names if (question, name) in answers]
        different = [row for row in others if expert and row["quality"] != expert["quality"]]
        if expert and different:
            differences.append({"question": question, "expert": expert, "others": different})
    return differences[:DISAGREEMENTS]


def _draw(figure: Callable[..., Any], name: str, draw: Callable[[Any], None]) -> str:
    """Return the drawing as an SVG element."""
    canvas = figure(figsize=(6.6, 4.4), layout="constrained")
    draw(canvas)
    return svg_text(canvas, name)
