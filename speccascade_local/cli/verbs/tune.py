"""``speccascade tune``: find the rule for what the user asks for, and write it into models.yaml."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...bench import grid, questions
from ...bench.export import points
from ...bench.goal import Goal
from ...bench.rows import Row
from ...bench.run import prompts_of, row_of, warm_up
from ...bench.tune import Trial, require_enough, split, total_questions, tune
from ...common.errors import CatalogError, SettingError
from ...models import catalog
from ...models.catalog import Pair
from ...models.catalog_edit import add_pair, entry_of, set_rule
from ...runtime.settings import DEFAULTS
from .. import options
from ..load import load_with_progress, progress, set_log_level
from ..terminal import stdout

#: Unmeasured answers of each arm, from which it learns its lengths.
WARM_UP = 4


def run(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    max_quality_loss: Annotated[str | None, typer.Option(help="Largest loss of right answers, such as 2%.")] = None,
    expert_share: Annotated[str | None, typer.Option(help="Largest number of expert calls per token, such as 30%.")] = None,
    budget: Annotated[float | None, typer.Option(help="Largest mean distance from the expert (total variation), such as 0.02.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Smallest speed-up over the expert alone, such as 2.")] = None,
    rules: Annotated[str, typer.Option(help="Candidates; a name alone stands for every alpha.")] = "token_v3,opt,diff",
    alphas: Annotated[str, typer.Option(help="Dials for the rules that are named without one.")] = "0.1,0.2,0.4,0.6,0.8",
    temperature: options.Temperature = DEFAULTS.temperature,
    questions_file: options.QuestionsFile = None,
    per_family: options.PerFamily = None,
    max_tokens: options.MaxTokens = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, and of the first question.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the result; do not change models.yaml.")] = False,
    verbose: options.Verbose = 0,
) -> None:
    """Find the rule and the dial that give what you ask for on this machine, and write them into models.yaml.

    Rules that cannot win leave the race early; the best are confirmed on questions that took no part in the choice. A limit counts as
    kept only if the whole 95 % interval there keeps it; else strict is written. Without references, agreement with the expert's own text
    stands for quality.
    """
    set_log_level(verbose)
    loss, share = _share("--max-quality-loss", max_quality_loss), _share("--expert-share", expert_share)
    goal = Goal(max_quality_loss=loss, expert_share=share, budget=budget, min_speedup=min_speedup)
    candidates = grid.parse_rules(rules, grid.parse_list(alphas, float, "--alphas", "0.2,0.4"))
    settings = replace(DEFAULTS, max_tokens=max_tokens)
    grid.grid(candidates, ["auto"], [temperature], settings)  # raises before anything is loaded
    selection = questions.choose_questions(questions_file, per_family)
    choose_by, confirm_by = split(len(selection), [question.family for question in selection], seed)
    named = options.pair_of(pair, chosen)
    try:
        require_enough(goal, len(confirm_by))
    except SettingError as error:
        if not dry_run:
            hint = "--per-family asks more of the built-in questions; " if questions_file is None else ""
            raise SettingError(f"{error}; {hint}--dry-run only looks") from None
        _print_line(f"({error})")
    target = None if dry_run else _target(named)  # before hours of asking
    with load_with_progress(pair, chosen, verbose) as runtime:
        arms = grid.grid([runtime.rule, *candidates], ["auto"], [temperature], settings)
        arms = [arm for arm in arms if arm.settings.min_p == 0]
        prompts = prompts_of(runtime, selection)
        with progress(verbose) as bar:
            task = bar.add_task("warming up", total=1.0)
            runtime.start_from(warm_up(runtime, [prompts[index] for index in choose_by], arms, WARM_UP))
            expert_texts: dict[int, str] = {}

            def ask(arm: grid.Arm, index: int) -> Row:
                row = row_of(runtime, selection[index], prompts[index], arm, repetition=0, seed=seed + index)
                if arm.name == grid.BASE:
                    expert_texts[index] = row["text"]
                if row["quality"] is None:
                    row["quality"] = float(row["text"] == expert_texts[index])
                return row

            choice = tune(
                arms, choose_by, confirm_by, ask, goal, lambda work, fraction: bar.update(task, description=work, completed=fraction)
            )
    for trial in choice.trials:
        _print_line(f"{trial.arm.method}: {_describe_result(trial, goal, selection)}")
        _print_line(f"({_describe_uncertainty(trial)})")
    if choice.winner:
        rule, reason = str(choice.winner.arm.method), _describe_result(choice.winner, goal, selection)
    else:
        rule, reason = "strict", choice.reason
        _print_line(f"{reason}; the rule is strict, which is lossless")
        if choice.trials and choice.trials[-1].is_faster:
            _print_line(f"to use it anyway: --rule {choice.trials[-1].arm.method}")
    confirmations = f"{len(choice.trials)} measured on other questions"
    _print_line(f"({choice.answers} answers to choose by; {choice.finalists} of {len(arms) - 1} arms left at the end, {confirmations})")
    if target is not None:
        _write(target, named, rule, f"tuned: {reason}")
        _print_line(f"written: rule {rule} of {named.name} in {target}")


def _print_line(text: str) -> None:
    stdout.print(text, soft_wrap=True)


def _describe_result(trial: Trial, goal: Goal, selection: Sequence[questions.Question]) -> str:
    """Return the figures of an arm on the questions that confirm, in one line."""
    arm, graded = trial.result.summary, sum(bool(question.reference) for question in selection)
    if graded == len(selection):
        measure = "quality"
    else:
        measure = "quality, or agreement without a reference," if graded else "agreement with the expert"
    figures = [f"{arm.speedup} × as fast as the expert"]
    if arm.quality_gain is not None:
        figures.append(f"{measure} {points(arm.quality_gain)} points")
    distance = trial.result.tv
    if goal.budget is not None and distance is not None:
        figures.append(f"distance from the expert {distance.value:.3f} [{distance.low:.3f}, {distance.high:.3f}]")
    if goal.expert_share is not None:
        figures.append(f"{trial.result.calls} expert calls per token")
    if graded < len(selection) and arm.logprob is not None:
        figures.append(f"log p {arm.logprob:.2f} per token by the expert")
    return ", ".join([*figures, f"{arm.n} questions"])


def _describe_uncertainty(trial: Trial) -> str:
    """Return the loss that the questions cannot exclude, and how many questions would confirm the limits."""
    gain, parts = trial.result.gain, []
    if gain is not None and gain.exact:
        parts.append("it loses nothing, by definition")
    elif gain is not None:
        parts.append(f"{gain.n} questions cannot exclude a loss of up to {max(0.0, -100 * gain.low):.1f} points")
    if not trial.is_confirmed:
        needed = trial.questions_needed
        number = "no number of questions" if needed is None else f"about {total_questions(needed)} questions in all"
        parts.append(f"the limits are not confirmed; {number} like these would confirm them")
    return "; ".join(parts)


def _share(option: str, text: str | None) -> float | None:
    """Return 0.01 for ``"1%"`` or ``"0.01"``. Raises SettingError."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise SettingError(f"{option} is {text!r:.20}; it must be a share, such as 1% or 0.01") from None


def _target(pair: Pair) -> Path:
    """Return the file to write into: the user's own for a pair of the package. Raises SettingError and CatalogError."""
    if pair.source is None:
        raise SettingError("two files have no entry in a models.yaml to write into; add one and name the pair, or only look with --dry-run")
    target = catalog.user_file() if pair.source == catalog.packaged_file() else pair.source
    if target.exists() and not os.access(target, os.W_OK):
        raise CatalogError(f"{target}: not writable; change its permissions, or only look with --dry-run")
    return target


def _write(target: Path, pair: Pair, rule: str, comment: str) -> None:
    if pair.source == target or (target.exists() and pair.name in catalog.read_file(target)):
        set_rule(target, pair.name, rule, comment=comment)
    else:
        entry = {key: value for key, value in entry_of(catalog.packaged_file(), pair.name).items() if key != "rule"}
        add_pair(target, pair.name, {**entry, "rule": rule}, comment=comment)
