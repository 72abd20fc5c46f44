"""``speccascade tune``: what the user asks for, what was found, and where it is written. How it is found is bench/tune.py's business."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...bench import grid, questions, run
from ...bench import tune as search
from ...bench.export import points
from ...bench.rows import Row
from ...common.errors import CatalogError, SettingError
from ...models import catalog
from ...models.catalog import Pair
from ...models.catalog_edit import add_pair, entry_of, set_rule
from ...runtime.settings import DEFAULTS
from .. import options
from ..load import load_with_progress, progress, set_log_level
from ..terminal import stdout

#: Answers of each way from which draft lengths are learnt before anything counts.
WARM_UP = 4


def tune(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    max_quality_loss: Annotated[str | None, typer.Option(help="Right answers that may be lost, such as 2%.")] = None,
    expert_share: Annotated[str | None, typer.Option(help="Expert calls per token at most, such as 30%.")] = None,
    budget: Annotated[float | None, typer.Option(help="Mean distance from the expert at most (total variation), such as 0.02.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Times as fast as the expert alone at least, such as 2.")] = None,
    rules: Annotated[str, typer.Option(help="Candidates; a name alone is tried at every alpha.")] = "token_v3,opt,diff",
    alphas: Annotated[str, typer.Option(help="Dials for rules that were named without one.")] = "0.1,0.2,0.4,0.6,0.8",
    temperature: options.Heat = DEFAULTS.temperature,
    questions_file: options.QuestionsFile = None,
    per_family: options.PerFamily = None,
    max_tokens: options.MaxTokens = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the two parts, and of the first question.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell; leave models.yaml as it is.")] = False,
    verbose: options.Verbose = 0,
) -> None:
    """Find the rule and the dial that give what you ask for on this machine, and write them into models.yaml.

    Arms that cannot win leave the race early; the best are confirmed on questions that took no part in the choice. A limit counts as kept
    only where the whole 95 % interval there keeps it; else strict is written. Without references agreement with the expert's own text
    stands for quality.
    """
    set_log_level(verbose)
    goal = search.Goal(_share("--max-quality-loss", max_quality_loss), _share("--expert-share", expert_share), budget, min_speedup)
    candidates = grid.parse_rules(rules, grid.parse_list(alphas, float, "--alphas", "0.2,0.4"))
    settings = replace(DEFAULTS, max_tokens=max_tokens)
    grid.grid(candidates, ["auto"], [temperature], settings)  # refused before anything is loaded
    asked = questions.choose_questions(questions_file, per_family)
    choose_by, confirm_by = search.split(len(asked), [question.family for question in asked], seed)
    named = options.pair_of(pair, chosen)
    try:
        search.require_enough(goal, len(confirm_by))
    except SettingError as error:
        if not dry_run:
            more = "--per-family asks more of the built-in questions; " if questions_file is None else ""
            raise SettingError(f"{error}; {more}--dry-run only looks") from None
        stdout.print(f"({error})", highlight=False, soft_wrap=True)
    target = None if dry_run else _target(named)
    with load_with_progress(pair, chosen, verbose) as runtime:
        arms = grid.grid([runtime.rule, *candidates], ["auto"], [temperature], settings)
        arms = [arm for arm in arms if arm.settings.min_p == 0]
        prompts = run.prompts_of(runtime, asked)
        with progress(verbose) as bar:
            task = bar.add_task("warming up", total=1.0)
            runtime.start_from(run.warm_up(runtime, [prompts[place] for place in choose_by], arms, WARM_UP))
            experts: dict[int, str] = {}

            def ask(arm: grid.Arm, place: int) -> Row:
                row = run.row_of(runtime, asked[place], prompts[place], arm, repetition=0, seed=seed + place)
                if arm.name == grid.BASE:
                    experts[place] = row["text"]
                if row["quality"] is None:
                    row["quality"] = float(row["text"] == experts[place])
                return row

            found = search.tune(
                arms, choose_by, confirm_by, ask, goal, lambda doing, fraction: bar.update(task, description=doing, completed=fraction)
            )
    for trial in found.trials:
        stdout.print(f"{trial.arm.method}: {_measured_line(trial, goal, asked)}", highlight=False, soft_wrap=True)
        stdout.print(f"({_excluded_line(trial)})", highlight=False, soft_wrap=True)
    if found.chosen:
        rule, grounds = str(found.chosen.arm.method), _measured_line(found.chosen, goal, asked)
    else:
        rule, grounds = "strict", found.why
        stdout.print(f"{found.why}: strict, which is lossless", highlight=False, soft_wrap=True)
        if found.trials and found.trials[-1].faster:
            stdout.print(f"to use it all the same: --rule {found.trials[-1].arm.method}", highlight=False, soft_wrap=True)
    told = (
        f"({found.asked} answers to choose by; {found.left} of {len(arms) - 1} ways in the race to its end, "
        f"{len(found.trials)} measured on other questions)"
    )
    stdout.print(told, highlight=False, soft_wrap=True)
    if target is not None:
        _write(target, named, rule, f"tuned: {grounds}")
        stdout.print(f"written: rule {rule} of {named.name} in {target}", highlight=False, soft_wrap=True)


def _measured_line(trial: search.Trial, goal: search.Goal, asked: Sequence[questions.Question]) -> str:
    """What the arm showed on the questions that took no part in the choice, in one line."""
    arm, judged = trial.measured.summary, sum(bool(question.reference) for question in asked)
    measure = (
        "quality" if judged == len(asked) else "quality, or agreement where nothing is known," if judged else "agreement with the expert"
    )
    told = [f"{arm.speedup} × as fast as the expert"]
    if arm.quality_gain is not None:
        told.append(f"{measure} {points(arm.quality_gain)} points")
    distance = trial.measured.tv
    if goal.budget is not None and distance is not None:
        told.append(f"distance from the expert {distance.value:.3f} [{distance.low:.3f}, {distance.high:.3f}]")
    if goal.expert_share is not None:
        told.append(f"{trial.measured.calls} expert calls per token")
    if judged < len(asked) and arm.logprob is not None:
        told.append(f"log p {arm.logprob:.2f} per token by the expert")
    return ", ".join([*told, f"{arm.n} questions"])


def _excluded_line(trial: search.Trial) -> str:
    """The loss that the questions cannot exclude, and how many questions would show what they do not."""
    gain, told = trial.measured.gain, []
    if gain is not None and gain.exact:
        told.append("it loses nothing, by definition")
    elif gain is not None:
        told.append(f"it may lose up to {max(0.0, -100 * gain.low):.1f} points, as far as {gain.n} questions can tell")
    if not trial.shown:
        many = "no number of questions" if trial.enough is None else f"about {search.in_all(trial.enough)} questions in all"
        told.append(f"the limits are not shown to be kept; {many} would show it, if they went as these did")
    return "; ".join(told)


def _share(name: str, text: str | None) -> float | None:
    """``"1%"`` or ``"0.01"`` -> 0.01. Raises SettingError."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise SettingError(f"{name} is {text!r:.20}; it must be a share, such as 1% or 0.01") from None


def _target(pair: Pair) -> Path:
    """The file to write into, looked at before hours of asking: a pair of the package goes into the user's own, which is read first.

    Raises SettingError and CatalogError.
    """
    if pair.source is None:
        raise SettingError(
            "two files have no entry in a models.yaml to write into; make one and name the pair, or only look, with --dry-run"
        )
    target = catalog.user_file() if pair.source == catalog.packaged_file() else pair.source
    if target.exists() and not os.access(target, os.W_OK):
        raise CatalogError(f"{target}: may not be written to; change its permissions, or only look, with --dry-run")
    return target


def _write(target: Path, pair: Pair, rule: str, comment: str) -> None:
    if pair.source == target or (target.exists() and pair.name in catalog.read_file(target)):
        set_rule(target, pair.name, rule, comment=comment)
    else:
        entry = {key: value for key, value in entry_of(catalog.packaged_file(), pair.name).items() if key != "rule"}
        add_pair(target, pair.name, {**entry, "rule": rule}, comment=comment)
