"""Calibrated routing: how often the drafter is wrong at a given uncertainty, learnt from answers that were judged.

An isotonic fit maps the uncertainty u = 1 - mean margin to the probability of a wrong answer. The expert is asked where that is above
a threshold, chosen on other answers than the fit. What the calibration says of itself comes from a third part of the answers. Saved as
JSON together with the fingerprints of the two model files, because a calibration says nothing of any other pair. Fitting needs
scikit-learn and drawing matplotlib (the extra ``calibrate``); using a calibration needs neither.
Source: arXiv 2605.18796 (UCCI). Knows nothing of how the answers were made or judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .checked_yaml import problem
from .checks import fingerprint, finite_number, text_of
from .errors import CatalogError, SettingError
from .figures import figure_class, writable
from .routing import Route, Signals

#: Judged answers, 20 in each part. With so few, new answers fall 3 points short of the target on average
#: (docs/results/calibration_bias.txt).
FEWEST_ANSWERS = 60
Share = Annotated[float, Field(ge=0, le=1)]
#: Bytes of a file, and entries of a list in it: of a hundred times as many judged answers as anyone has.
MOST_BYTES, MOST_ENTRIES = 16 << 20, 200_000
Shares = Annotated[list[Share], Field(max_length=MOST_ENTRIES, fail_fast=True)]


class Outcome(NamedTuple):
    """One question: the drafter's uncertainty, and whether either model's answer was right."""

    uncertainty: float
    drafter_right: bool
    expert_right: bool


class Calibration(BaseModel):
    """The file. ``uncertainty`` and ``error`` are the knots of the fit, straight lines between them.

    accuracy, kept, expert_accuracy, drafter_accuracy and validation are of answers that neither the fit nor the threshold has seen.
    In files without an ``accuracy_interval``, of earlier versions, the threshold was chosen on these answers: their accuracy is too high.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    drafter: str
    expert: str
    uncertainty: Shares
    error: Shares
    threshold: Annotated[float, Field(ge=-1, le=1)]  # ask the expert where the error is above; -1: always
    target_accuracy: Share
    accuracy: Share  # of the cascade
    accuracy_interval: tuple[Share, Share] | None = None  # 95 %
    kept: Share  # the part that the drafter answered
    expert_accuracy: Share
    drafter_accuracy: Share
    validation: Annotated[
        list[tuple[Share, bool]], Field(min_length=1, max_length=MOST_ENTRIES, fail_fast=True)
    ]  # predicted error, and whether the drafter was wrong
    calibrated_on: int  # answers of the fit
    chosen_on: int | None = None  # answers of the threshold

    @model_validator(mode="after")
    def _sound(self) -> Calibration:
        if len(self.uncertainty) != len(self.error) or not self.error:
            raise ValueError("uncertainty and error must be equally many knots, at least one")
        if sorted(self.uncertainty) != self.uncertainty or sorted(self.error) != self.error:
            raise ValueError("uncertainty and error must not decrease")
        return self

    def error_at(self, uncertainty: float) -> float:
        """The probability that the drafter's answer is wrong."""
        return _error_at(uncertainty, self.uncertainty, self.error)

    def save(self, path: Path) -> None:
        """Write the file. Raises CatalogError."""
        try:
            path.write_text(json.dumps(self.model_dump(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise CatalogError(f"{path}: cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read the file. Raises CatalogError."""
        try:
            return cls.model_validate_json(text_of(path, MOST_BYTES))
        except CatalogError as error:
            raise CatalogError(f"{error}; a calibration is made with 'speccascade calibrate'") from error
        except ValidationError as error:
            raise CatalogError(f"{path}: not a calibration: {problem(error)}; make it anew with 'speccascade calibrate'") from error


@dataclass(frozen=True)
class Calibrated(Route):
    """Keep the drafter's answer iff its calibrated probability of being wrong <= the threshold in the file at ``path``.

    Lossless: a file whose threshold is -1
    Keeps every draft: a file whose threshold is 1
    Temperature 0: the same test, over the greedy answer, which is what a calibration is made of
    Source: arXiv 2605.18796 (UCCI)
    """

    path: str
    calibration: Calibration = field(init=False, compare=False, repr=False)

    name: ClassVar[str] = "calibrated"
    trade: ClassVar[str] = "the small model's whole answer or the large one's, by a threshold learnt from your own questions"
    example: ClassVar[str] = "pair.json"

    def __post_init__(self) -> None:
        object.__setattr__(self, "calibration", Calibration.load(Path(self.path).expanduser()))

    def __str__(self) -> str:
        return f"{self.name}:{self.path}"

    @property
    def threshold(self) -> float:  # type: ignore[override]
        """The least probability of a right answer with which the drafter's answer stands."""
        return 1 - self.calibration.threshold

    def score(self, signals: Signals) -> float:
        return 1 - self.calibration.error_at(1 - float(signals.margins.mean()))

    def check_pair(self, drafter: Path, expert: Path) -> None:
        for role, path in (("drafter", drafter), ("expert", expert)):
            try:
                seen = fingerprint(path)
            except OSError as error:  # it was there when the pair was loaded
                raise SettingError(f"{path}: cannot be read ({error.strerror}) to tell whether {self.path} is of this pair") from error
            if getattr(self.calibration, role) != seen:
                raise SettingError(
                    f"{self.path}: this calibration is of another pair: its {role} is not {path.name}; "
                    "make one for this pair with 'speccascade calibrate'"
                )


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
        return [_error_at(row.uncertainty, knots, errors) for row in rows]

    wanted = _mean([row.expert_right for row in choosing]) if target is None else target
    threshold = _largest_threshold(choosing, predicted(choosing), wanted)
    seen = predicted(measuring)
    right = _routed(measuring, seen, threshold)
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
        writable(path)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float, float]:
    """A share and its Wilson 95 % interval."""
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def _largest_threshold(rows: Sequence[Outcome], errors: Sequence[float], wanted: float) -> float:
    """With which at least the share ``wanted`` of these answers is right. Raises SettingError where none reaches it."""
    for threshold in sorted({-1.0, 1.0, *errors}, reverse=True):
        if _mean(_routed(rows, errors, threshold)) >= wanted:
            return threshold
    raise SettingError(
        f"no threshold reaches an accuracy of {wanted:.3f} on the {len(rows)} answers that choose it; "
        f"the expert alone is right in {_mean([row.expert_right for row in rows]):.3f} of them; ask for less with --target"
    )


def _routed(rows: Sequence[Outcome], errors: Sequence[float], threshold: float) -> list[bool]:
    """By answer: whether it is right, where the expert is asked above the threshold."""
    return [row.drafter_right if error <= threshold else row.expert_right for row, error in zip(rows, errors)]


def _error_at(uncertainty: float, knots: Sequence[float], errors: Sequence[float]) -> float:
    """Nine digits, so that 1 - error, which routes are compared by, orders answers just as the error does."""
    return round(float(np.interp(uncertainty, knots, errors)), 9)


def _regression_class(answers: int, target: float | None) -> Any:
    if target is not None:
        finite_number("the target accuracy", target, 0, 1, "between 0 and 1")
    if answers < FEWEST_ANSWERS:
        raise SettingError(f"{answers} judged answers are too few for a calibration; give at least {FEWEST_ANSWERS}")
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError:
        raise SettingError("fitting needs scikit-learn; install the extra: in the checkout, pip install '.[calibrate]'") from None
    return IsotonicRegression


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
