"""Calibrated routing: how often the drafter is wrong at a given uncertainty, learnt from answers that were judged.

An isotonic fit maps the uncertainty u = 1 - mean margin to the probability of a wrong answer; the expert is asked where that is above
a threshold, chosen on other answers than the fit. Saved as JSON together with the fingerprints of the two model files, because a
calibration says nothing of any other pair. Fitting needs scikit-learn and drawing matplotlib (the extra ``calibrate``); using a
calibration needs neither.
Source: arXiv 2605.18796 (UCCI). Knows nothing of how the answers were made or judged.
"""

from __future__ import annotations

import json
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

#: Fewer judged answers than this, in both splits together, say too little to choose a threshold by.
FEWEST_ANSWERS = 20
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
    """The file. ``uncertainty`` and ``error`` are the knots of the fit, straight lines between them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    drafter: str
    expert: str
    uncertainty: Shares
    error: Shares
    threshold: Annotated[float, Field(ge=-1, le=1)]  # ask the expert where the error is above; -1: always
    target_accuracy: Share
    accuracy: Share  # of the cascade, on the validation split
    kept: Share  # the part of the validation split that the drafter answered
    expert_accuracy: Share
    drafter_accuracy: Share
    validation: Annotated[
        list[tuple[Share, bool]], Field(min_length=1, max_length=MOST_ENTRIES, fail_fast=True)
    ]  # predicted error, and whether the drafter was wrong
    calibrated_on: int

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
    trade: ClassVar[str] = "the small model's whole answer or the large one's, at the accuracy that you asked for on your own questions"
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
    """Fit on one half of the judged answers, choose the threshold on the other: the largest whose accuracy there reaches ``target``.

    target: None for the expert's own accuracy on that half. Raises SettingError when there are too few answers, when even asking
    the expert always does not reach the target, or without scikit-learn.
    """
    isotonic_regression = _regression_class(len(outcomes), target)
    order = np.random.default_rng(seed).permutation(len(outcomes))
    halves = [[outcomes[i] for i in part] for part in np.array_split(order, 2)]
    calibrating, validating = halves
    regression = isotonic_regression(y_min=0, y_max=1, out_of_bounds="clip")
    regression.fit([row.uncertainty for row in calibrating], [not row.drafter_right for row in calibrating])
    knots, errors = regression.X_thresholds_.tolist(), regression.y_thresholds_.tolist()
    predicted = [_error_at(row.uncertainty, knots, errors) for row in validating]
    wanted = _mean([row.expert_right for row in validating]) if target is None else target
    best = -1.0
    for best in sorted({-1.0, 1.0, *predicted}, reverse=True):
        accuracy = _mean([row.drafter_right if error <= best else row.expert_right for row, error in zip(validating, predicted)])
        if accuracy >= wanted:
            break
    else:
        raise SettingError(
            f"no threshold reaches an accuracy of {wanted:.3f} on the {len(validating)} validation answers; "
            f"the expert alone is right in {_mean([row.expert_right for row in validating]):.3f} of them; ask for less with --target"
        )
    return Calibration(
        drafter=fingerprint(drafter),
        expert=fingerprint(expert),
        uncertainty=knots,
        error=errors,
        threshold=best,
        target_accuracy=wanted,
        accuracy=accuracy,
        kept=_mean([error <= best for error in predicted]),
        expert_accuracy=_mean([row.expert_right for row in validating]),
        drafter_accuracy=_mean([row.drafter_right for row in validating]),
        validation=[(error, not row.drafter_right) for row, error in zip(validating, predicted)],
        calibrated_on=len(calibrating),
    )


def ready(answers: int, target: float | None, out: Path, picture: Path | None) -> None:
    """Refuse now what would be refused after all questions were asked. Raises as ``fit``, ``save`` and ``reliability_diagram`` do."""
    _regression_class(answers, target)
    if picture:
        figure_class(picture)
    for path in filter(None, (out, picture)):
        writable(path)


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
