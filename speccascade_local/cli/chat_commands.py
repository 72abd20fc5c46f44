"""The slash commands of a chat, by name, and the state that they change."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import SettingError
from ..common.files import expand_user, read_text
from ..rules import registry
from ..rules.rule import Method
from ..runtime.conversation import Conversation, RestoredChat
from ..runtime.reply import Chunk, Reply
from ..runtime.settings import Settings
from .terminal import legend, number, print_figures, shows_styles, stderr


class LeaveError(Exception):
    """Raised when the user asks to leave."""


@dataclass
class Chat:
    """A conversation, the settings for the next question, all replies of this process, and how often the last question was retried."""

    conversation: Conversation
    settings: Settings
    colored: bool = False
    replies: list[Reply] = field(default_factory=list)
    retries: int = 0

    def ask(self, question: str) -> Generator[Chunk]:
        """Return the reply, block by block."""
        self.retries = 0
        return self.conversation.stream(question, self.settings)

    def retry(self) -> Generator[Chunk]:
        """Return another reply to the last question, with other random numbers."""
        self.retries += 1
        seed = self.settings.seed
        return self.conversation.retry(replace(self.settings, seed=None if seed is None else seed + self.retries))

    def resume(self, restored: RestoredChat, **overrides: Any) -> None:
        """Continue with the settings of a session file, except for the overrides."""
        self.settings = replace(restored.settings, **overrides)
        for note in restored.notes:
            print_note(note)
        print_note(f"turns from the session file: {len(self.conversation.messages) // 2}")


class Command(NamedTuple):
    """A command: its arguments, its meaning, and its action. A reply that the action returns is shown."""

    usage: str
    meaning: str
    act: Callable[[Chat, str], Generator[Chunk] | None]


def print_note(text: str) -> None:
    """Print a line about the chat on stderr."""
    stderr.print(f"({text})", style="dim", markup=False, highlight=False, soft_wrap=True)


def system_text(text: str) -> str:
    """Return the text, or for ``@FILE`` what the file holds. Raises CatalogError."""
    return read_text(expand_user(text[1:])).strip() if text.startswith("@") else text


def obey(chat: Chat, line: str) -> Generator[Chunk] | None:
    """Run the command in a line that begins with a slash. Raises SettingError for an unknown one, and what the command raises."""
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{close[0]}? " if close else ""
        raise SettingError(f"unknown command /{name:.40}; {hint}/help lists all; put a space before a question that begins with /")
    return COMMANDS[name].act(chat, argument.strip())


def _rule(chat: Chat, spec: str | Method) -> None:
    if spec:
        chat.settings = replace(chat.settings, rule=registry.parse(spec))
    rule = chat.settings.method(chat.conversation.runtime.rule)
    print_note(f"rule {rule}: {rule.trade}")


def _alpha(chat: Chat, text: str) -> None:
    current = registry.parse(chat.settings.rule or chat.conversation.runtime.rule)
    _rule(chat, registry.with_dial(current, _number("/alpha", text, "0.5")))


def _temperature(chat: Chat, text: str) -> None:
    chat.settings = replace(chat.settings, temperature=_number("/temperature", text, "0.8"))
    print_note(f"temperature {chat.settings.temperature:g}")


def _number(name: str, text: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"{name} needs a number, such as '{name} {example}'; got {text!r:.40}") from None


def _stats(chat: Chat, _: str) -> None:
    if not chat.replies:
        print_note("no reply yet")
        return
    print_figures(chat.replies[-1])
    tokens, seconds = (sum(getattr(reply.stats, name) for reply in chat.replies) for name in ("tokens", "wall_s"))
    turns, forgotten = len(chat.conversation.messages) // 2, chat.conversation.forgotten
    print_note(f"replies: {len(chat.replies)}, {tokens} tokens in {number(seconds)} s; turns: {turns}, {forgotten} no longer in the prompt")


def _origin(chat: Chat, _: str) -> None:
    chat.colored = not chat.colored
    print_note(f"colors by origin are {'on' if chat.colored else 'off'}")
    if chat.colored and shows_styles():
        stderr.print(legend())


def _system(chat: Chat, text: str) -> None:
    if text:
        chat.conversation.system = None if text == "-" else system_text(text)
    print_note(f"system prompt: {chat.conversation.system or 'none'}")


def _retry(chat: Chat, _: str) -> Generator[Chunk]:
    reply = chat.retry()
    if chat.settings.temperature == 0:
        print_note("at temperature 0 the same settings give the same reply; for others try /temperature 0.8")
    return reply


def _save(chat: Chat, name: str) -> None:
    chat.conversation.save(_file("/save", name), chat.settings)
    print_note(f"saved to {name}")


def _load(chat: Chat, name: str) -> None:
    chat.resume(chat.conversation.load(_file("/load", name)))
    chat.replies.clear()


def _file(command: str, name: str) -> Path:
    if not name:
        raise SettingError(f"{command} needs a file, such as '{command} monday.chat'")
    return expand_user(name)


def _reset(chat: Chat, _: str) -> None:
    chat.conversation.reset()
    print_note("all turns are forgotten")


def _help(_chat: Chat, _: str) -> None:
    entries = {f"/{name} {command.usage}": command.meaning for name, command in COMMANDS.items()} | KEYS
    for usage, meaning in entries.items():
        stderr.print(usage.ljust(24) + meaning, markup=False, highlight=False, soft_wrap=True)


def _quit(_chat: Chat, _: str) -> None:
    raise LeaveError


COMMANDS: dict[str, Command] = {
    "rule": Command("[RULE]", "Show the rule, or choose one, such as opt:0.2 or strict.", _rule),
    "alpha": Command("X", "Turn the rule's dial.", _alpha),
    "temperature": Command("X", "Set the temperature; 0 is greedy.", _temperature),
    "stats": Command("", "Show counts and times of the last reply and of the chat.", _stats),
    "origin": Command("", "Turn colors by origin on or off.", _origin),
    "system": Command("[TEXT|@FILE|-]", "Show the system prompt, set it, or remove it.", _system),
    "retry": Command("", "Ask the last question again and replace its reply.", _retry),
    "save": Command("FILE", "Write messages, settings and caches to a file.", _save),
    "load": Command("FILE", "Continue with such a file.", _load),
    "reset": Command("", "Forget all turns; system prompt and settings stay.", _reset),
    "help": Command("", "Show this list.", _help),
    "quit": Command("", "Leave.", _quit),
}
#: What else can be typed.
KEYS: dict[str, str] = {
    '"""': "Begins and ends a question of several lines.",
    "Ctrl-C": "Stops a reply and keeps its text so far; else leaves.",
    "Ctrl-D": "Leaves.",
}
