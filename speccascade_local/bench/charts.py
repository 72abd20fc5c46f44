"""The charts: quality against time, tokens per block, times of batches, reliability. All can be read in gray.

``draw_...`` draws into a figure of matplotlib's. ``save_...`` writes a .png or .svg file, and raises SettingError without matplotlib or
for another kind of file, and CatalogError if the file cannot be written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import CatalogError
from ..common.plots import figure_class, save_figure
from ..decoding.profile import SIZES, Profile
from ..rules.calibrated import Calibration
from .export import histogram, reach
from .grid import BASE, DRAFTER
from .intervals import wilson
from .rows import Row
from .summary import ArmSummary, Summary

#: Marker and line alone distinguish 28 curves, and the colors differ in brightness, so that all can be read in gray.
COLORS = ("#0b1f3f", "#c2571a", "#2171b5", "#e0a13a", "#5b8c3e", "#8a4f9e", "#7f7f7f")
LOOKS = [("osD^vPX"[i % 7], ("-", "--", "-.", ":")[i % 4], COLORS[i % 7]) for i in range(28)]
Look = tuple[str, str, str]
#: A drafter that loses a larger share of right answers than this, and twice as much as all others, is not drawn.
FAR = 0.1


def curve_styles(names: Iterable[str]) -> dict[str, Look]:
    """Return a look for each curve, the same in every chart."""
    return dict(zip(dict.fromkeys(names), cycle(LOOKS)))


def curves(arms: Sequence[ArmSummary]) -> dict[str, list[ArmSummary]]:
    """Return the arms of each rule and block size, sorted by alpha; an arm without a dial is a curve of one point."""
    groups: dict[str, list[ArmSummary]] = defaultdict(list)
    for arm in arms:
        alpha, rule = arm.about.get("alpha"), str(arm.about.get("rule"))
        name = arm.arm.replace(rule, rule.split(":")[0]) if alpha is not None else arm.arm
        groups[name].append(arm)
    return {name: sorted(group, key=lambda arm: arm.about.get("alpha") or 0.0) for name, group in groups.items()}


def save_curves(path: Path, summary: Summary) -> None:
    """Save quality against time, a panel for each temperature. Raises CatalogError if no question has a reference."""
    graded = {temperature: arms for temperature, arms in summary.by_temperature.items() if any(arm.quality_gain for arm in arms)}
    if not graded:
        raise CatalogError("no question has a reference, so there is no quality to draw; give some with reference and metric")
    figure = figure_class(path)(figsize=(6.6 * len(graded), 4.8), layout="constrained")
    styles = curve_styles(name for arms in graded.values() for name in curves(arms))
    for panel, (temperature, arms) in zip(figure.subfigures(1, len(graded), squeeze=False)[0], graded.items()):
        draw_quality(panel, arms, styles)
        panel.suptitle(f"temperature {temperature:g}", fontsize=10)
    save_figure(figure, path)


def draw_quality(figure: Any, arms: Sequence[ArmSummary], styles: Mapping[str, Look]) -> None:
    """Draw quality against time as the paper does: up is better, left is faster; crosses are 95 % intervals against the expert alone.

    A drafter far below all others is not drawn; the legend shows its coordinates.
    """
    axes = figure.subplots()
    for name, points in curves([arm for arm in arms if arm.quality_gain is not None]).items():
        marker, line, color = styles[name]
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
        axes.plot(times, values, marker=marker, linestyle=line, color=color, label=label, markersize=5, linewidth=1.2)
        for point, x, y in zip(points, times, values):
            if point.about.get("alpha") is not None:
                axes.annotate(f"{point.about['alpha']:g}", (x, y), xytext=(3, 3), textcoords="offset points", fontsize=6)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.axvline(1, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel="time per answer, the expert alone = 1", ylabel="right answers vs. the expert alone, points")
    axes.legend(fontsize=7, loc="best")


def _far_below(drafter: ArmSummary, arms: Sequence[ArmSummary]) -> bool:
    """Return whether the drafter loses so much that the curves of the others would coincide."""
    gains = [arm.quality_gain.value for arm in arms if arm.quality_gain is not None and arm.arm != drafter.arm]
    return drafter.quality_gain is not None and drafter.quality_gain.value < min(2 * min(gains, default=0.0), -FAR)


def draw_tokens_per_block(figure: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Draw the share of blocks with at least 1, 2, ... tokens."""
    axes = figure.subplots()
    for name, (marker, line, color) in curve_styles(names).items():
        shares = reach(histogram(row for row in rows if row["arm"] == name))
        axes.plot(range(1, len(shares) + 1), shares, marker=marker, linestyle=line, color=color, label=name, markersize=4, linewidth=1.2)
    axes.set(xlabel="n tokens", ylabel="share of blocks with at least n tokens", ylim=(0, 1.05))
    axes.legend(fontsize=7)


