"""The verbs of the command line; no algorithm.

Model text and results go to stdout, everything else to stderr. Errors that the package raises on purpose become one line and exit
code 1; wrong usage is exit code 2, Ctrl-C 130.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from . import __version__, catalog, routing, rules
from .compare import Row, compare, dropped_pairs
from .errors import PromptError, SettingError, SpeccascadeError
from .runtime import DEFAULTS, Chunk, Prompt, Runtime, Token, load
from .verify import Origin

DEFAULT_QUESTION = "Who is Buzz Aldrin?"
STYLES: dict[Origin, str] = {"accepted": "green", "matched": "cyan", "corrected": "bold yellow", "bonus": "magenta", "expert": "blue"}
MEANINGS: dict[Origin, str] = {
    "accepted": "draft kept by the rule",
    "matched": "draft kept by the strict test",
    "corrected": "expert's token in place of a dropped draft",
    "bonus": "expert's token after a kept draft",
    "expert": "expert alone",
}
DROPPED_STYLE = "strike dim red"

stdout, stderr = Console(highlight=False), Console(stderr=True, highlight=False)


class Verbs(TyperGroup):
    """Turns what goes wrong in any verb into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except SpeccascadeError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from interruption
        except BrokenPipeError as error:  # the reader of a pipe has gone; there is nobody to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Two local GGUF models answer as one: the small one drafts, the large one checks, you set the dial.",
)

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PAIR] PROMPT",
        show_default=False,
        help=("A pair from models.yaml (default: the bundled one), and the prompt; - reads it from stdin."),
    ),
]
RuleName = Annotated[
    str | None,
    typer.Option("--rule", show_default="the pair's own", help=("Deferral rule, such as token_v3:0.3, opt:0.2, strict or never.")),
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Keep the k most probable tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Keep the most probable tokens up to this mass; 1 is off.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the most probable one; 0 is off.")]
BlockSize = Annotated[int, typer.Option(help="Drafted tokens per block; 0 is the expert alone.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Seed = Annotated[int | None, typer.Option(show_default="a fresh one, told in --json and -v", help="Repeats an answer.")]
Context = Annotated[
    int | None, typer.Option("--ctx", show_default="4096, or what both were trained for", help=("Tokens that the context holds."))
]
Threads = Annotated[int | None, typer.Option(show_default="physical cores", help="Threads for single tokens and batches.")]
GpuLayers = Annotated[int, typer.Option(help="Layers on the GPU, -1 for all; needs a build with one.")]
DrafterFile = Annotated[Path | None, typer.Option("--drafter", help="The small model's GGUF file, in place of a pair.")]
ExpertFile = Annotated[Path | None, typer.Option("--expert", help="The large model's GGUF file, in place of a pair.")]
Models = Annotated[Path | None, typer.Option(help="A models.yaml to look in first.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Tell more; -vv adds llama.cpp's own log.")]


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """What stands before the verb."""
    if version:
        print(f"speccascade {__version__}")
        raise typer.Exit


@app.command()
def run(
    words: Words = None,
    rule: RuleName = None,
    temperature: Temperature = DEFAULTS.temperature,
    top_k: TopK = DEFAULTS.top_k,
    top_p: TopP = DEFAULTS.top_p,
    min_p: MinP = DEFAULTS.min_p,
    block_size: BlockSize = DEFAULTS.block_size,
    max_tokens: MaxTokens = DEFAULTS.max_tokens,
    seed: Seed = None,
    ctx: Context = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = -1,
    drafter: DrafterFile = None,
    expert: ExpertFile = None,
    models: Models = None,
    raw: Raw = False,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Colour each token by who wrote it.")] = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Answer one prompt. The text goes to stdout as it is made."""
    _log(verbose)
    pair, prompt = _pair_and_prompt(words, has_files=drafter is not None or expert is not None)
    settings = {
        "rule": rule,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "block_size": block_size,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    with _loaded(pair, drafter, expert, models, ctx, threads, gpu_layers) as runtime:
        chunks = runtime.stream(_ids(runtime, prompt, raw), **settings)  # type: ignore[arg-type]
        read: list[Chunk] = []
        for chunk in chunks:
            if not read and verbose:
                stderr.print(f"rule {chunk.rule}: {chunk.rule.trade}; seed {chunk.seed}", soft_wrap=True)
            read.append(chunk)
            if not as_json:
                _show(chunk.tokens, coloured=show_origin)
    last = read[-1]
    tokens = [token for chunk in read for token in chunk.tokens]
    if as_json:
        settings |= {"rule": str(last.rule), "seed": last.seed}
        print(
            json.dumps(
                {
                    "pair": runtime.pair.name,
                    **settings,
                    "text": "".join(token.text for token in tokens),
                    "token_ids": [token.id for token in tokens],
                    "origins": [token.origin for token in tokens],
                    "finish_reason": last.finish_reason,
                    "stats": last.stats.counts(),
                },
                ensure_ascii=False,
            )
        )
    else:
        print(flush=True)
        if show_origin and stdout.is_terminal:
            stderr.print(_legend())
    if verbose:
        for name, value in (last.stats.counts() | last.stats.clocks()).items():
            stderr.print(f"  {name:16} {_number(value)}")


@app.command("compare")
def compare_verb(
    words: Words = None,
    rule: RuleName = None,
    temperature: Temperature = DEFAULTS.temperature,
    top_k: TopK = DEFAULTS.top_k,
    top_p: TopP = DEFAULTS.top_p,
    min_p: MinP = DEFAULTS.min_p,
    block_size: BlockSize = DEFAULTS.block_size,
    max_tokens: MaxTokens = DEFAULTS.max_tokens,
    seed: Annotated[int, typer.Option(help="The same for every arm.")] = 0,
    threshold: Annotated[
        float, typer.Option(help="Sequential cascade: below this confidence the expert starts over.")
    ] = routing.DEFAULT_THRESHOLD,
    repeat: Annotated[int, typer.Option(min=1, help="Ask this often in turns; times are medians.")] = 1,
    ctx: Context = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = -1,
    drafter: DrafterFile = None,
    expert: ExpertFile = None,
    models: Models = None,
    raw: Raw = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Ask one question five ways: drafter, expert, plain cascade, speculative decoding, speculative cascade."""
    _log(verbose)
    has_files = drafter is not None or expert is not None
    pair, prompt = _pair_and_prompt(words or [DEFAULT_QUESTION], has_files=has_files)
    chosen = rules.parse(rule) if rule is not None else None
    with _loaded(pair, drafter, expert, models, ctx, threads, gpu_layers) as runtime:
        ids = _ids(runtime, prompt, raw)
        own = chosen or runtime.rule
        with Progress(TextColumn("asking"), BarColumn(), TimeRemainingColumn(), console=stderr, transient=True) as bar:
            task = bar.add_task("", total=None)
            rows = compare(
                runtime,
                ids,
                rule=own,
                threshold=threshold,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                block_size=block_size,
                max_tokens=max_tokens,
                seed=seed,
                repeat=repeat,
                on_step=lambda: bar.advance(task),
            )
    if as_json:
        print(
            json.dumps(
                {
                    "pair": runtime.pair.name,
                    "prompt": prompt,
                    "temperature": temperature,
                    "repeat": repeat,
                    "threshold": threshold,
                    "rows": [row.as_dict() for row in rows],
                },
                ensure_ascii=False,
                indent=1,
            )
        )
        return
    for row in rows:
        _show_row(row, threshold)
    stdout.print(_legend())
    stdout.print(_table(rows))


@app.command("models")
def models_verb(models: Models = None) -> None:
    """List the pairs in models.yaml, and whether their files are there."""
    table = Table("pair", "rule", "drafter", "expert", "named in", box=None, pad_edge=False)
    for name, pair in catalog.known_pairs(models).items():
        files = [
            f"[red]missing[/] {escape(str(path))}" if path in pair.missing else escape(path.name) for path in (pair.drafter, pair.expert)
        ]
        table.add_row(escape(name), pair.rule or f"{rules.DEFAULT} (default)", *files, escape(str(pair.source)))
    stdout.print(table)


def main() -> None:
    """Entry point of the console command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows ? instead of a traceback
    app()


# --------------------------------------------------------------------------- input


def _pair_and_prompt(words: list[str] | None, *, has_files: bool) -> tuple[str | None, str]:
    words = words or ["-"]
    if len(words) > (1 if has_files else 2):
        expected = "one prompt (the pair is given by --drafter and --expert)" if has_files else "[PAIR] PROMPT"
        raise SettingError(f"{len(words)} arguments, expected {expected}; put the prompt in quotes")
    prompt = words[-1]
    if prompt == "-":
        if sys.stdin.isatty():
            raise PromptError("no prompt; give one in quotes, or pipe it in")
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise PromptError(
                f"stdin is not UTF-8 text: byte {error.object[error.start]:#04x} at position {error.start}; "
                "convert it first, for example with iconv"
            ) from error
    if not prompt.strip():
        raise PromptError("the prompt is empty; give at least one word")
    return (words[0] if len(words) == 2 else None), prompt


def _ids(runtime: Runtime, prompt: str, raw: bool) -> Prompt:
    if raw or not runtime.has_chat_template:
        return prompt
    return runtime.chat_ids([{"role": "user", "content": prompt}])


@contextlib.contextmanager
def _loaded(
    pair: str | None, drafter: Path | None, expert: Path | None, models: Path | None, ctx: int | None, threads: int | None, gpu_layers: int
) -> Iterator[Runtime]:
    with Progress(TextColumn("loading {task.description}"), BarColumn(), console=stderr, transient=True) as bar:
        tasks = {role: bar.add_task(role, total=1.0) for role in ("drafter", "expert")}
        runtime = load(
            pair,
            drafter=drafter,
            expert=expert,
            models=models,
            n_ctx=ctx,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            on_progress=lambda role, fraction: bar.update(tasks[role], completed=fraction),
        )
    with runtime:
        yield runtime


def _log(verbose: int) -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("speccascade_local").setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])


# --------------------------------------------------------------------------- output


def _show(tokens: tuple[Token, ...], *, coloured: bool) -> None:
    if coloured and stdout.is_terminal:
        stdout.print(_coloured(tokens), end="", soft_wrap=True)
    else:
        print("".join(token.text for token in tokens), end="", flush=True)


def _coloured(tokens: tuple[Token, ...]) -> Text:
    text = Text()
    for token in tokens:
        if token.dropped:
            text.append(token.dropped, DROPPED_STYLE)
        text.append(token.text, STYLES[token.origin])
    return text


def _legend() -> Text:
    parts = [Text(f"{origin}", STYLES[origin]) + Text(f" {meaning}") for origin, meaning in MEANINGS.items()]
    return Text("  ").join([*parts, Text("dropped", DROPPED_STYLE) + Text(" draft thrown away")])


def _show_row(row: Row, threshold: float) -> None:
    title = Text(row.name, "bold")
    reply = row.reply
    if reply.confidence is not None:
        verdict = "kept the drafter's answer" if reply.confidence >= threshold else "asked the expert from scratch"
        title += Text(f"  confidence {reply.confidence:.2f}, threshold {threshold:g}: {verdict}", "dim")
    stdout.print(title)
    stdout.print(_coloured(reply.tokens), soft_wrap=True)
    dropped = dropped_pairs(reply)
    if dropped:
        shown = ", ".join(f"{old.strip()!r} → {new.strip()!r}" for old, new in dropped[:4])
        more = f" and {len(dropped) - 4} more" if len(dropped) > 4 else ""
        stdout.print(Text(f"thrown away: {shown}{more}", "dim"), soft_wrap=True)
    stdout.print()


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("tokens", "expert calls", "tokens/block", "accepted", "deferred", "tok/s", "ms", "speed-up"):
        table.add_column(name, justify="right")
    for row in rows:
        stats = row.reply.stats
        table.add_row(
            row.name,
            str(stats.tokens),
            str(stats.expert_calls),
            _number(stats.tokens_per_block),
            _percent(stats.acceptance_rate),
            _percent(stats.deferral_rate),
            f"{row.tokens_per_s:.0f}",
            f"{1000 * row.wall_s:.1f}",
            f"{row.speedup:.2f} ×",
        )
    return table


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.0f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
