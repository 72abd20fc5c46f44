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

from . import __version__, catalog, methods, rules
from .calibration import Calibrated, fit, reliability_diagram
from .compare import DEFAULT_THRESHOLD, all_arms, compare, few_arms
from .deferral import Method
from .errors import CatalogError, PromptError, SettingError, SpeccascadeError
from .reply import Chunk, Reply
from .runtime import Prompt, Runtime, load
from .settings import DEFAULTS, Settings
from .tasks import judged, read_tasks
from .terminal import comparison_table, legend, number, print_groups, print_row, print_tokens, stderr, stdout, styled

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
Threads = Annotated[int | None, typer.Option(show_default="physical cores", help="Threads; fewer where the machine is busy otherwise.")]
GpuLayers = Annotated[int, typer.Option(help="Layers on the GPU, -1 for all; needs a build with one.")]
DrafterFile = Annotated[Path | None, typer.Option("--drafter", help="The small model's GGUF file, in place of a pair.")]
ExpertFile = Annotated[Path | None, typer.Option("--expert", help="The large model's GGUF file, in place of a pair.")]
Models = Annotated[Path | None, typer.Option(help="A models.yaml to look in first.")]
StrictFirst = Annotated[int, typer.Option(help="So many first tokens are the expert's, whatever the rule says.")]
ThinkingRule = Annotated[str | None, typer.Option("--thinking-rule", show_default="the same", help="Rule between <think> and </think>.")]
VerificationName = Annotated[str, typer.Option("--verification", help="token, or block: coins over whole blocks, more kept drafts.")]
BonusName = Annotated[str, typer.Option("--bonus", help="After a kept draft: the expert's own token, or cascade: one drafted token more.")]
LogprobsCount = Annotated[
    int | None, typer.Option("--logprobs", show_default="none", help="With --json: log-probabilities, this many per token.")
]
ModelLogprobs = Annotated[bool, typer.Option("--model-logprobs", help="With --logprobs: those of both models too.")]
PresencePenalty = Annotated[float, typer.Option(help="Lowers tokens that the answer has used.")]
FrequencyPenalty = Annotated[float, typer.Option(help="Lowers tokens by how often the answer has used them.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Divides logits of tokens in prompt or answer; 1 is off.")]
LogitBias = Annotated[list[str] | None, typer.Option("--logit-bias", metavar="ID=BIAS", help="Added to a token's logit; may be repeated.")]
GrammarFile = Annotated[Path | None, typer.Option("--grammar", help="A GBNF file that the answer follows.")]
SchemaFile = Annotated[Path | None, typer.Option("--json-schema", help="A JSON schema file that the answer follows.")]
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
    strict_first: StrictFirst = DEFAULTS.strict_first,
    thinking_rule: ThinkingRule = None,
    verification: VerificationName = DEFAULTS.verification,
    bonus: BonusName = DEFAULTS.bonus,
    logprobs: LogprobsCount = None,
    model_logprobs: ModelLogprobs = False,
    presence_penalty: PresencePenalty = DEFAULTS.presence_penalty,
    frequency_penalty: FrequencyPenalty = DEFAULTS.frequency_penalty,
    repetition_penalty: RepetitionPenalty = DEFAULTS.repetition_penalty,
    logit_bias: LogitBias = None,
    grammar: GrammarFile = None,
    json_schema: SchemaFile = None,
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
    pair, prompt = _pair_and_prompt(words, models, has_files=drafter is not None or expert is not None)
    settings = Settings(  # refused before anything is loaded
        rule=rule,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        block_size=block_size,
        max_tokens=max_tokens,
        seed=seed,
        strict_first=strict_first,
        thinking_rule=thinking_rule,
        verification=verification,  # type: ignore[arg-type]  # checked there
        bonus=bonus,  # type: ignore[arg-type]
        logprobs=logprobs,
        model_logprobs=model_logprobs,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=_biases(logit_bias),
        grammar=_read(grammar),
        json_schema=_read(json_schema),
    )
    if logprobs is not None and not as_json:
        raise SettingError("--logprobs needs --json: a terminal's text has no room for them")
    with _loaded(pair, drafter, expert, models, ctx, threads, gpu_layers, verbose) as runtime:
        read: list[Chunk] = []
        for chunk in runtime.stream(_ids(runtime, prompt, raw), **vars(settings)):
            if not read and verbose:
                _tell_rule(chunk.rule, chunk.seed)
            read.append(chunk)
            if not as_json:
                print_tokens(chunk.tokens, coloured=show_origin)
    reply = Reply.of(read)
    if as_json:
        print(json.dumps({"pair": runtime.pair.name, "prompt": prompt, **vars(settings), **reply.as_dict()}, ensure_ascii=False))
    else:
        print(flush=True)
        if show_origin and styled():
            stderr.print(legend())
        if reply.finish_reason == "length":
            told = f"(cut off after {len(reply.tokens)} tokens: --max-tokens {max_tokens}, a context of {runtime.n_ctx})"
            stderr.print(told, soft_wrap=True)
    if verbose:
        for name, value in (reply.stats.counts() | reply.stats.clocks()).items():
            stderr.print(f"  {name:16} {number(value)}")


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
    strict_first: StrictFirst = DEFAULTS.strict_first,
    thinking_rule: ThinkingRule = None,
    presence_penalty: PresencePenalty = DEFAULTS.presence_penalty,
    frequency_penalty: FrequencyPenalty = DEFAULTS.frequency_penalty,
    repetition_penalty: RepetitionPenalty = DEFAULTS.repetition_penalty,
    logit_bias: LogitBias = None,
    grammar: GrammarFile = None,
    json_schema: SchemaFile = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Sequential cascade: below this confidence the expert starts over.")
    ] = DEFAULT_THRESHOLD,
    everything: Annotated[
        bool, typer.Option("--all", help="Every method that there is, with typical dials, and the min-p control.")
    ] = False,
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
    """Ask one question in every way: drafter, expert, plain cascade, speculative decoding, speculative cascade.

    The cascade's rule is --rule or the pair's own, and beside it the paper's, opt:0.2. Without a prompt the question is
    "Who is Buzz Aldrin?".
    """
    _log(verbose)
    has_files = drafter is not None or expert is not None
    pair, prompt = _pair_and_prompt(words or [DEFAULT_QUESTION], models, has_files=has_files)
    settings = Settings(  # refused before anything is loaded
        rule=rule,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        block_size=block_size,
        max_tokens=max_tokens,
        seed=seed,
        strict_first=strict_first,
        thinking_rule=thinking_rule,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=_biases(logit_bias),
        grammar=_read(grammar),
        json_schema=_read(json_schema),
    )
    with _loaded(pair, drafter, expert, models, ctx, threads, gpu_layers, verbose) as runtime:
        own = methods.parse(rule or runtime.rule)
        if verbose:
            _tell_rule(own, seed)
        arms = all_arms(settings, own) if everything else few_arms(settings, own, threshold)
        ids = _ids(runtime, prompt, raw)
        with _progress("asking", verbose) as bar:
            task = bar.add_task("", total=1.0)
            rows = compare(
                runtime,
                ids,
                arms,
                repeat=repeat,
                on_step=lambda fraction: bar.update(task, completed=fraction),
            )
    if as_json:
        asked = {"pair": runtime.pair.name, "prompt": prompt, **vars(settings), "rule": str(own), "repeat": repeat, "threshold": threshold}
        print(json.dumps({**asked, "rows": [row.as_dict() for row in rows]}, ensure_ascii=False, indent=1))
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
def models_verb(models: Models = None) -> None:
    """List the pairs in models.yaml, and whether their files are there."""
    table = Table("pair", "rule", "drafter", "expert", "named in", "description", box=None, pad_edge=False)
    for name, pair in catalog.known_pairs(models).items():
        files = [
            f"[red]missing[/] {escape(str(path))}" if path in pair.missing else escape(path.name) for path in (pair.drafter, pair.expert)
        ]
        table.add_row(escape(name), pair.rule or f"{rules.DEFAULT} (default)", *files, escape(str(pair.source)), escape(pair.description))
    (stdout if stdout.is_terminal else Console(width=10_000)).print(table)  # a pipe has no width, and no path is cut short for it


