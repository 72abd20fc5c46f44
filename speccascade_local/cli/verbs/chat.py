"""``speccascade chat``: a conversation in the terminal, or scripted through a pipe, a line each.

Lines come in, answers go to stdout as they are made, everything else to stderr. What a command does is cli/chat_commands.py's business.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ...common.errors import PromptError, SpeccascadeError
from ...common.files import decode_text
from ...runtime import session_file
from ...runtime.conversation import Conversation
from ...runtime.reply import Chunk, Reply
from .. import options
from ..chat_commands import Chat, LeaveError, obey, system_text, tell
from ..load import load_with_progress, set_log_level
from ..terminal import legend, number, print_error, print_tokens, shows_styles, stderr, write

QUOTES = '"""'


def chat(
    asking: options.ChatOptions,
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT|@FILE", help="The system prompt.")] = None,
    session: Annotated[
        Path | None,
        typer.Option("--session", metavar="FILE", help="Go on with this session file if it is there, and write it when the chat ends."),
    ] = None,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Colour each token by who wrote it.")] = False,
    verbose: options.Verbose = 0,
) -> None:
    """Talk with a pair. Both models keep what they have read, so that each turn reads only what is new.

    /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves. From a pipe each line is a question or a command, and nothing but the
    answers goes to stdout; the exit code is 1 if any of them failed.
    """
    set_log_level(verbose)
    settings = asking.settings()  # refused before anything is loaded, as is what a file says
    prompt = system_text(system) if system else None
    saved = session_file.read(session) if session and session.exists() else None
    if session:
        session_file.require_place(session)
    with load_with_progress(pair, chosen, verbose, rule=asking.rule, profile=settings.block_size == "auto") as runtime:
        if not runtime.has_chat_template:
            raise PromptError("the expert has no chat template, so there are no turns to take; use speccascade run --raw")
        talk = Chat(Conversation(runtime), settings, show_origin)
        if saved:
            usual = options.ChatOptions().settings().as_dict()
            chosen_here = {name: value for name, value in settings.as_dict().items() if value != usual[name]}
            talk.go_on(talk.conversation.restore(saved), **chosen_here)
        talk.conversation.system = prompt or talk.conversation.system
        lines = Lines(sys.stdin is not None and sys.stdin.isatty())
        if lines.typed:
            with contextlib.suppress(ImportError):  # on Windows the console itself edits lines and remembers them
                import readline  # noqa: F401  # gives input() line editing and a history; may write to a stdout that is a pipe
            tell(f"{runtime.pair.name}, rule {talk.settings.method(runtime.rule)}; /help lists the commands")
            if show_origin and shows_styles():
                stderr.print(legend())
        try:
            failed = _turns(talk, lines)
        finally:
            if session:
                talk.conversation.save(session, talk.settings)
    raise typer.Exit(1 if failed and not lines.typed else 0)


@dataclass
class Lines:
    """Questions and commands, from a keyboard (typed) or a pipe."""

    typed: bool

    def next(self) -> str | None:
        """The next one, of several lines where it is quoted; None at the end. Raises PromptError."""
        line = self._line("> ")
        while line is not None and not line.strip():
            line = self._line("> ")
        if line is None or not line.startswith(QUOTES):
            return line
        text = line.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            more = self._line(". ")
            if more is None:
                raise PromptError(f"a question that was begun with {QUOTES} does not end; close it with {QUOTES}")
            text += f"\n{more}"
        return text.rstrip().removesuffix(QUOTES).strip("\n")

    def _line(self, prompt: str) -> str | None:
        try:
            if self.typed:
                return input(prompt if sys.stdout.isatty() else "")
            read = sys.stdin.buffer.readline() if sys.stdin is not None else b""
            return decode_text(read).rstrip("\r\n") if read else None
        except EOFError:
            print(file=sys.stderr)
            return None
        except ValueError as error:
            raise PromptError(f"a line is {error}") from error


def _turns(talk: Chat, lines: Lines) -> bool:
    """Until the lines end; whether one failed, which in a chat is told and no reason to leave."""
    failed = False
    while True:
        try:
            line = lines.next()
            if line is None:
                return failed
            try:
                answer = obey(talk, line) if line.startswith("/") else talk.ask(line)
                if answer is not None:
                    _show_answer(talk, answer, lines)
            except KeyboardInterrupt:
                if not lines.typed:
                    raise
                tell("stopped; what was said stays, /retry asks again")
        except LeaveError:
            return failed
        except SpeccascadeError as error:
            print_error(error)
            failed = True


def _show_answer(talk: Chat, answer: Generator[Chunk], lines: Lines) -> None:
    """Write an answer as it comes, and what it took; of one that is stopped, too."""
    read: list[Chunk] = []
    try:
        with closing(answer):
            for chunk in answer:
                read.append(chunk)
                print_tokens(chunk.tokens, coloured=talk.coloured)
    finally:
        write("")
        if read:
            _report(talk, Reply.of(read), lines)


def _report(talk: Chat, reply: Reply, lines: Lines) -> None:
    """Keep it for /stats, and say what it took."""
    talk.replies.append(reply)
    if reply.finish_reason == "length":
        limit = talk.settings.max_tokens
        full = f"because the context of {talk.conversation.runtime.n_ctx} tokens is full"
        tell(f"cut off {f'at --max-tokens {limit}' if len(reply.tokens) == limit else full}")
    if lines.typed and stderr.is_terminal:
        stats, n_ctx = reply.stats, talk.conversation.runtime.n_ctx
        kept = f", {stats.acceptance_rate:.0%} of drafts kept" if stats.acceptance_rate is not None else ""
        tell(
            f"{stats.tokens} tokens, {number(stats.tokens_per_s)}/s{kept}; prompt {stats.cached_tokens} + "
            f"{stats.prompt_tokens - stats.cached_tokens} new; context {stats.prompt_tokens + stats.tokens} of {n_ctx}"
        )
