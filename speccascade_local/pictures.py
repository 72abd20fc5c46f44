"""The pictures of a profile and of a calibration. Knows nothing of where either comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .calibration import Calibration, wilson
from .figures import figure_class, save_figure
from .profile import SIZES, Profile


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
