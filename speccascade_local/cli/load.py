"""What several verbs do before and around their work: read the prompt, load the pair, show progress, set the log level."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..common.errors import CatalogError, PromptError, SettingError
from ..common.files import decode_text
from ..common.validation import printable
from ..models import catalog
from ..rules.rule import Method
from ..runtime.load import load
from ..runtime.runtime import Runtime
from ..tokens.prompt import Prompt
from .options import ModelOptions
from .terminal import stderr


def pair_and_prompt(words: list[str] | None, chosen: ModelOptions) -> tuple[str | None, str]:
    """Return the name of the pair, if any, and the prompt, which comes from stdin if it is ``-`` or missing.

    Raises SettingError for too many words, and PromptError for a prompt that is missing, empty or not UTF-8.
    """
    asked_for_stdin = words is not None and words[-1:] == ["-"]
    words = words or ["-"]
    has_files = chosen.drafter is not None or chosen.expert is not None
    if len(words) > (1 if has_files else 2):
        expected = "one prompt (the pair is given by --drafter and --expert)" if has_files else "[PAIR] PROMPT"
        raise SettingError(f"{len(words)} arguments, expected {expected}; put the prompt in quotes")
    prompt = words[-1]
    if len(words) == 1 and not has_files and _names_a_pair(prompt, chosen.models):
        if sys.stdin is None or sys.stdin.isatty():
            raise PromptError(f"{prompt!r} is the name of a pair; add the prompt")
        words, prompt = [prompt, "-"], "-"
    if prompt == "-":
        if sys.stdin is None or (sys.stdin.isatty() and not asked_for_stdin):
            raise PromptError("no prompt; give one in quotes, or pipe it in")
        try:
            prompt = decode_text(sys.stdin.buffer.read()).removesuffix("\n").removesuffix("\r")
        except ValueError as error:
            raise PromptError(f"stdin is {error}") from error
    if not prompt.strip():
        raise PromptError("the prompt is empty; give at least one word")
    return (words[0] if len(words) == 2 else None), prompt


def _names_a_pair(word: str, models: Path | None) -> bool:
    with contextlib.suppress(CatalogError):  # a broken models.yaml matters only where a pair of it is named
        return word in catalog.known_pairs(models)
    return False


def prompt_ids(runtime: Runtime, prompt: str, raw: bool) -> Prompt:
    """Return the prompt through the expert's chat template, or unchanged if it is raw or there is no template."""
    if raw:
        return prompt
    if not runtime.has_chat_template:
        stderr.print("(the expert has no chat template: it continues the prompt, as with --raw)", soft_wrap=True)
        return prompt
    return runtime.chat_ids([{"role": "user", "content": prompt}])


@contextlib.contextmanager
def load_with_progress(
    pair: str | None, chosen: ModelOptions, verbose: int, *, rule: str | None = None, profile: bool = True, timelines: int = 1
) -> Iterator[Runtime]:
    """Load a pair under a progress bar, and close it at the end. Parameters are those of :func:`runtime.load.load`."""
    with progress(verbose) as bar:
        tasks: dict[str, TaskID] = {}

        def report(role: str, fraction: float) -> None:
            if role not in tasks:
                work = "measuring this machine, once" if role == "profile" else f"loading {role}"
                tasks[role] = bar.add_task(work, total=1.0)
            bar.update(tasks[role], completed=fraction)

        runtime = load(
            pair,
            drafter=chosen.drafter,
            expert=chosen.expert,
            models=chosen.models,
            n_ctx=chosen.ctx,
            n_threads=chosen.threads,
            placement=chosen.placements(),
            check_memory=chosen.check_memory,
            rule=rule,
            profile=profile,
            timelines=timelines,
            on_progress=report,
            allow_code=chosen.allow_code,
        )
    with runtime:
        yield runtime


def print_rule(rule: Method, seed: int) -> None:
    """Print the rule, what it trades, and the seed on stderr."""
    stderr.print(f"rule {rule}: {rule.trade}; seed {seed}", soft_wrap=True)


def progress(verbose: int) -> Progress:
    """Return a progress bar on stderr that vanishes at the end; it is off in a pipe and beside the log."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True, disable=bool(verbose) or not stderr.is_terminal)


@contextlib.contextmanager
def progress_of(work: str, verbose: int) -> Iterator[Callable[[float], None]]:
    """Show one bar; yield a function to call with the fraction of the work that is done."""
    with progress(verbose) as bar:
        task = bar.add_task(work, total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


class _PrintableFormatter(logging.Formatter):
    """A formatter that escapes control characters in a terminal; a file's name or a reply may contain them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        text = super().format(record)
        return printable(text) if stderr.obeys_controls else text


def set_log_level(verbose: int) -> None:
    """Log to stderr: warnings, with -v decisions too, with -vv also llama.cpp's own log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("speccascade_local").setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
