"""Learn from judged questions when the drafter's answer can be trusted."""

from __future__ import annotations

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
from .intervals import wilson
from .questions import Question
from .run import prompts_of

#: Judged answers, 20 in each part. With so few, new answers fall 3 points short of the target on average
#: (docs/results/calibration_bias.txt).
FEWEST_ANSWERS = 60


class Outcome(NamedTuple):
    """One question: the drafter's uncertainty, and whether either model's answer is right."""

    uncertainty: float
    drafter_right: bool
    expert_right: bool


def require_references(questions: Sequence[Question]) -> None:
    """Raise CatalogError if the answer to a question cannot be judged."""
    for question in questions:
        if not question.reference:
            raise CatalogError(f"question {question.id} has no reference, so its answer cannot be judged; add one")


def require_ready(answers: int, target: float | None, out: Path, picture: Path | None) -> None:
    """Raise now the errors of ``fit``, ``save`` and ``save_reliability_diagram`` that would come after all questions are asked."""
    _regression_class(answers, target)
    if picture:
        figure_class(picture)
    for path in filter(None, (out, picture)):
        check_writable(path)


def judge(
    runtime: Runtime, questions: Sequence[Question], *, max_tokens: int, on_step: Callable[[float], None] = lambda fraction: None
) -> list[Outcome]:
    """Ask both models every question, greedily, and return the outcomes. Raises PromptError first if one of them cannot be asked."""
    outcomes = []
    for i, (question, prompt) in enumerate(zip(questions, prompts_of(runtime, questions))):
        drafted = runtime.generate(prompt, rule=Margin(0.0), max_tokens=max_tokens, fidelity=False)
        expert = runtime.generate(prompt, rule="strict", block_size=0, max_tokens=max_tokens, fidelity=False)
        assert drafted.confidence is not None
        outcomes.append(Outcome(1 - drafted.confidence, question.is_right(drafted.text), question.is_right(expert.text)))
        on_step((i + 1) / len(questions))
    return outcomes


def fit(outcomes: Sequence[Outcome], *, drafter: Path, expert: Path, target: float | None = None, seed: int = 0) -> Calibration:
    """Fit on one third of the answers, choose the threshold on the next, and measure on the last.

    The threshold is the largest whose accuracy on the second third reaches the target.

    Args:
        outcomes: The judged answers.
        drafter: The drafter's file.
        expert: The expert's file.
        target: The accuracy to reach; None for the expert's own on the second third.
        seed: Of the split.

    Raises:
        SettingError: For too few answers, for a target that even the expert alone does not reach, or without scikit-learn.
    """
    isotonic_regression = _regression_class(len(outcomes), target)
    order = np.random.default_rng(seed).permutation(len(outcomes))
    fitting, choosing, measuring = ([outcomes[i] for i in part] for part in np.array_split(order, 3))
    regression = isotonic_regression(y_min=0, y_max=1, out_of_bounds="clip")
    regression.fit([row.uncertainty for row in fitting], [not row.drafter_right for row in fitting])
    knots, errors = regression.X_thresholds_.tolist(), regression.y_thresholds_.tolist()

    def predict(rows: Sequence[Outcome]) -> list[float]:
        return [error_at(row.uncertainty, knots, errors) for row in rows]

    goal = _mean([row.expert_right for row in choosing]) if target is None else target
    threshold = _largest_threshold(choosing, predict(choosing), goal)
    predictions = predict(measuring)
    right = _route(measuring, predictions, threshold)
    accuracy, low, high = wilson(sum(right), len(right))
    return Calibration(
        drafter=fingerprint(drafter),
        expert=fingerprint(expert),
        uncertainty=knots,
        error=errors,
        threshold=threshold,
        target_accuracy=goal,
        accuracy=accuracy,
        accuracy_interval=(low, high),
        kept=_mean([error <= threshold for error in predictions]),
        expert_accuracy=_mean([row.expert_right for row in measuring]),
        drafter_accuracy=_mean([row.drafter_right for row in measuring]),
        validation=[(error, not row.drafter_right) for row, error in zip(measuring, predictions)],
        calibrated_on=len(fitting),
        chosen_on=len(choosing),
    )


def _largest_threshold(rows: Sequence[Outcome], errors: Sequence[float], target: float) -> float:
    """Return the largest threshold with which at least this share of the answers is right. Raises SettingError if there is none."""
    for threshold in sorted({-1.0, 1.0, *errors}, reverse=True):
        if _mean(_route(rows, errors, threshold)) >= target:
            return threshold
    raise SettingError(
        f"no threshold reaches an accuracy of {target:.3f} on the {len(rows)} answers that choose it; "
        f"the expert alone is right in {_mean([row.expert_right for row in rows]):.3f} of them; lower --target"
    )


def _route(rows: Sequence[Outcome], errors: Sequence[float], threshold: float) -> list[bool]:
    """Return for each answer whether it is right, if the expert is asked above the threshold."""
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
