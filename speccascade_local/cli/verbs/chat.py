"""``speccascade chat``: a conversation in the terminal, or a script through a pipe.

Each line is a question or a command (cli/chat_commands.py). Replies stream to stdout, everything else goes to stderr.
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
from ..chat_commands import Chat, LeaveError, obey, print_note, system_text
from ..load import load_with_progress, set_log_level
from ..terminal import legend, number, print_error, print_tokens, shows_styles, stderr, write

QUOTES = '"""'


def run(
    asking: options.ChatOptions,
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT|@FILE", help="The system prompt.")] = None,
    session: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Resume this session file if it exists, and write it when the chat ends.")
    ] = None,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Color each token by its origin.")] = False,
    verbose: options.Verbose = 0,
) -> None:
    """Chat with a pair. Both models keep their KV caches, so each turn reads only what is new.

    /help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves. From a pipe each line is a question or a command, and only the replies
    go to stdout; the exit code is 1 if any line failed.
    """
    set_log_level(verbose)
    settings = asking.settings()  # raises before anything is loaded, as the files below do
    prompt = system_text(system) if system else None
    saved = session_file.read(session) if session and session.exists() else None
    if session:
        session_file.require_place(session)
    with load_with_progress(pair, chosen, verbose, rule=asking.rule, profile=settings.block_size == "auto") as runtime:
        if not runtime.has_chat_template:
            raise PromptError("the expert has no chat template, so it cannot chat; use speccascade run --raw")
        chat = Chat(Conversation(runtime), settings, show_origin)
        if saved:
            defaults = options.ChatOptions().settings().as_dict()
            overrides = {name: value for name, value in settings.as_dict().items() if value != defaults[name]}
            chat.resume(chat.conversation.restore(saved), **overrides)
        chat.conversation.system = prompt or chat.conversation.system
        lines = Lines(sys.stdin is not None and sys.stdin.isatty())
        if lines.typed:
            with contextlib.suppress(ImportError):  # on Windows the console itself edits lines and keeps a history
                import readline  # noqa: F401  # gives input() line editing and a history; may write to a stdout that is a pipe
            print_note(f"{runtime.pair.name}, rule {chat.settings.method(runtime.rule)}; /help lists the commands")
            if show_origin and shows_styles():
                stderr.print(legend())
        try:
            failed = _take_turns(chat, lines)
        finally:
            if session:
                chat.conversation.save(session, chat.settings)
    raise typer.Exit(1 if failed and not lines.typed else 0)


@dataclass
class Lines:
    """Questions and commands from a keyboard (typed) or a pipe."""

    typed: bool

    def next(self) -> str | None:
        """Return the next one, which has several lines if it is quoted; None at the end. Raises PromptError."""
        line = self._line("> ")
        while line is not None and not line.strip():
            line = self._line("> ")
        if line is None or not line.startswith(QUOTES):
            return line
        text = line.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            more = self._line(". ")
            if more is None:
                raise PromptError(f"a question that begins with {QUOTES} does not end; close it with {QUOTES}")
            text += f"\n{more}"
        return text.rstrip().removesuffix(QUOTES).strip("\n")

    def _line(self, prompt: str) -> str | None:
        try:
            if self.typed:
                return input(prompt if sys.stdout.isatty() else "")
            data = sys.stdin.buffer.readline() if sys.stdin is not None else b""
            return decode_text(data).rstrip("\r\n") if data else None
        except EOFError:
            print(file=sys.stderr)
            return None
        except ValueError as error:
            raise PromptError(f"a line is {error}") from error


def _take_turns(chat: Chat, lines: Lines) -> bool:
    """Answer until the lines end, and return whether one failed; an error is printed, and the chat continues."""
    failed = False
    while True:
        try:
            line = lines.next()
            if line is None:
                return failed
            try:
                chunks = obey(chat, line) if line.startswith("/") else chat.ask(line)
                if chunks is not None:
                    _show_reply(chat, chunks, lines)
            except KeyboardInterrupt:
                if not lines.typed:
                    raise
                print_note("stopped; the text so far stays, /retry asks again")
        except LeaveError:
            return failed
        except SpeccascadeError as error:
            print_error(error)
            failed = True


def _show_reply(chat: Chat, chunks: Generator[Chunk], lines: Lines) -> None:
    """Print a reply as it streams, and its figures, also if it is stopped."""
    seen: list[Chunk] = []
    try:
        with closing(chunks):
            for chunk in chunks:
                seen.append(chunk)
                print_tokens(chunk.tokens, colored=chat.colored)
    finally:
        write("")
        if seen:
            _report(chat, Reply.of(seen), lines)


def _report(chat: Chat, reply: Reply, lines: Lines) -> None:
    """Store the reply for /stats, and print its figures."""
    chat.replies.append(reply)
    n_ctx = chat.conversation.runtime.n_ctx
    if reply.finish_reason == "length":
        limit = chat.settings.max_tokens
        reason = f"at --max-tokens {limit}" if len(reply.tokens) == limit else f"because the context of {n_ctx} tokens is full"
        print_note(f"cut off {reason}")
    if lines.typed and stderr.is_terminal:
        stats = reply.stats
        accepted = f", {stats.acceptance_rate:.0%} of drafts accepted" if stats.acceptance_rate is not None else ""
        print_note(
            f"{stats.tokens} tokens, {number(stats.tokens_per_s)}/s{accepted}; prompt {stats.cached_tokens} + "
            f"{stats.prompt_tokens - stats.cached_tokens} new; context {stats.prompt_tokens + stats.tokens} of {n_ctx}"
        )
