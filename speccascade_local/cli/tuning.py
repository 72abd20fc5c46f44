"""``speccascade tune``: what the user asks for, what was found, and where it is written. How it is found is bench/tuning.py's business."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .. import catalog
from ..bench import grid, questions, running, tuning
from ..bench.rows import Row
from ..catalog import Pair
from ..catalog_edit import add_pair, set_rule
from ..errors import SettingError
from ..settings import DEFAULTS
from . import options
from .invocation import loaded, progress, set_log_level
from .terminal import stdout

RULES, ALPHAS = "token_v3,opt,chow,diff,chow_log", "0.05,0.1,0.2,0.3,0.4,0.6,0.8"


def tune(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    max_quality_loss: Annotated[str | None, typer.Option(help="Right answers that may be lost, such as 1%.")] = None,
    expert_share: Annotated[str | None, typer.Option(help="Expert calls per token at most, such as 30%.")] = None,
    budget: Annotated[float | None, typer.Option(help="Mean distance from the expert at most (total variation), such as 0.02.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Times as fast as the expert alone at least, such as 2.")] = None,
    rules: Annotated[str, typer.Option(help="Candidates; a name alone is tried at every alpha.")] = RULES,
    alphas: Annotated[str, typer.Option(help="Dials for rules that were named without one.")] = ALPHAS,
    temperature: options.Heat = DEFAULTS.temperature,
    questions_file: Annotated[Path | None, typer.Option("--questions", help="JSONL with prompt or messages, reference and metric.")] = None,
    per_family: Annotated[int | None, typer.Option(min=1, help="At most so many questions of each family.")] = None,
    max_tokens: options.MaxTokens = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the halves, and of the first question.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell; leave models.yaml as it is.")] = False,
    verbose: options.Verbose = 0,
) -> None:
    """Find the rule and the dial that give what you ask for on this machine, and write them into models.yaml.

    Arms that cannot win leave the race early; the winner is confirmed on questions that took no part in the choice. Without references
    agreement with the expert's own text stands for quality.
    """
    set_log_level(verbose)
    goal = tuning.Goal(_share("--max-quality-loss", max_quality_loss), _share("--expert-share", expert_share), budget, min_speedup)
    candidates = grid.listed_rules(rules, grid.listed(alphas, float, "--alphas", "0.2,0.4"))
    arms = grid.grid(candidates, ["auto"], [temperature], replace(DEFAULTS, max_tokens=max_tokens))
    arms = [arm for arm in arms if arm.settings.min_p == 0]
    asked = questions.in_turns(questions.read_questions(questions_file) if questions_file else questions.built_in(), per_family)
    choose_by, confirm_by = tuning.split(len(asked), [question.family for question in asked], seed)
    with loaded(pair, chosen, verbose) as runtime:
        source = runtime.pair
        prompts = running.prompts_of(runtime, asked)
        with progress(verbose) as bar:
            task = bar.add_task("warming up", total=1.0)
            runtime.start_from(running.warm_up(runtime, [prompts[place] for place in choose_by], arms, 4))
            experts: dict[int, str] = {}

            def ask(arm: grid.Arm, place: int) -> Row:
                row = running.row_of(runtime, asked[place], prompts[place], arm, repetition=0, seed=seed + place)
                if arm.name == grid.BASE:
                    experts[place] = row["text"]
                if row["quality"] is None:
                    row["quality"] = float(row["text"] == experts[place])
                return row

            found = tuning.tuned(
                arms, choose_by, confirm_by, ask, goal, lambda doing, fraction: bar.update(task, description=doing, completed=fraction)
            )
    measure = "quality" if all(question.reference for question in asked) else "agreement with the expert"
    rule = str(found.arm.method) if found.arm else "strict"
    if found.measured:
        told = f"{tuning.told(found.measured.speedup)} × as fast as the expert"
        if found.measured.quality_gain:
            told += f", {measure} {tuning.told(found.measured.quality_gain, percent=True)}"
        if measure != "quality" and found.measured.logprob is not None:
            told += f", log p {found.measured.logprob:.2f} per token by the expert"
        told += f", {found.measured.n} prompts"
        stdout.print(f"{found.measured.arm.split(',')[0]}: {told}", highlight=False, soft_wrap=True)
    if not found.arm:
        stdout.print(f"{found.why}: strict, whose text is the expert's own", highlight=False, soft_wrap=True)
    stdout.print(f"({found.asked} answers to choose by; {found.left} of {len(arms) - 1} ways in the race to its end)", highlight=False)
    if not dry_run:
        where = _written(source, rule, f"tuned: {found.why}" if not found.arm else f"tuned: {told}")
        stdout.print(f"written: rule {rule} of {source.name} in {where}", highlight=False, soft_wrap=True)


def _share(name: str, text: str | None) -> float | None:
    """``"1%"`` or ``"0.01"`` -> 0.01. Raises SettingError."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise SettingError(f"{name} is {text!r:.20}; it must be a share, such as 1% or 0.01") from None


def _written(pair: Pair, rule: str, comment: str) -> Path:
    """Under the pair where it is named; a pair of the package goes into the user's own models.yaml, which is looked at first."""
    if pair.source is None:
        raise SettingError(f"two files have no entry in a models.yaml; make one for them, or use --rule {rule}")
    if pair.source == catalog.packaged():
        where = catalog.users_own()
        if where.exists() and pair.name in catalog.read_file(where):
            set_rule(where, pair.name, rule, comment=comment)
        else:
            files = {role: f"{catalog.BUNDLED}{path.name}" for role, path in pair.files.items()}
            add_pair(where, pair.name, {**files, "rule": rule}, comment=comment)
        return where
    set_rule(pair.source, pair.name, rule, comment=comment)
    return pair.source
