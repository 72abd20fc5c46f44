"""The charts of a report: quality against time, tokens per block, readable in grey. Knows nothing of pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from ..errors import CatalogError
from ..figures import figure_class, save_figure
from .export import histogram, reach
from .grid import BASE, DRAFTER
from .rows import Row
from .summary import ArmSummary, Summary

#: By marker and line alone 28 are told apart, and the colours are as dark as they are different: all of it reads in grey.
COLOURS = ("#0b1f3f", "#c2571a", "#2171b5", "#e0a13a", "#5b8c3e", "#8a4f9e", "#7f7f7f")
LOOKS = [("osD^vPX"[i % 7], ("-", "--", "-.", ":")[i % 4], COLOURS[i % 7]) for i in range(28)]
Look = tuple[str, str, str]
#: A drafter that loses a larger share of right answers than this, and twice as much as all others, is left out of the picture.
FAR = 0.1


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each curve, the same in every chart that shows it."""
    return dict(zip(dict.fromkeys(names), cycle(LOOKS)))


def curves(arms: Sequence[ArmSummary]) -> dict[str, list[ArmSummary]]:
    """The arms of each rule and block size, by alpha; those without a dial are curves of one point."""
    found: dict[str, list[ArmSummary]] = defaultdict(list)
    for arm in arms:
        alpha, rule = arm.about.get("alpha"), str(arm.about.get("rule"))
        name = arm.arm.replace(rule, rule.split(":")[0]) if alpha is not None else arm.arm
        found[name].append(arm)
    return {name: sorted(each, key=lambda arm: arm.about.get("alpha") or 0.0) for name, each in found.items()}


def draw_curves(path: Path, summary: Summary) -> None:
    """Quality against time, a panel for each temperature, into a .png or .svg file.

    Raises SettingError without matplotlib, CatalogError where no question has a reference or the file cannot be written.
    """
    graded = {temperature: arms for temperature, arms in summary.by_temperature.items() if any(arm.quality_gain for arm in arms)}
    if not graded:
        raise CatalogError("no question has a reference, so there is no quality to draw; give some with reference and metric")
    figure = figure_class(path)(figsize=(6.6 * len(graded), 4.8), layout="constrained")
    shown = looks(name for arms in graded.values() for name in curves(arms))
    for panel, (temperature, arms) in zip(figure.subfigures(1, len(graded), squeeze=False)[0], graded.items()):
        quality_against_time(panel, arms, shown)
        panel.suptitle(f"temperature {temperature:g}", fontsize=10)
    save_figure(figure, path)


def quality_against_time(figure: Any, arms: Sequence[ArmSummary], shown: Mapping[str, Look]) -> None:
    """The paper's figure on this pair: up is better, left is faster; crosses are 95 % intervals against the expert alone.

    The drafter alone is drawn where the others leave room for it; else the legend tells where it would be.
    """
    axes = figure.subplots()
    for name, points in curves([arm for arm in arms if arm.quality_gain is not None]).items():
        marker, line, colour = shown[name]
        times = [1 / point.speedup.value for point in points]
        gains = [point.quality_gain for point in points if point.quality_gain is not None]
        values = [100 * gain.value for gain in gains]
        label = name
        if name == DRAFTER and _far_below(points[0], arms):
            times, values, label = [], [], f"{name}: at ({times[0]:.2f}, {values[0]:+.0f}), far below"
        elif name != BASE and points[0].n > 1:  # of one question no time has an interval
            x_error = [[t - 1 / p.speedup.high for t, p in zip(times, points)], [1 / p.speedup.low - t for t, p in zip(times, points)]]
            y_error = [[100 * (g.value - g.low) for g in gains], [100 * (g.high - g.value) for g in gains]]
            axes.errorbar(times, values, xerr=x_error, yerr=y_error, fmt="none", ecolor="0.8", elinewidth=0.8, zorder=1)
        axes.plot(times, values, marker=marker, linestyle=line, color=colour, label=label, markersize=5, linewidth=1.2)
        for point, x, y in zip(points, times, values):
            if point.about.get("alpha") is not None:
                axes.annotate(f"{point.about['alpha']:g}", (x, y), xytext=(3, 3), textcoords="offset points", fontsize=6)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.axvline(1, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel="time per answer, the expert alone = 1", ylabel="right answers less the expert's, points")
    axes.legend(fontsize=7, loc="best")


def _far_below(drafter: ArmSummary, arms: Sequence[ArmSummary]) -> bool:
    """Whether the drafter alone loses so much that nothing could be told of the others beside it."""
    gains = [arm.quality_gain.value for arm in arms if arm.quality_gain is not None and arm.arm != drafter.arm]
    return drafter.quality_gain is not None and drafter.quality_gain.value < min(2 * min(gains, default=0.0), -FAR)


def tokens_per_block(figure: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    """The share of blocks that gave at least so many tokens."""
    axes = figure.subplots()
    for name, (marker, line, colour) in looks(names).items():
        shares = reach(histogram(row for row in rows if row["arm"] == name))
        axes.plot(range(1, len(shares) + 1), shares, marker=marker, linestyle=line, color=colour, label=name, markersize=4, linewidth=1.2)
    axes.set(xlabel="tokens of a block", ylabel="share of blocks with at least so many", ylim=(0, 1.05))
    axes.legend(fontsize=7)
