"""Draw quality against time, and write the tables for it, from committed results of ``speccascade bench``.

    gzip -9n < ROWS.jsonl > docs/results/curves_scaled.jsonl.gz     # the first line of each file has the command that measured it
    python scripts/docs/curves.py

Reads docs/results/curves_demo.jsonl.gz and curves_scaled.jsonl.gz. Writes the .json of each next to it, docs/curves.svg, and a section of
docs/benchmarking.md. Measures nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sections import write_section

from speccascade_local.bench import rows
from speccascade_local.bench.charts import curves, save_curves
from speccascade_local.bench.export import as_json, difference, markdown_table, points, verdict
from speccascade_local.bench.grid import BASE
from speccascade_local.bench.summary import ArmSummary, Summary, require_measured, summarize
from speccascade_local.common.errors import SpeccascadeError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PICTURE = ROOT / "docs" / "curves.svg"
HEADING = (
    "rule",
    "α",
    "× the expert [95 %]",
    "right %",
    "less the expert's, points [95 %]",
    "TV",
    "parts from the expert's text",
    "expert calls per token",
)


def fastest(arms: Sequence[ArmSummary]) -> list[ArmSummary]:
    """Return of each rule the fastest arm that is not surely worse than the expert alone, or the least bad; the fastest first."""
    best = [max(curve, key=lambda arm: ("worse" not in verdict(arm), arm.speedup.value)) for curve in curves(arms).values()]
    return sorted(best, key=lambda arm: (arm.arm != BASE, "worse" in verdict(arm), -arm.speedup.value))


def table(arms: Sequence[ArmSummary]) -> str:
    lines: list[Sequence[str]] = [HEADING]
    for arm in fastest(arms):
        alpha, rule = arm.about["alpha"], arm.about["rule"]
        lines.append(
            [
                arm.arm if alpha is None else rule.split(":")[0],
                "" if alpha is None else f"{alpha:g}",
                str(arm.speedup),
                "–" if arm.quality is None else f"{100 * arm.quality:.1f}",
                points(arm.quality_gain),
                "–" if arm.mean_tv is None else f"{arm.mean_tv:.3f}",
                difference(arm),
                f"{arm.expert_calls_per_token:.2f}",
            ]
        )
    return markdown_table(lines) + "\n"


def tables(name: str, summary: Summary) -> str:
    parts = []
    for temperature, arms in summary.by_temperature.items():
        parts.append(f"**{name}, temperature {temperature:g}**, {arms[0].n} questions\n\n{table(arms)}")
    return "\n".join(parts)


def summary_of(name: str) -> Summary:
    """Return the summary of the committed rows, and write their figures next to them. Raises CatalogError."""
    setup, measured = rows.read(RESULTS / f"{name}.jsonl.gz")
    require_measured(measured)
    summary = summarize(measured)
    (RESULTS / f"{name}.json").write_text(as_json(summary, setup), encoding="utf-8")
    return summary


def main() -> None:
    try:
        scaled, demo = summary_of("curves_scaled"), summary_of("curves_demo")
    except SpeccascadeError as error:
        sys.exit(f"error: {error}")
    save_curves(PICTURE, scaled)
    both = f"{tables('Cost-scaled pair', scaled)}\n{tables('Bundled pair', demo)}"
    write_section(ROOT / "docs" / "benchmarking.md", "curves", f"![Quality against time](curves.svg)\n\n{both}")


if __name__ == "__main__":
    main()
