"""Measure how often 95 % intervals of the benchmark hold the truth, and how often equal arms are called different.

    python scripts/verify/intervals.py [--trials 10000]

Writes docs/results/coverage.txt. Right and wrong answers are summed over every outcome, which is exact. Seconds are drawn, and a share of
10,000 trials is right to half a point; grades have a tenth of the draws. tests/bench/test_intervals.py holds the same functions to limits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speccascade_local import Runtime, load
from speccascade_local.bench.intervals import DRAWS, quality_change, significant, speed_ratio
from speccascade_local.bench.questions import Question, built_in_questions

OUT = Path(__file__).resolve().parents[2] / "docs" / "results" / "coverage.txt"
Float = NDArray[np.float64]
#: Shares of questions at which exactly one of two arms is right, and shares of these that are losses.
DISCORDANCE, LOSSES = (0.01, 0.02, 0.05), (1.0, 0.75, 0.5)
#: Shown too, but too many for anyone to call the arms alike.
MORE_DISCORDANCE = (0.1, 0.2)
QUALITY_SIZES, SPEED_SIZES = (20, 40, 100, 474), (20, 40, 100)
#: Standard deviation of an arm's seconds over their mean.
SPREADS = (0.1, 0.3, 0.5)
#: Of real answers.
SEEDS = 12
#: Outcomes that are rarer than this, all together, do not count as covered.
RARE = 1e-6


def right_or_wrong(discordance: float, losses: float, n: int) -> tuple[float, float]:
    """How often the interval holds the truth, and its mean width, summed over every outcome of n questions."""
    lost, won = discordance * losses, discordance * (1 - losses)
    covered = width = 0.0
    for wins, defeats, share in _outcomes(n, won, lost):
        found = quality_change([1] * wins + [0] * defeats + [1] * (n - wins - defeats), [0] * wins + [1] * (n - wins))
        covered += share * (found.low <= won - lost <= found.high)
        width += share * (found.high - found.low)
    return covered, width


def _outcomes(n: int, won: float, lost: float) -> Iterator[tuple[int, int, float]]:
    """Wins, losses and how likely they are."""
    for wins in range(n + 1 if won else 1):
        for defeats in range(n + 1 - wins):
            ties = n - wins - defeats
            ways = math.lgamma(n + 1) - math.lgamma(wins + 1) - math.lgamma(defeats + 1) - math.lgamma(ties + 1)
            share = math.exp(ways + (wins * math.log(won) if won else 0) + defeats * math.log(lost) + ties * math.log(1 - won - lost))
            if share > RARE / (n + 1):
                yield wins, defeats, share


def _rare_loss(rng: np.random.Generator, n: int) -> tuple[Float, Float]:
    theirs = np.full(n, 1.0)
    return np.where(rng.random(n) < 0.02, rng.random(n), theirs), theirs


def _thirds(rng: np.random.Generator, n: int) -> tuple[Float, Float]:
    """Three repetitions of each question; the arm is right a little less often."""
    return rng.binomial(3, 0.93, n) / 3, rng.binomial(3, 0.95, n) / 3


def _overlap(rng: np.random.Generator, n: int) -> tuple[Float, Float]:
    """Like ROUGE: nearly all grades differ, by little."""
    theirs = rng.beta(4, 3, n)
    return theirs * (1 - 0.2 * rng.beta(1, 3, n)), theirs


#: Grades of two arms, and the true mean difference.
GRADES: dict[str, tuple[Callable[[np.random.Generator, int], tuple[Float, Float]], float]] = {
    "2 % of answers lose a part": (_rare_loss, -0.02 * 0.5),
    "three repetitions, 93 and 95 % right": (_thirds, -0.02),
    "overlap with a text": (_overlap, -4 / 7 * 0.2 / 4),
}


def graded(kind: str, n: int, trials: int, draws: int = DRAWS) -> tuple[float, float]:
    """How often the interval holds the truth, and its mean width."""
    draw, truth = GRADES[kind]
    rng = np.random.default_rng(n)
    found = [quality_change(*draw(rng, n), draws=draws) for _ in range(trials)]
    return float(np.mean([each.low <= truth <= each.high for each in found])), float(np.mean([each.high - each.low for each in found]))


#: Seconds of answers with mean 1 and a given spread.
SECONDS: dict[str, Callable[[np.random.Generator, float, int], Float]] = {
    "lognormal": lambda rng, cv, n: rng.lognormal(0.0, math.sqrt(math.log1p(cv**2)), n),
    "gamma": lambda rng, cv, n: rng.gamma(cv**-2, cv**2, n),
}


def false_verdicts(kind: str, cv: float, n: int, trials: int, draws: int = DRAWS) -> float:
    """How often one of two equal arms is called faster or slower."""
    rng = np.random.default_rng(1)
    draw = SECONDS[kind]
    found = [speed_ratio(draw(rng, cv, n), draw(rng, cv, n), draws=draws) for _ in range(trials)]
    return float(np.mean([significant(each, 1.0, "faster", "slower") is not None for each in found]))


def real_seconds(runtime: Runtime, questions: Sequence[Question], seeds: Sequence[int]) -> list[list[float]]:
    """Tokens of the expert's own answers at temperature 1.5, which vary as seconds of real answers do; a list for each seed."""
    asked = [(question.conversation, {"rule": "strict", "block_size": 0, "temperature": 1.5, "max_tokens": 96}) for question in questions]
    return [
        [float(len(runtime.chat(words, **how, seed=1000 * seed + i).token_ids)) for i, (words, how) in enumerate(asked)] for seed in seeds
    ]


