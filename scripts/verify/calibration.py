"""Simulate ``calibrate``: does what it reports hold for new questions?

    python scripts/verify/calibration.py > docs/results/calibration_bias.txt

Answers are simulated, no model runs. The drafter is wrong in 2 to 50 % of the answers, more often where it is less sure; the expert is
right in 95 %. Each trial calibrates with ``speccascade_local.bench.calibrate.fit``. The true error rates give what new questions get.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speccascade_local.bench.calibrate import Outcome, fit
from speccascade_local.common.errors import SettingError

EXPERT = 0.95
#: Uncertainties of new questions.
NEW = np.linspace(0, 1, 2001)


class Trials(NamedTuple):
    """Means over trials, in points. bias, kept_bias: what was said less what new questions get. error: standard error of the bias.

    covered: percent of trials whose interval holds what new questions get. short: the target less what new questions get.
    """

    bias: float
    error: float
    kept_bias: float
    covered: float
    short: float
    kept: float
    width: float


def wrong(uncertainty: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.02 + 0.48 * uncertainty


def answers(n: int, rng: np.random.Generator) -> list[Outcome]:
    uncertainty = rng.random(n)
    drafter, expert = rng.random(n) >= wrong(uncertainty), rng.random(n) < EXPERT
    return [Outcome(*each) for each in zip(uncertainty.tolist(), drafter.tolist(), expert.tolist())]


def simulated(n: int, target: float | None, trials: int) -> Trials:
    """Calibrate as often on ``n`` answers."""
    rng = np.random.default_rng(n)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.gguf"
        model.write_bytes(b"of no pair")
        for seed in range(trials):
            try:
                each = fit(answers(n, rng), drafter=model, expert=model, target=target, seed=seed)
            except SettingError:  # the target was out of reach, and nothing was said
                continue
            kept = np.round(np.interp(NEW, each.uncertainty, each.error), 9) <= each.threshold
            new = np.where(kept, 1 - wrong(NEW), EXPERT).mean()
            assert each.accuracy_interval is not None
            low, high = each.accuracy_interval
            wanted = EXPERT if target is None else target
            found.append((each.accuracy - new, each.kept - kept.mean(), low <= new <= high, wanted - new, kept.mean(), high - low))
    bias, kept_bias, covered, short, kept_share, width = 100 * np.mean(found, axis=0)
    return Trials(bias, 100 * float(np.std([each[0] for each in found])) / len(found) ** 0.5, kept_bias, covered, short, kept_share, width)


def main() -> None:
    print("Made by: python scripts/verify/calibration.py > docs/results/calibration_bias.txt\n")
    print(f"{'':28}accuracy said less true   share kept,      interval     true accuracy under    drafter    width of")
    print(
        f"{'answers':>8}{'target':>16}    {'(standard error)':>22}   said less true   covers   {'the target by':>19}    answers    interval"
    )
    for target in (None, 0.9):
        for n, trials in ((60, 4000), (100, 3000), (200, 2000), (474, 1000)):
            row = simulated(n, target, trials)
            name = "the expert's" if target is None else f"{target:.0%}"
            print(
                f"{n:8}{name:>16}    {row.bias:+13.2f} ({row.error:.2f})   {row.kept_bias:+14.2f}   {row.covered:4.1f} %"
                f"   {row.short:19.1f}    {row.kept:5.1f} %    {row.width:8.1f}"
            )


if __name__ == "__main__":
    main()
