"""Calibrated routing: how often the drafter is wrong at a given uncertainty, learnt from answers that were judged.

An isotonic fit maps the uncertainty u = 1 - mean margin to the probability of a wrong answer. The expert is asked where that is above
a threshold, chosen on other answers than the fit. What the calibration says of itself comes from a third part of the answers. Saved as
JSON together with the fingerprints of the two model files, because a calibration says nothing of any other pair. Fitting needs
scikit-learn and drawing matplotlib (the extra ``calibrate``); using a calibration needs neither.
Source: arXiv 2605.18796 (UCCI). Knows nothing of how the answers were made or judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..common.errors import CatalogError, SettingError
from ..common.files import fingerprint, read_text
from ..common.yaml_files import problem
from .routes import Route, Signals

Share = Annotated[float, Field(ge=0, le=1)]
#: Bytes of a file, and entries of a list in it: of a hundred times as many judged answers as anyone has.
MOST_BYTES, MOST_ENTRIES = 16 << 20, 200_000
Shares = Annotated[list[Share], Field(max_length=MOST_ENTRIES, fail_fast=True)]


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
        return error_at(uncertainty, self.uncertainty, self.error)

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
            return cls.model_validate_json(read_text(path, MOST_BYTES))
        except CatalogError as error:
            raise CatalogError(f"{error}; a calibration is made with 'speccascade calibrate'") from error
        except ValidationError as error:
            raise CatalogError(f"{path}: not a calibration: {problem(error)}; make it anew with 'speccascade calibrate'") from error


@dataclass(frozen=True)
class Calibrated(Route):
    """Keep the drafter's answer iff its calibrated probability of being wrong <= the threshold in the file at ``path``."""

    path: str
    calibration: Calibration = field(init=False, compare=False, repr=False)

    name = "calibrated"
    trade = "the small model's whole answer or the large one's, by a threshold learnt from your own questions"
    example = "pair.json"
    lossless = "a file whose threshold is -1"
    keeps_every_draft = "a file whose threshold is 1"
    at_temperature_0 = "the same test, over the greedy answer, which is what a calibration is made of"
    source = "arXiv 2605.18796 (UCCI)"

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


def error_at(uncertainty: float, knots: Sequence[float], errors: Sequence[float]) -> float:
    """Nine digits, so that 1 - error, which routes are compared by, orders answers just as the error does."""
    return round(float(np.interp(uncertainty, knots, errors)), 9)
