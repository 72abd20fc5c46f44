"""The verbs of the command line; no algorithm.

Model text and results go to stdout, everything else to stderr. Errors that the package raises on purpose become one line and exit
code 1; wrong usage is exit code 2, Ctrl-C 130.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from . import __version__, catalog, methods, options, rules
from .calibration import Calibrated, fit, ready
from .compare import DEFAULT_THRESHOLD, all_arms, compare, few_arms
from .errors import SettingError, SpeccascadeError
from .figures import figure_class, writable
from .invocation import loaded, pair_and_prompt, progress, prompt_ids, set_log_level, tell_rule
from .options import in_groups
from .pictures import reliability_diagram, staircase
from .reply import Chunk, Reply
from .settings import DEFAULTS
from .tasks import judged, read_tasks
from .terminal import (
    comparison_table,
    legend,
    number,
    print_groups,
    print_row,
    print_tokens,
    profile_summary,
    profile_table,
    stderr,
    stdout,
    styled,
)

DEFAULT_QUESTION = "Who is Buzz Aldrin?"


class Verbs(TyperGroup):
    """Turns what goes wrong in any verb into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except SpeccascadeError as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)  # one line, whatever a file put into it
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            print("\ninterrupted" if stdout.is_terminal else "interrupted", file=sys.stderr)
            raise typer.Exit(130) from interruption
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # else the reader of a pipe has gone; there is nobody to tell
                print(f"error: stdout: {error.strerror or error}", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still unwritten would fail again at exit
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Two local GGUF models answer as one: the small one drafts, the large one checks, you set the dial.",
)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """What stands before the verb."""
    if version:
        print(f"speccascade {__version__}")
        raise typer.Exit


