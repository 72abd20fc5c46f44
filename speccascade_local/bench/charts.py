"""The charts of a report: quality against time, tokens per block, readable in grey. Knows nothing of pages."""

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
from .calibrate import wilson
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


def curve_styles(names: Iterable[str]) -> dict[str, Look]:
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
    shown = curve_styles(name for arms in graded.values() for name in curves(arms))
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
    for name, (marker, line, colour) in curve_styles(names).items():
        shares = reach(histogram(row for row in rows if row["arm"] == name))
        axes.plot(range(1, len(shares) + 1), shares, marker=marker, linestyle=line, color=colour, label=name, markersize=4, linewidth=1.2)
    axes.set(xlabel="tokens of a block", ylabel="share of blocks with at least so many", ylim=(0, 1.05))
    axes.legend(fontsize=7)


def staircase(profile: Profile, path: Path) -> None:
    """Draw into a .png or .svg file. Raises as ``save_figure`` does."""
    figure = figure_class(path)(figsize=(6.5, 4.5), layout="constrained")
    draw_staircase(figure, profile)
    save_figure(figure, path)


def draw_staircase(figure: Any, profile: Profile) -> None:
    """The time of a batch by its size; the two models by marker and shade, so that it reads in grey."""
    axes = figure.subplots()
    axes.plot(SIZES, SIZES, linestyle=":", color="0.6", label="one token at a time")
    for role, speed, marker, colour in (("expert", profile.expert, "o", "#123a6b"), ("drafter", profile.drafter, "^", "#c77f3a")):
        for depth, row, line in zip(speed.depths, speed.seconds, ("-", "--")):
            axes.plot(
                SIZES, [seconds / row[0] for seconds in row], marker=marker, markersize=4, linestyle=line, linewidth=0.9, color=colour,
                markerfacecolor=colour if line == "-" else "white", label=f"{role} after {depth} tokens",
            )  # fmt: skip
        depth = speed.depths[0]
        padded = [speed.batch_s(n, depth) / speed.batch_s(1, depth) for n in SIZES]
        axes.step(SIZES, padded, where="mid", linewidth=3, alpha=0.35, color=colour, label=f"{role}, padded")
    axes.set(xlabel="tokens in the batch, n", ylabel="time in units of a single token, v(n)", xlim=(0.5, SIZES[-1] + 0.5), xticks=SIZES)
    axes.set_ylim(
        0, 1.15 * max(seconds / row[0] for speed in (profile.expert, profile.drafter) for row in speed.seconds for seconds in row)
    )
    axes.legend(fontsize=8)


def reliability_diagram(calibration: Calibration, path: Path, bins: int = 5) -> None:
    """Draw predicted against observed errors of answers that the calibration has not seen, with 95 % intervals, into a .png or .svg file.

    The same calibration gives the same file. Raises SettingError without matplotlib or for another kind of file.
    """
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
        label=f"{len(predicted)} answers that it has not seen, in up to {bins} groups, with 95 % intervals",
    )  # fmt: skip
    asked = {-1.0: "the expert is always asked", 1.0: "the expert is never asked"}
    said = asked.get(calibration.threshold, f"the expert is asked above {calibration.threshold:.3f}")
    for axes in (upper, lower):
        axes.axvspan(max(calibration.threshold, -0.02), 1.02, color="#c0392b", alpha=0.12, linewidth=0, zorder=0, label=said)
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
