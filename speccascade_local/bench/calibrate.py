"""Puts questions with known answers to both models of a pair, for whoever must know when the drafter's answer can be trusted.

Knows nothing of what the verdicts are used for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..common.errors import CatalogError, SettingError
from ..common.files import fingerprint
from ..common.pip import install_extra
from ..common.plots import check_writable, figure_class
from ..common.validation import finite_number
from ..rules.calibrated import Calibration, error_at
from ..rules.routes import Margin
from ..runtime.runtime import Runtime
from .questions import Question
from .run import prompts_of


def judge(
    runtime: Runtime, questions: Sequence[Question], *, max_tokens: int, on_step: Callable[[float], None] = lambda fraction: None
) -> list[Outcome]:
    """Ask every question of both models, greedily. Raises PromptError for one that cannot be asked, before any is."""
    outcomes = []
    for i, (question, prompt) in enumerate(zip(questions, prompts_of(runtime, questions))):
        drafted = runtime.generate(prompt, rule=Margin(0.0), max_tokens=max_tokens, fidelity=False)
        expert = runtime.generate(prompt, rule="strict", block_size=0, max_tokens=max_tokens, fidelity=False)
        assert drafted.confidence is not None
        outcomes.append(Outcome(1 - drafted.confidence, question.is_right(drafted.text), question.is_right(expert.text)))
        on_step((i + 1) / len(questions))
    return outcomes


def with_references(questions: Sequence[Question]) -> Sequence[Question]:
    """The questions. Raises CatalogError for one whose answer cannot be judged."""
    for question in questions:
        if not question.reference:
            raise CatalogError(f"question {question.id} has no reference, and only answers that can be judged help here; add one")
    return questions


#: Judged answers, 20 in each part. With so few, new answers fall 3 points short of the target on average
#: (docs/results/calibration_bias.txt).
FEWEST_ANSWERS = 60


class Outcome(NamedTuple):
    """One question: the drafter's uncertainty, and whether either model's answer was right."""

    uncertainty: float
    drafter_right: bool
    expert_right: bool


def fit(outcomes: Sequence[Outcome], *, drafter: Path, expert: Path, target: float | None = None, seed: int = 0) -> Calibration:
    """Fit on one third of the judged answers, choose the threshold on the next, and measure on the last what new answers get.

    The threshold is the largest whose accuracy on the second third reaches ``target``; None stands for the expert's own accuracy there.
    Raises SettingError when there are too few answers, when even asking the expert always does not reach the target, or without
    scikit-learn.
    """
    isotonic_regression = _regression_class(len(outcomes), target)
    order = np.random.default_rng(seed).permutation(len(outcomes))
    fitting, choosing, measuring = ([outcomes[i] for i in part] for part in np.array_split(order, 3))
    regression = isotonic_regression(y_min=0, y_max=1, out_of_bounds="clip")
    regression.fit([row.uncertainty for row in fitting], [not row.drafter_right for row in fitting])
    knots, errors = regression.X_thresholds_.tolist(), regression.y_thresholds_.tolist()

    def predicted(rows: Sequence[Outcome]) -> list[float]:
        return [error_at(row.uncertainty, knots, errors) for row in rows]

    wanted = _mean([row.expert_right for row in choosing]) if target is None else target
    threshold = _largest_threshold(choosing, predicted(choosing), wanted)
    seen = predicted(measuring)
    right = _route(measuring, seen, threshold)
    accuracy, low, high = wilson(sum(right), len(right))
    return Calibration(
        drafter=fingerprint(drafter),
        expert=fingerprint(expert),
        uncertainty=knots,
        error=errors,
        threshold=threshold,
        target_accuracy=wanted,
        accuracy=accuracy,
        accuracy_interval=(low, high),
        kept=_mean([error <= threshold for error in seen]),
        expert_accuracy=_mean([row.expert_right for row in measuring]),
        drafter_accuracy=_mean([row.drafter_right for row in measuring]),
        validation=[(error, not row.drafter_right) for row, error in zip(measuring, seen)],
        calibrated_on=len(fitting),
        chosen_on=len(choosing),
    )


def ready(answers: int, target: float | None, out: Path, picture: Path | None) -> None:
    """Refuse now what would be refused after all questions were asked. Raises as ``fit``, ``save`` and ``reliability_diagram`` do."""
    _regression_class(answers, target)
    if picture:
        figure_class(picture)
    for path in filter(None, (out, picture)):
        check_writable(path)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float, float]:
    """A share and its Wilson 95 % interval."""
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def _largest_threshold(rows: Sequence[Outcome], errors: Sequence[float], wanted: float) -> float:
    """With which at least the share ``wanted`` of these answers is right. Raises SettingError where none reaches it."""
    for threshold in sorted({-1.0, 1.0, *errors}, reverse=True):
        if _mean(_route(rows, errors, threshold)) >= wanted:
            return threshold
    raise SettingError(
        f"no threshold reaches an accuracy of {wanted:.3f} on the {len(rows)} answers that choose it; "
        f"the expert alone is right in {_mean([row.expert_right for row in rows]):.3f} of them; ask for less with --target"
    )


def _route(rows: Sequence[Outcome], errors: Sequence[float], threshold: float) -> list[bool]:
    """By answer: whether it is right, where the expert is asked above the threshold."""
    return [row.drafter_right if error <= threshold else row.expert_right for row, error in zip(rows, errors)]


def _regression_class(answers: int, target: float | None) -> Any:
    if target is not None:
        finite_number("the target accuracy", target, 0, 1, "between 0 and 1")
    if answers < FEWEST_ANSWERS:
        raise SettingError(f"{answers} judged answers are too few for a calibration; give at least {FEWEST_ANSWERS}")
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError:
        raise SettingError(f"fitting needs scikit-learn; install it: {install_extra('calibrate')}") from None
    return IsotonicRegression


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