@app.command()
@in_groups
def run(
    asking: options.AnswerOptions,
    chosen: options.ModelOptions,
    words: options.Words = None,
    raw: options.Raw = False,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Colour each token by who wrote it.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Answer one prompt. The text goes to stdout as it is made."""
    set_log_level(verbose)
    pair, prompt = pair_and_prompt(words, chosen)
    settings = asking.settings()  # refused before anything is loaded
    if settings.logprobs is not None and not as_json:
        raise SettingError("--logprobs has no room in a terminal's text; add --json")
    with loaded(pair, chosen, verbose, profile=settings.block_size == "auto") as runtime:
        read: list[Chunk] = []
        for chunk in runtime.stream(prompt_ids(runtime, prompt, raw), **vars(settings)):
            if not read and verbose:
                tell_rule(chunk.rule, chunk.seed)
            read.append(chunk)
            if not as_json:
                print_tokens(chunk.tokens, coloured=show_origin)
    reply = Reply.of(read)
    if as_json:
        asked = {"pair": runtime.pair.name, "prompt": prompt, "settings": {**vars(settings), "rule": str(reply.rule), "seed": reply.seed}}
        print(json.dumps({**asked, **reply.as_dict()}, ensure_ascii=False))
    else:
        print(flush=True)
        if show_origin and styled():
            stderr.print(legend())
        if reply.finish_reason == "length":
            limit = f"--max-tokens {settings.max_tokens}" if len(reply.tokens) == settings.max_tokens else f"a context of {runtime.n_ctx}"
            told = f"(cut off after {len(reply.tokens)} tokens: {limit})"
            stderr.print(told, soft_wrap=True)
    if verbose:
        figures = reply.stats.counts() | reply.stats.clocks() | (reply.fidelity.as_dict() if reply.fidelity else {})
        for name, value in figures.items():
            stderr.print(f"  {name:16} {number(value)}")


@app.command("compare")
@in_groups
def compare_verb(
    asking: options.CompareOptions,
    chosen: options.ModelOptions,
    words: options.Words = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Sequential cascade: below this confidence the expert starts over.")
    ] = DEFAULT_THRESHOLD,
    everything: Annotated[
        bool, typer.Option("--all", help="Every method that there is, with typical dials, and the min-p control.")
    ] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Ask this often in turns; times are medians.")] = 1,
    raw: options.Raw = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Ask one question in every way: drafter, expert, plain cascade, speculative decoding, speculative cascade.

    The cascade's rule is --rule or the pair's own, and beside it the paper's, opt:0.2. Without a prompt the question is
    "Who is Buzz Aldrin?". TV is the mean distance (total variation) between what each token was drawn from and the expert's own
    distribution: 0 is the expert, 1 has nothing in common with it.
    """
    set_log_level(verbose)
    pair, prompt = pair_and_prompt(words or [DEFAULT_QUESTION], chosen)
    settings = asking.settings()  # refused before anything is loaded
    with loaded(pair, chosen, verbose, profile=settings.block_size == "auto") as runtime:
        own = methods.parse(asking.rule or runtime.rule)
        if verbose:
            tell_rule(own, asking.seed)
        arms = all_arms(settings, own) if everything else few_arms(settings, own, threshold)
        ids = prompt_ids(runtime, prompt, raw)
        with progress("asking", verbose) as bar:
            task = bar.add_task("", total=1.0)
            rows = compare(
                runtime,
                ids,
                arms,
                repeat=repeat,
                on_step=lambda fraction: bar.update(task, completed=fraction),
            )
    if as_json:
        asked = {"pair": runtime.pair.name, "prompt": prompt, "settings": {**vars(settings), "rule": str(own)}}
        print(
            json.dumps(
                {**asked, "repeat": repeat, "threshold": threshold, "rows": [row.as_dict() for row in rows]}, ensure_ascii=False, indent=1
            )
        )
        return
    if everything:
        print_groups(rows)
    else:
        for row in rows:
            print_row(row)
    if styled():
        stdout.print(legend(), end="\n\n")
    stdout.print(comparison_table(rows))


@app.command("models")
def models_verb(models: options.Models = None) -> None:
    """List the pairs in models.yaml, and whether their files are there."""
    table = Table("pair", "rule", "drafter", "expert", "named in", "description", box=None, pad_edge=False)
    for name, pair in catalog.known_pairs(models).items():
        files = [
            f"[red]missing[/] {escape(str(path))}" if path in pair.missing else escape(path.name) for path in (pair.drafter, pair.expert)
        ]
        table.add_row(escape(name), pair.rule or f"{rules.DEFAULT} (default)", *files, escape(str(pair.source)), escape(pair.description))
    (stdout if stdout.is_terminal else Console(width=10_000)).print(table)  # a pipe has no width, and no path is cut short for it


@app.command("rules")
def rules_verb(as_json: options.Json = False) -> None:
    """List every method: how it is written, what it does, its range, its lossless end, temperature 0, its source."""
    rows = [methods.described(method) for method in methods.METHODS.values()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        stdout.print(Text(row.pop("method"), "bold"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2), pad_edge=True)
        for name, told in row.items():
            table.add_row(Text(name, "dim"), Text(told))
        stdout.print(table)
        stdout.print()


@app.command("calibrate")
@in_groups
def calibrate_verb(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    tasks: Annotated[Path, typer.Option(help="JSONL: one {'prompt': ..., 'answers': [...]} per line.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="Where the calibration goes; use it as --rule calibrated:FILE.")] = ...,  # type: ignore[assignment]
    picture: Annotated[Path | None, typer.Option(help="Where the reliability diagram goes, .png or .svg.")] = None,
    target: Annotated[
        float | None, typer.Option(min=0, max=1, show_default="the expert's own", help="Accuracy to keep on the validation half.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split into halves.")] = 0,
    max_tokens: options.MaxTokens = DEFAULTS.max_tokens,
    verbose: options.Verbose = 0,
) -> None:
    """Learn from judged questions when the drafter's whole answer can be trusted (needs the extra calibrate)."""
    set_log_level(verbose)
    questions = read_tasks(tasks)
    ready(len(questions), target, out, picture)  # before hours of asking
    with loaded(pair, chosen, verbose, rule="strict", profile=False) as runtime:
        with progress("asking", verbose) as bar:
            task = bar.add_task("", total=1.0)
            found = judged(runtime, questions, max_tokens=max_tokens, on_step=lambda fraction: bar.update(task, completed=fraction))
        calibration = fit(found, drafter=runtime.pair.drafter, expert=runtime.pair.expert, target=target, seed=seed)
    calibration.save(out)
    if picture:
        reliability_diagram(calibration, picture)
    print(f"fitted on {calibration.calibrated_on} answers, chosen on {len(calibration.validation)} others:")
    print(f"  ask the expert where the drafter is wrong with probability above {calibration.threshold:.3f}")
    print(f"  the drafter answers {calibration.kept:.1%} alone")
    print(f"  right answers {calibration.accuracy:.1%}, asked for {calibration.target_accuracy:.1%}")
    print(f"  the expert alone {calibration.expert_accuracy:.1%}, the drafter alone {calibration.drafter_accuracy:.1%}")
    print(f"use it with: --rule {Calibrated.name}:{out}")


@app.command("profile")
@in_groups
def profile_verb(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, even if this pair was measured before.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Where a picture of the table goes, .png or .svg (extra calibrate).")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """How long both models take for batches of 1 to 17 tokens on this machine: measured once, then kept.

    v(n) is a batch of n in units of a single token. Where a larger batch is the faster one, the smaller is padded to it.
    """
    set_log_level(verbose)
    if picture:
        figure_class(picture)
        writable(picture)
    with (
        loaded(pair, chosen, verbose, rule="strict", profile=False) as runtime,
        progress("measuring", verbose) as bar,
    ):
        task = bar.add_task("", total=1.0)
        found = runtime.profile(refresh=refresh, on_step=lambda fraction: bar.update(task, completed=fraction))
    if picture:
        staircase(found, picture)
    if as_json:
        print(json.dumps({"pair": runtime.pair.name, **found.as_dict()}, ensure_ascii=False))
        return
    (stdout if stdout.is_terminal else Console(width=200)).print(profile_table(found))
    for line in profile_summary(found):
        print(line)


def main() -> None:
    """Entry point of the console command."""
    sys.path.append(os.getcwd())  # where a rule of the user's own is looked for last
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows ? instead of a traceback
    app()