def save_batch_times(path: Path, profile: Profile) -> None:
    """Save the times of batches."""
    figure = figure_class(path)(figsize=(6.5, 4.5), layout="constrained")
    draw_batch_times(figure, profile)
    save_figure(figure, path)


def draw_batch_times(figure: Any, profile: Profile) -> None:
    """Draw the time of a batch by its size, for both models."""
    axes = figure.subplots()
    axes.plot(SIZES, SIZES, linestyle=":", color="0.6", label="one token at a time")
    for role, speed, marker, color in (("expert", profile.expert, "o", "#123a6b"), ("drafter", profile.drafter, "^", "#c77f3a")):
        for depth, row, line in zip(speed.depths, speed.seconds, ("-", "--")):
            axes.plot(
                SIZES, [seconds / row[0] for seconds in row], marker=marker, markersize=4, linestyle=line, linewidth=0.9, color=color,
                markerfacecolor=color if line == "-" else "white", label=f"{role} after {depth} tokens",
            )  # fmt: skip
        depth = speed.depths[0]
        padded = [speed.batch_s(n, depth) / speed.batch_s(1, depth) for n in SIZES]
        axes.step(SIZES, padded, where="mid", linewidth=3, alpha=0.35, color=color, label=f"{role}, padded")
    axes.set(xlabel="tokens in the batch, n", ylabel="time relative to a single token, v(n)", xlim=(0.5, SIZES[-1] + 0.5), xticks=SIZES)
    axes.set_ylim(
        0, 1.15 * max(seconds / row[0] for speed in (profile.expert, profile.drafter) for row in speed.seconds for seconds in row)
    )
    axes.legend(fontsize=8)


def save_reliability_diagram(path: Path, calibration: Calibration, bins: int = 5) -> None:
    """Save predicted against observed errors of unseen answers, with 95 % intervals. The same calibration gives the same file."""
    figure = figure_class(path)(figsize=(5.5, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    upper.plot([0, 1], [0, 1], linestyle="--", color="0.6", label="perfectly calibrated")
    predicted, wrong = (np.array(column, dtype=float) for column in zip(*calibration.validation))
    steps = np.minimum((predicted * bins).astype(int), bins - 1)
    points = [
        (predicted[steps == step].mean(), *wilson(int(wrong[steps == step].sum()), int((steps == step).sum()))) for step in set(steps)
    ]
    at, rate, low, high = np.array(points).T
    upper.errorbar(
        at, rate, yerr=(rate - low, high - rate), fmt="o", color="#1f5fa8", capsize=4,
        label=f"{len(predicted)} unseen answers, in up to {bins} groups, with 95 % intervals",
    )  # fmt: skip
    extremes = {-1.0: "the expert is always asked", 1.0: "the expert is never asked"}
    label = extremes.get(calibration.threshold, f"the expert is asked above {calibration.threshold:.3f}")
    for axes in (upper, lower):
        axes.axvspan(max(calibration.threshold, -0.02), 1.02, color="#c0392b", alpha=0.12, linewidth=0, zorder=0, label=label)
    upper.set(ylabel="observed share of wrong answers", ylim=(-0.02, 1.02))
    upper.set_title(
        f"routed {calibration.accuracy:.1%} right, expert {calibration.expert_accuracy:.1%}, drafter {calibration.drafter_accuracy:.1%}\n"
        f"the drafter answers {calibration.kept:.0%} alone",
        fontsize=10,
    )
    lower.hist(predicted, bins=20, range=(0, 1), color="0.5")
    lower.set(xlabel="predicted probability that the drafter is wrong", ylabel="answers", xlim=(-0.02, 1.02))
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    save_figure(figure, path)
