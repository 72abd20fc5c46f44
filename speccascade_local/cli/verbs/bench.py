"""``speccascade bench``: measure pairs, and show or export the results."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from ...bench import export, grid, questions, rows
from ...bench.charts import save_curves
from ...bench.report import write_report
from ...bench.run import measure, prompts_of, warm_up
from ...bench.summary import require_measured, summarize
from ...common.errors import CatalogError, SettingError
from ...common.files import decode_text
from ...common.plots import check_writable, figure_class
from ...machine.profile_cache import read_profile
from ...runtime.runtime import Runtime
from ...runtime.settings import DEFAULTS
from .. import options
from ..bench_view import print_scores
from ..load import load_with_progress, progress, set_log_level
from ..terminal import write

#: Questions per family with --quick.
QUICK = 8
#: What --format accepts: a few columns, the whole as Markdown, CSV or JSON, the rows.
FORMS = ("table", *export.FORMATS, "jsonl")
#: Unmeasured answers of each automatic arm, from which it learns its lengths.
LEARNING = 10

Pairs = Annotated[list[str] | None, typer.Argument(metavar="[PAIR]...", show_default="the bundled one", help="Pairs from models.yaml.")]


def run(
    chosen: options.ModelOptions,
    pairs: Pairs = None,
    rules: Annotated[str, typer.Option(help="Rules, separated by commas; a name alone stands for every alpha.")] = "token_v3,opt",
    alphas: Annotated[str, typer.Option(help="Dials for the rules that are named without one.")] = "0.2,0.5,0.8",
    block_sizes: Annotated[str, typer.Option(help="Drafted tokens per block, or auto; several with commas.")] = "auto",
    temperatures: Annotated[str, typer.Option(help="Sampling temperatures; 0 is greedy; several with commas.")] = "0",
    questions_file: options.QuestionsFile = None,
    per_family: options.PerFamily = None,
    repeat: Annotated[int, typer.Option("--repeat", "-r", min=1, help="How often each question is asked.")] = 1,
    max_tokens: options.MaxTokens = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first question; the same for every arm.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help=f"Ask {QUICK} questions of each family.")] = False,
    out: Annotated[Path | None, typer.Option(show_default="bench-PAIR.jsonl", help="File for the measured rows.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a file that exists.")] = False,
    read: Annotated[Path | None, typer.Option("--from", help="Measure nothing; show the results of this file.")] = None,
    form: Annotated[str, typer.Option("--format", "-o", help=f"What to print: {', '.join(FORMS)}.")] = "table",
    report: Annotated[Path | None, typer.Option(help="Write a page with charts and samples, .html (extra calibrate).")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw quality against time, .png or .svg (extra calibrate).")] = None,
    spec_bench: Annotated[Path | None, typer.Option(help="Folder for each arm's answers in Spec-Bench's format.")] = None,
    verbose: options.Verbose = 0,
) -> None:
    """Measure a pair on this machine: its own rule and others by alpha, block size and temperature, against the expert alone.

    The drafter alone and strict are always measured too. TV covers all tokens: the expert judges the ones that it did not check
    afterwards, outside the measured time. Each row is on disk as soon as it is measured; --resume continues after a break. Without
    --questions the held-out questions of the bundled pair's five families are asked.
    """
    set_log_level(verbose)
    if form not in FORMS:
        raise SettingError(f"--format is {form!r:.20}; it must be one of {', '.join(FORMS)}")
    for path, kind in ((picture, picture), (report, Path("in-a-page.svg"))):
        if path is not None and kind is not None:
            figure_class(kind)
            check_writable(path)
    output = Output(form, report, picture, spec_bench)
    if read is not None:
        output.write(read)
        return
    candidates = grid.parse_rules(rules, grid.parse_list(alphas, float, "--alphas", "0.2,0.4"))
    lengths = grid.parse_list(block_sizes, options.length, "--block-sizes", "5,auto")
    heats = grid.parse_list(temperatures, float, "--temperatures", "0,1")
    settings = replace(DEFAULTS, max_tokens=max_tokens)
    grid.grid(candidates, lengths, heats, settings)  # raises before anything is loaded
    selection = questions.choose_questions(questions_file, per_family or (QUICK if quick else None))
    names: list[str | None] = list(pairs) if pairs else [None]
    if len(names) > 1 and (out or report or picture or spec_bench or chosen.drafter or chosen.expert):
        raise SettingError("several pairs and a file for only one; name one pair with its file, or show results again with --from")
    for name in names:
        path = out or Path(f"bench-{options.pair_of(name, chosen).name}.jsonl")
        rows.check(path, resume=resume)
        with load_with_progress(name, chosen, verbose) as runtime:
            arms = grid.grid([runtime.rule, *candidates], lengths, heats, settings)
            _measure(runtime, selection, arms, path, resume=resume, repetitions=repeat, seed=seed, verbose=verbose)
        output.write(path)


def _measure(
    runtime: Runtime,
    selection: list[questions.Question],
    arms: list[grid.Arm],
    path: Path,
    *,
    resume: bool,
    repetitions: int,
    seed: int,
    verbose: int,
) -> None:
    """Measure all arms, or with ``resume`` the rest of them, into a file of rows."""
    prompts = prompts_of(runtime, selection)
    setup = rows.describe_run(runtime, selection, arms, repetitions=repetitions, seed=seed)
    with progress(verbose) as bar:
        task = bar.add_task("warming up", total=1.0)
        if not (resume and path.exists()):
            setup |= {"learnt": warm_up(runtime, prompts, arms, LEARNING), "profile": runtime.profile().as_dict()}
            setup |= {"command": shlex.join(["speccascade", *sys.argv[1:]])}
        with rows.Store(path, setup, resume=resume) as store:
            require_measured(store.rows)
            runtime.start_from(store.setup["learnt"], read_profile(store.setup["profile"]))
            measure(
                runtime,
                selection,
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
class Output:
    """How results are printed, and the files that they are written to."""

    form: str
    report: Path | None
    picture: Path | None
    spec_bench: Path | None

    def write(self, path: Path) -> None:
        """Print and write the results in a file of rows. Raises CatalogError."""
        setup, measured = rows.read(path)
        require_measured(measured)
        summary = summarize(measured)
        if self.form == "table":
            print_scores(summary, setup)
        else:
            write(decode_text(rows.content(path)) if self.form == "jsonl" else export.FORMATS[self.form](summary, setup), end="")
        if self.report is not None:
            write_report(self.report, summary, measured, setup)
        if self.picture is not None:
            save_curves(self.picture, summary)
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