@app.command("rules")
def rules_verb(as_json: Json = False) -> None:
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
def calibrate_verb(
    pair: Annotated[str | None, typer.Argument(metavar="[PAIR]", show_default="the bundled one", help="A pair from models.yaml.")] = None,
    tasks: Annotated[Path, typer.Option(help="JSONL: one {'prompt': ..., 'answers': [...]} per line.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="Where the calibration goes; use it as --rule calibrated:FILE.")] = ...,  # type: ignore[assignment]
    picture: Annotated[Path | None, typer.Option(help="Where the reliability diagram goes, .png or .svg.")] = None,
    target: Annotated[
        float | None, typer.Option(min=0, max=1, show_default="the expert's own", help="Accuracy to keep on the validation half.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split into halves.")] = 0,
    max_tokens: MaxTokens = DEFAULTS.max_tokens,
    ctx: Context = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = -1,
    drafter: DrafterFile = None,
    expert: ExpertFile = None,
    models: Models = None,
    verbose: Verbose = 0,
) -> None:
    """Learn from judged questions when the drafter's whole answer can be trusted (needs the extra calibrate)."""
    _log(verbose)
    questions = read_tasks(tasks)
    with _loaded(pair, drafter, expert, models, ctx, threads, gpu_layers, verbose) as runtime:
        with _progress("asking", verbose) as bar:
            task = bar.add_task("", total=1.0)
            found = judged(runtime, questions, max_tokens=max_tokens, on_step=lambda fraction: bar.update(task, completed=fraction))
        calibration = fit(found, drafter=runtime.pair.drafter, expert=runtime.pair.expert, target=target, seed=seed)
    if picture:
        reliability_diagram(calibration, picture)
    calibration.save(out)
    print(f"fitted on {calibration.calibrated_on} answers, chosen on {len(calibration.validation)} others:")
    print(f"  ask the expert where the drafter is wrong with probability above {calibration.threshold:.3f}")
    print(f"  the drafter answers {calibration.kept:.1%} alone")
    print(f"  right answers {calibration.accuracy:.1%}, asked for {calibration.target_accuracy:.1%}")
    print(f"  the expert alone {calibration.expert_accuracy:.1%}, the drafter alone {calibration.drafter_accuracy:.1%}")
    print(f"use it with: --rule {Calibrated.name}:{out}")


def main() -> None:
    """Entry point of the console command."""
    sys.path.append(os.getcwd())  # where a rule of the user's own is looked for last
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows ? instead of a traceback
    app()


# --------------------------------------------------------------------------- input


def _pair_and_prompt(words: list[str] | None, models: Path | None, *, has_files: bool) -> tuple[str | None, str]:
    words = words or ["-"]
    if len(words) > (1 if has_files else 2):
        expected = "one prompt (the pair is given by --drafter and --expert)" if has_files else "[PAIR] PROMPT"
        raise SettingError(f"{len(words)} arguments, expected {expected}; put the prompt in quotes")
    prompt = words[-1]
    if len(words) == 1 and not has_files and _names_a_pair(prompt, models):
        if sys.stdin is None or sys.stdin.isatty():
            raise PromptError(f"{prompt!r} is the name of a pair; add the prompt")
        words, prompt = [prompt, "-"], "-"
    if prompt == "-":
        if sys.stdin is None or sys.stdin.isatty():
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


def _names_a_pair(word: str, models: Path | None) -> bool:
    with contextlib.suppress(CatalogError):  # whatever is wrong with a models.yaml matters only to whoever asks for a pair in it
        return word in catalog.known_pairs(models)
    return False


def _ids(runtime: Runtime, prompt: str, raw: bool) -> Prompt:
    if raw:
        return prompt
    if not runtime.has_chat_template:
        stderr.print("(the expert has no chat template: the prompt is continued as it is, as with --raw)", soft_wrap=True)
        return prompt
    return runtime.chat_ids([{"role": "user", "content": prompt}])


@contextlib.contextmanager
def _loaded(
    pair: str | None,
    drafter: Path | None,
    expert: Path | None,
    models: Path | None,
    ctx: int | None,
    threads: int | None,
    gpu_layers: int,
    verbose: int,
) -> Iterator[Runtime]:
    with _progress("loading", verbose) as bar:
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


def _biases(given: list[str] | None) -> dict[int, float]:
    biases: dict[int, float] = {}
    for text in given or ():
        token, _, bias = text.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise SettingError(f"--logit-bias {text!r:.40} is not ID=BIAS, such as 42=-5") from None
    return biases


def _read(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: not UTF-8 text ({error})") from error


def _tell_rule(rule: Method, seed: int) -> None:
    stderr.print(f"rule {rule}: {rule.trade}; seed {seed}", soft_wrap=True)


def _progress(doing: str, verbose: int) -> Progress:
    """A bar on stderr that leaves nothing behind; silent where nobody watches, and where it would wipe out the log."""
    columns = (TextColumn(doing + " {task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True, disable=bool(verbose) or not stderr.is_terminal)


def _log(verbose: int) -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("speccascade_local").setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
