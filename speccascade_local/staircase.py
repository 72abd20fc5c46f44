"""The picture of a profile: what a batch of n tokens costs, in units of a single token, as measured and as padded.

Knows nothing of where the profile comes from.
"""

from __future__ import annotations

from pathlib import Path

from .figures import figure_class, save_figure
from .profile import SIZES, Profile


def staircase(profile: Profile, path: Path) -> None:
    """Draw into a .png or .svg file; the two models by marker and shade, so that it reads in grey. Raises as ``save_figure`` does."""
    figure = figure_class(path)(figsize=(6.5, 4.5), layout="constrained")
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
    save_figure(figure, path)
