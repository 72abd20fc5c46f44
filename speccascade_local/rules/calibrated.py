"""Calibrated routing: how often the drafter is wrong at a given uncertainty, learned from graded answers.

An isotonic fit maps the uncertainty u = 1 - mean margin to the probability of a wrong answer. The expert is asked where that is above
a threshold. Fit, threshold and the reported accuracy come from three separate parts of the answers. The JSON file names the fingerprints
of both model files, because a calibration is valid for one pair only. Fitting needs the extra ``calibrate``; using a calibration does not.
Source: arXiv 2605.18796 (UCCI).
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
#: The largest file and the longest list in it: room for far more graded answers than a calibration needs.
MAX_BYTES, MAX_ENTRIES = 16 << 20, 200_000
Shares = Annotated[list[Share], Field(max_length=MAX_ENTRIES, fail_fast=True)]
Verdicts = Annotated[list[tuple[Share, bool]], Field(min_length=1, max_length=MAX_ENTRIES, fail_fast=True)]


class Calibration(BaseModel):
    """A calibration file.

    ``uncertainty`` and ``error`` are the knots of the fit, which is linear between them. accuracy, kept, expert_accuracy,
    drafter_accuracy and validation are of answers that neither the fit nor the threshold used. Files of earlier versions, without an
    ``accuracy_interval``, chose the threshold on these answers: their accuracy is too high.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    drafter: str
    expert: str
    uncertainty: Shares
    error: Shares
    threshold: Annotated[float, Field(ge=-1, le=1)]  # the expert is asked where the error is above it; -1: always
    target_accuracy: Share
    accuracy: Share  # of the cascade
    accuracy_interval: tuple[Share, Share] | None = None  # 95 %
    kept: Share  # of the answers, by the drafter
    expert_accuracy: Share
    drafter_accuracy: Share
    validation: Verdicts  # predicted error, and whether the drafter was wrong
    calibrated_on: int  # number of answers for the fit
    chosen_on: int | None = None  # number of answers for the threshold

    @model_validator(mode="after")
    def _sound(self) -> Calibration:
        if len(self.uncertainty) != len(self.error) or not self.error:
            raise ValueError("uncertainty and error must have the same number of knots, at least one")
        if sorted(self.uncertainty) != self.uncertainty or sorted(self.error) != self.error:
            raise ValueError("uncertainty and error must not decrease")
        return self

    def error_at(self, uncertainty: float) -> float:
        """Return the probability that the drafter's answer is wrong."""
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
            return cls.model_validate_json(read_text(path, MAX_BYTES))
        except CatalogError as error:
            raise CatalogError(f"{error}; make a calibration with 'speccascade calibrate'") from error
        except ValidationError as error:
            raise CatalogError(f"{path}: not a calibration: {problem(error)}; make a new one with 'speccascade calibrate'") from error


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
        """The lowest probability of a right answer with which the drafter's answer is kept."""
        return 1 - self.calibration.threshold

    def score(self, signals: Signals) -> float:
        return 1 - self.calibration.error_at(1 - float(signals.margins.mean()))

    def check_pair(self, drafter: Path, expert: Path) -> None:
        for role, path in (("drafter", drafter), ("expert", expert)):
            try:
                digest = fingerprint(path)
            except OSError as error:  # it was there when the pair was loaded
                raise SettingError(f"{path}: cannot be read ({error.strerror}), so {self.path} cannot be checked") from error
            if getattr(self.calibration, role) != digest:
                raise SettingError(
                    f"{self.path}: this calibration is for another pair: its {role} is not {path.name}; "
                    "make one for this pair with 'speccascade calibrate'"
                )


def error_at(uncertainty: float, knots: Sequence[float], errors: Sequence[float]) -> float:
    """Return the fitted error at an uncertainty, to nine digits, so that 1 - error orders answers exactly as the error does."""
    return round(float(np.interp(uncertainty, knots, errors)), 9)
