"""``speccascade bench``: the options, the bar, and where results go. How it is measured is bench/'s business."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from ...bench import export, grid, questions, rows, run
from ...bench.charts import draw_curves
from ...bench.report import write_report
from ...bench.summary import require_measured, summarize
from ...common.errors import CatalogError, SettingError
from ...common.files import decode_text
from ...common.plots import figure_class, writable
from ...machine.profile_cache import read_profile
from ...runtime.runtime import Runtime
from ...runtime.settings import DEFAULTS
from .. import options
from ..bench_view import print_scores
from ..load import load_with_progress, progress, set_log_level
from ..terminal import write

#: Questions of each family for a first look.
QUICKLY = 8
#: What can be printed: a few columns, the whole as Markdown, CSV or JSON, the rows.
FORMS = ("table", *export.FORMATS, "jsonl")
#: Answers of each automatic arm that are not measured, from which lengths are learnt.
LEARNING = 10

Pairs = Annotated[list[str] | None, typer.Argument(metavar="[PAIR]...", show_default="the bundled one", help="Pairs from models.yaml.")]


def bench(
    chosen: options.ModelOptions,
    pairs: Pairs = None,
    rules: Annotated[str, typer.Option(help="Rules with commas between them; a name alone is taken at every alpha.")] = "token_v3,opt",
    alphas: Annotated[str, typer.Option(help="Dials for rules that were named without one.")] = "0.2,0.5,0.8",
    block_sizes: Annotated[str, typer.Option(help="Drafted tokens per block, or auto.")] = "auto",
    temperatures: Annotated[str, typer.Option(help="0 is greedy.")] = "0",
    questions_file: options.QuestionsFile = None,
    per_family: options.PerFamily = None,
    repeat: Annotated[int, typer.Option("--repeat", "-r", min=1, help="How often everything is asked.")] = 1,
    max_tokens: options.MaxTokens = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the first question; the same for every arm.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help=f"A first look: {QUICKLY} of each family.")] = False,
    out: Annotated[Path | None, typer.Option(show_default="bench-PAIR.jsonl", help="Where each row goes once it is measured.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a file that is there.")] = False,
    read: Annotated[Path | None, typer.Option("--from", help="Measure nothing; show the results of this file.")] = None,
    form: Annotated[str, typer.Option("--format", "-o", help=f"What is printed: {', '.join(FORMS)}.")] = "table",
    report: Annotated[Path | None, typer.Option(help="Where a page with charts and samples goes, .html (extra calibrate).")] = None,
    picture: Annotated[Path | None, typer.Option(help="Where quality against time is drawn, .png or .svg (extra calibrate).")] = None,
    spec_bench: Annotated[Path | None, typer.Option(help="A folder for each arm's answers as Spec-Bench's scripts read them.")] = None,
    verbose: options.Verbose = 0,
) -> None:
    """Measure a pair on this machine: its own rule and others by alphas, block sizes and temperatures, beside the expert alone.

    The drafter alone and strict are always there too. TV is of all tokens: one that the expert was not asked about it judges
    afterwards, outside the measured time. Every finished row is on the disk at once, and --resume goes on after a break.
    Without --questions the held-out questions of the bundled pair's five families are asked.
    """
    set_log_level(verbose)
    if form not in FORMS:
        raise SettingError(f"--format is {form!r:.20}; it must be one of {', '.join(FORMS)}")
    for path, kind in ((picture, picture), (report, Path("in-a-page.svg"))):
        if path is not None and kind is not None:
            figure_class(kind)
            writable(path)
    shown = Shown(form, report, picture, spec_bench)
    if read is not None:
        shown.show(read)
        return
    named = grid.parse_rules(rules, grid.parse_list(alphas, float, "--alphas", "0.2,0.4"))
    lengths = grid.parse_list(block_sizes, options.length, "--block-sizes", "5,auto")
    heats = grid.parse_list(temperatures, float, "--temperatures", "0,1")
    settings = replace(DEFAULTS, max_tokens=max_tokens)
    grid.grid(named, lengths, heats, settings)  # refused before anything is loaded
    asked = questions.choose_questions(questions_file, per_family or (QUICKLY if quick else None))
    names: list[str | None] = list(pairs) if pairs else [None]
    if len(names) > 1 and (out or report or picture or spec_bench or chosen.drafter or chosen.expert):
        raise SettingError("several pairs were named, and a file for one; name files for one pair at a time, or show it again with --from")
    for name in names:
        path = out or Path(f"bench-{options.pair_of(name, chosen).name}.jsonl")
        rows.check(path, resume=resume)
        with load_with_progress(name, chosen, verbose) as runtime:
            arms = grid.grid([runtime.rule, *named], lengths, heats, settings)
            _measure(runtime, asked, arms, path, resume=resume, repetitions=repeat, seed=seed, verbose=verbose)
        shown.show(path)


def _measure(
    runtime: Runtime,
    asked: list[questions.Question],
    arms: list[grid.Arm],
    path: Path,
    *,
    resume: bool,
    repetitions: int,
    seed: int,
    verbose: int,
) -> None:
    prompts = run.prompts_of(runtime, asked)
    told = rows.describe_run(runtime, asked, arms, repetitions=repetitions, seed=seed)
    with progress(verbose) as bar:
        task = bar.add_task("warming up", total=1.0)
        if not (resume and path.exists()):
            told |= {"learnt": run.warm_up(runtime, prompts, arms, LEARNING), "profile": runtime.profile().as_dict()}
            told |= {"command": shlex.join(["speccascade", *sys.argv[1:]])}
        with rows.Store(path, told, resume=resume) as store:
            require_measured(store.rows)
            runtime.start_from(store.setup["learnt"], read_profile(store.setup["profile"]))
            run.measure(
                runtime,
                asked,
                prompts,
                arms,
                done=list(store.rows),
                write=store.append,
                repetitions=repetitions,
                seed=seed,
                audit=True,
                on_step=lambda arm, fraction: bar.update(task, description=arm, completed=fraction),
            )


@dataclass(frozen=True)
class Shown:
    """What becomes of a file of rows: printed in one form, and written in others."""

    form: str
    report: Path | None
    picture: Path | None
    spec_bench: Path | None

    def show(self, path: Path) -> None:
        """Raises CatalogError."""
        told, measured = rows.read(path)
        require_measured(measured)
        summary = summarize(measured)
        if self.form == "table":
            print_scores(summary, told)
        else:
            write(decode_text(rows.content(path)) if self.form == "jsonl" else export.FORMATS[self.form](summary, told), end="")
        if self.report is not None:
            write_report(self.report, summary, measured, told)
        if self.picture is not None:
            draw_curves(self.picture, summary)
        if self.spec_bench is not None:
            _write_spec_bench(self.spec_bench, measured)


def _write_spec_bench(folder: Path, measured: list[rows.Row]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for arm, temperature in dict.fromkeys((row["arm"], row["temperature"]) for row in measured):
            name = "".join(letter if letter.isalnum() else "-" for letter in f"{arm} T{temperature:g}")
            (folder / f"{name}.jsonl").write_text(export.spec_bench(measured, arm, temperature), encoding="utf-8")
    except OSError as error:
        raise CatalogError(f"{folder}: cannot be written ({error.strerror})") from error
