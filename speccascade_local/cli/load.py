"""What several verbs do before and around their work: read the prompt, load the pair under a progress bar.

Knows nothing of what the verbs then do.
"""

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
    """The pair that was named, if any, and the prompt, from stdin where it is ``-`` or missing. Raises SettingError and PromptError."""
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
    with contextlib.suppress(CatalogError):  # whatever is wrong with a models.yaml matters only to whoever asks for a pair in it
        return word in catalog.known_pairs(models)
    return False


def prompt_ids(runtime: Runtime, prompt: str, raw: bool) -> Prompt:
    """The prompt through the chat template, or as it is where that is asked for or there is none."""
    if raw:
        return prompt
    if not runtime.has_chat_template:
        stderr.print("(the expert has no chat template: the prompt is continued as it is, as with --raw)", soft_wrap=True)
        return prompt
    return runtime.chat_ids([{"role": "user", "content": prompt}])


@contextlib.contextmanager
def load_with_progress(
    pair: str | None, chosen: ModelOptions, verbose: int, *, rule: str | None = None, profile: bool = True, timelines: int = 1
) -> Iterator[Runtime]:
    """The pair, loaded under a progress bar and closed afterwards."""
    with progress(verbose) as bar:
        tasks: dict[str, TaskID] = {}

        def report(role: str, fraction: float) -> None:
            if role not in tasks:
                doing = "measuring this machine, once" if role == "profile" else f"loading {role}"
                tasks[role] = bar.add_task(doing, total=1.0)
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


def tell_rule(rule: Method, seed: int) -> None:
    """One line about the rule, for whoever asked to be told more."""
    stderr.print(f"rule {rule}: {rule.trade}; seed {seed}", soft_wrap=True)


def progress(verbose: int) -> Progress:
    """A bar on stderr that leaves nothing behind; silent where nobody watches, and where it would wipe out the log."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True, disable=bool(verbose) or not stderr.is_terminal)


@contextlib.contextmanager
def stepping(doing: str, verbose: int) -> Iterator[Callable[[float], None]]:
    """Such a bar for one work: what is yielded is called with 0..1 on the way."""
    with progress(verbose) as bar:
        task = bar.add_task(doing, total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


class _Shown(logging.Formatter):
    """Control characters, which a file's name or an answer may bring into the log, are shown in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """One message."""
        text = super().format(record)
        return printable(text) if stderr.obeyed else text


def set_log_level(verbose: int) -> None:
    """-v for what was decided, -vv for llama.cpp's own log too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Shown("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("speccascade_local").setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