def facts() -> list[Question]:
    """The family of questions that the pair answers at the most different lengths."""
    return [question for question in built_in_questions() if question.family == "qa"]


def real_verdicts(answers: Sequence[Sequence[float]]) -> float:
    """How often one of two seeds is called faster, over all pairs of them."""
    pairs = list(combinations(answers, 2))
    return sum(significant(speed_ratio(*pair), 1.0, "faster", "slower") is not None for pair in pairs) / len(pairs)


def tables(trials: int) -> Iterator[str]:
    yield f"How sure the figures of 'speccascade bench' are: python scripts/verify/intervals.py --trials {trials}"
    yield "Right or wrong answers: how often the 95 % interval of the change holds the truth, and its mean width in points (exact sums)"
    cells = [(n, part, lost) for part in (*DISCORDANCE, *MORE_DISCORDANCE) for lost in LOSSES for n in QUALITY_SIZES]
    heading = ("questions", "right in one arm only %", "of these lost %", "holds the truth %", "mean width")
    yield _aligned(heading, [(n, 100 * part, 100 * lost, *_percent(*right_or_wrong(part, lost, n))) for n, part, lost in cells])
    yield f"Grades from 0 to 1, in {trials // 10} trials each: the same"
    figures = [(kind, n, *_percent(*graded(kind, n, trials // 10))) for kind in GRADES for n in QUALITY_SIZES]
    yield _aligned(("grades", "questions", "holds the truth %", "mean width"), figures)
    yield f"Equal arms, seconds drawn anew for both, in {trials} trials each: how often one is called faster or slower, in %"
    found = [(kind, cv, *(f"{100 * false_verdicts(kind, cv, n, trials):.1f}" for n in SPEED_SIZES)) for kind in SECONDS for cv in SPREADS]
    yield _aligned(("seconds", "deviation / mean", *(f"{n} questions" for n in SPEED_SIZES)), found)

    with load(n_threads=1) as runtime:
        answers = real_seconds(runtime, facts(), range(SEEDS))
    yield "Equal arms, real answers: the bundled expert alone at temperature 1.5, tokens as seconds"
    yield f"The same over all pairs of {SEEDS} seeds, which share seeds, so that the shares are rough"
    sizes = (20, 40, len(answers[0]))
    shares = [f"{100 * real_verdicts([each[:n] for each in answers]):.1f}" for n in sizes]
    yield _aligned([f"{n} questions" for n in sizes], [shares])


def _percent(covered: float, width: float) -> tuple[str, str]:
    return f"{100 * covered:.1f}", f"{100 * width:.1f}"


def _aligned(heading: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    table = [heading, *([f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join("  ".join(map(str.rjust, line, widths)).rstrip() for line in table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="of each kind of seconds; default %(default)s")
    text = "\n\n".join(tables(parser.parse_args().trials)) + "\n"
    print(text, end="")
    OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
