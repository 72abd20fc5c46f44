"""Simulate the confirmation of ``tune``: how often ways that lose answers pass a limit, and how often ways that lose none do.

    python scripts/verify/tuning.py > docs/results/confirmation.txt

Answers are simulated, no model runs. The expert is right in 80 %. Each candidate is about twice as fast, and loses and wins right answers
at the given rates. They go through ``speccascade_local.bench.tune.confirm``, all on the same questions.
"""

from __future__ import annotations

import numpy as np

from speccascade_local.bench.goal import Goal
from speccascade_local.bench.grid import BASE, Arm
from speccascade_local.bench.rows import Row
from speccascade_local.bench.tune import confirm, total_questions
from speccascade_local.rules.position_rules import Strict
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.runtime.settings import DEFAULTS

EXPERT = Arm(BASE, Strict(), DEFAULTS)
RIGHT, SPEED, NOISE = 0.8, 2.0, 0.1


def passing(n: int, limit: float, losses: float, wins: float = 0.0, candidates: int = 1, trials: int = 1000) -> float:
    """The share of trials in which any candidate is chosen. n: questions to confirm by."""
    rng = np.random.default_rng(n)
    arms = [Arm(f"candidate {i}", TokenV3(i / 10), DEFAULTS) for i in range(candidates)]
    goal, merits = Goal(max_quality_loss=limit), {arm.name: float(i) for i, arm in enumerate(arms)}

    def passes() -> bool:
        right = rng.random(n) < RIGHT

        def ask(arm: Arm, place: int) -> Row:
            good, seconds = bool(right[place]), rng.lognormal(0, NOISE)
            if arm is EXPERT:
                return answer(BASE, place, good, seconds)
            kept = rng.random() >= losses / RIGHT if good else rng.random() < wins / (1 - RIGHT)
            return answer(arm.name, place, kept, seconds / SPEED)

        return confirm(EXPERT, arms, merits, range(n), ask, goal)[0] is not None

    return sum(passes() for _ in range(trials)) / trials


def answer(arm: str, place: int, right: bool, seconds: float) -> Row:
    """A row with what summaries look at."""
    counts = dict.fromkeys(("tokens", "blocks", "drafted", "accepted", "tested", "deferred", "expert_calls"), 1)
    fidelity = {"mean_tv": 0.0, "expert_logprob": -1.0, "judged": 1}
    about = {"question": str(place), "family": "", "arm": arm, "temperature": 0.0, "repetition": 0, "token_ids": [1], "yields": [1]}
    return {**about, **counts, "fidelity": fidelity, "quality": float(right), "wall_s": seconds, "first_s": seconds / 2}


#: Shares of right answers that the candidates truly lose and win; None stands for the limit itself.
TRUTHS = ((0.05, 0.0), (0.05, 0.02), (None, 0.0), (0.0, 0.0), (0.005, 0.005), (0.01, 0.01))


def main() -> None:
    trials = 200
    print("Made by: python scripts/verify/tuning.py > docs/results/confirmation.txt")
    print(f"Percent of {trials} trials in which a candidate passes, of one candidate and of three that are alike.\n")
    print(f"{'questions to':>12}{'in':>6}{'limit':>8}{'truly lost':>12}{'truly won':>11}{'one':>8}{'three':>8}")
    print(f"{'confirm by':>12}{'all':>6}")
    for n in (20, 67, 394):
        for limit in (0.01, 0.03):
            for lost, wins in TRUTHS:
                losses = limit if lost is None else lost
                cells = "".join(f"{100 * passing(n, limit, losses, wins, many, trials):8.1f}" for many in (1, 3))
                print(f"{n:12}{total_questions(n):6}{limit:8.0%}{losses:12.1%}{wins:11.1%}{cells}", flush=True)


if __name__ == "__main__":
    main()
