"""``speccascade calibrate``: learn from judged questions when the drafter can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...bench.calibrate import fit, judge, require_ready, require_references
from ...bench.charts import save_reliability_diagram
from ...bench.questions import read_questions
from ...common.errors import SettingError
from ...rules.calibrated import Calibrated
from ...runtime.settings import DEFAULTS
from .. import options
from ..load import load_with_progress, progress_of, set_log_level


def run(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    questions_file: Annotated[Path, typer.Option("--questions", help="JSONL with prompt or messages, reference and metric.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="File for the calibration; use it as --rule calibrated:FILE.")] = ...,  # type: ignore[assignment]
    picture: Annotated[Path | None, typer.Option(help="Draw the reliability diagram, .png or .svg.")] = None,
    target: Annotated[
        float | None, typer.Option(min=0, max=1, show_default="the expert's own", help="Accuracy that the threshold must reach.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split into three parts.")] = 0,
    max_tokens: options.MaxTokens = DEFAULTS.max_tokens,
    verbose: options.Verbose = 0,
) -> None:
    """Learn from judged questions when the drafter's whole answer can be trusted (needs the extra calibrate)."""
    set_log_level(verbose)
    questions = read_questions(questions_file)
    require_references(questions)
    require_ready(len(questions), target, out, picture)  # before hours of asking
    with load_with_progress(pair, chosen, verbose, rule="strict", profile=False) as runtime:
        if "drafter" not in runtime.pair.files:
            raise SettingError(f"a calibration needs two model files, and the drafter is {runtime.pair.drafter}; name a drafter file")
        with progress_of("asking", verbose) as on_step:
            outcomes = judge(runtime, questions, max_tokens=max_tokens, on_step=on_step)
        calibration = fit(outcomes, drafter=runtime.pair.drafter, expert=runtime.pair.expert, target=target, seed=seed)
    calibration.save(out)
    if picture:
        save_reliability_diagram(picture, calibration)
    assert calibration.accuracy_interval is not None
    low, high = calibration.accuracy_interval
    print(f"fitted on {calibration.calibrated_on} answers; the threshold is chosen on {calibration.chosen_on} others:")
    print(f"  ask the expert where the drafter is wrong with probability above {calibration.threshold:.3f}")
    print(f"measured on the remaining {len(calibration.validation)} answers:")
    print(f"  right answers {calibration.accuracy:.1%} [{low:.1%}, {high:.1%}], target {calibration.target_accuracy:.1%}")
    print(f"  the drafter answers {calibration.kept:.1%} alone")
    print(f"  the expert alone {calibration.expert_accuracy:.1%}, the drafter alone {calibration.drafter_accuracy:.1%}")
    print(f"use it with: --rule {Calibrated.name}:{out}")
