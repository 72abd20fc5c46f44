"""What begins with a slash in a chat: the commands by name, and the state that they change.

Knows nothing of where lines come from and how answers are shown.
"""

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
    """The user asked to leave."""


@dataclass
class Chat:
    """A conversation as its user has set it up. replies: all that came. retries: how often the last question was asked again."""

    conversation: Conversation
    settings: Settings
    coloured: bool = False
    replies: list[Reply] = field(default_factory=list)
    retries: int = 0

    def ask(self, question: str) -> Generator[Chunk]:
        """The answer, block by block."""
        self.retries = 0
        return self.conversation.stream(question, self.settings)

    def retry(self) -> Generator[Chunk]:
        """Another answer to the last question, by other random numbers."""
        self.retries += 1
        seed = self.settings.seed
        return self.conversation.retry(replace(self.settings, seed=None if seed is None else seed + self.retries))

    def go_on(self, restored: RestoredChat, **chosen: Any) -> None:
        """With the settings of a session file, but for those that were chosen."""
        self.settings = replace(restored.settings, **chosen)
        for note in restored.notes:
            tell(note)
        tell(f"turns from the session file: {len(self.conversation.messages) // 2}")


class Command(NamedTuple):
    """usage: what is written behind the name. act: what it does; an answer that it begins is shown."""

    usage: str
    meaning: str
    act: Callable[[Chat, str], Generator[Chunk] | None]


def tell(text: str) -> None:
    """A line about the chat, on stderr."""
    stderr.print(f"({text})", style="dim", markup=False, highlight=False, soft_wrap=True)


def system_text(given: str) -> str:
    """A text, or what a file says: ``@FILE``. Raises CatalogError."""
    return read_text(expand_user(given[1:])).strip() if given.startswith("@") else given


def obey(chat: Chat, line: str) -> Generator[Chunk] | None:
    """Do what the line says, which begins with a slash. Raises SettingError for an unknown command, and what the command raises."""
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{close[0]}? " if close else ""
        raise SettingError(
            f"unknown command /{name:.40}; {hint}/help lists them all; a question that begins with / needs a space before it"
        )
    return COMMANDS[name].act(chat, argument.strip())


def _rule(chat: Chat, spec: str | Method) -> None:
    if spec:
        chat.settings = replace(chat.settings, rule=registry.parse(spec))
    rule = chat.settings.method(chat.conversation.runtime.rule)
    tell(f"rule {rule}: {rule.trade}")


def _alpha(chat: Chat, text: str) -> None:
    now = registry.parse(chat.settings.rule or chat.conversation.runtime.rule)
    _rule(chat, registry.with_dial(now, _number("/alpha", text, "0.5")))


def _temperature(chat: Chat, text: str) -> None:
    chat.settings = replace(chat.settings, temperature=_number("/temperature", text, "0.8"))
    tell(f"temperature {chat.settings.temperature:g}")


def _number(name: str, text: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"{name} needs a number, such as '{name} {example}'; got {text!r:.40}") from None


def _stats(chat: Chat, _: str) -> None:
    if not chat.replies:
        tell("no answer yet")
        return
    print_figures(chat.replies[-1])
    tokens, seconds = (sum(getattr(reply.stats, name) for reply in chat.replies) for name in ("tokens", "wall_s"))
    turns, forgotten = len(chat.conversation.messages) // 2, chat.conversation.forgotten
    tell(f"answers: {len(chat.replies)}, {tokens} tokens in {number(seconds)} s; turns: {turns}, of which {forgotten} left the prompt")


def _origin(chat: Chat, _: str) -> None:
    chat.coloured = not chat.coloured
    tell(f"colours by origin are {'on' if chat.coloured else 'off'}")
    if chat.coloured and shows_styles():
        stderr.print(legend())


def _system(chat: Chat, given: str) -> None:
    if given:
        chat.conversation.system = None if given == "-" else system_text(given)
    tell(f"system prompt: {chat.conversation.system or 'none'}")


def _retry(chat: Chat, _: str) -> Generator[Chunk]:
    answer = chat.retry()
    if chat.settings.temperature == 0:
        tell("at temperature 0 the same settings give the same answer; /temperature 0.8 makes others possible")
    return answer


def _save(chat: Chat, name: str) -> None:
    chat.conversation.save(_file("/save", name), chat.settings)
    tell(f"saved to {name}")


def _load(chat: Chat, name: str) -> None:
    chat.go_on(chat.conversation.load(_file("/load", name)))
    chat.replies.clear()


def _file(command: str, name: str) -> Path:
    if not name:
        raise SettingError(f"{command} needs a file, such as '{command} monday.chat'")
    return expand_user(name)


def _reset(chat: Chat, _: str) -> None:
    chat.conversation.reset()
    tell("all turns are forgotten")


def _help(_chat: Chat, _: str) -> None:
    for name, (usage, meaning, _act) in COMMANDS.items():
        tell_plain(f"/{name} {usage}".ljust(24) + meaning)
    for key, meaning in KEYS.items():
        tell_plain(key.ljust(24) + meaning)


def _quit(_chat: Chat, _: str) -> None:
    raise LeaveError


def tell_plain(text: str) -> None:
    """A line of help, on stderr."""
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


COMMANDS: dict[str, Command] = {
    "rule": Command("[RULE]", "Show the rule, or choose one, such as opt:0.2 or strict.", _rule),
    "alpha": Command("X", "Turn the rule's dial.", _alpha),
    "temperature": Command("X", "0 is greedy.", _temperature),
    "stats": Command("", "What the last answer took, and the whole chat.", _stats),
    "origin": Command("", "Colour each token by who wrote it, or stop that.", _origin),
    "system": Command("[TEXT|@FILE|-]", "Show the system prompt, set it, or remove it.", _system),
    "retry": Command("", "Ask the last question again, in place of its answer.", _retry),
    "save": Command("FILE", "Write messages, settings and caches to a file.", _save),
    "load": Command("FILE", "Go on with such a file.", _load),
    "reset": Command("", "Forget all turns; system prompt and settings stay.", _reset),
    "help": Command("", "Show this.", _help),
    "quit": Command("", "Leave.", _quit),
}
#: What else can be typed.
KEYS: dict[str, str] = {
    '"""': "Begins and ends a question of several lines.",
    "Ctrl-C": "Stops an answer (what it has said stays); else leaves.",
    "Ctrl-D": "Leaves.",
}
