"""A conversation of several turns with a loaded pair: the messages, and a prompt for each turn that begins with what the caches hold.

When the history outgrows the context, the oldest turns leave the prompt, the system prompt stays, and a warning says so. Knows nothing of
terminals and of how replies are made.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from ..common.errors import CatalogError, PromptError, SessionError, SettingError
from ..common.files import expand_user
from ..rules import registry
from ..tokens.chat_template import Message
from ..tokens.transcript import Transcript
from . import session_file
from .reply import Chunk, Reply
from .runtime import Runtime
from .session_file import ModelMark, SavedChat
from .settings import Call, Settings, takes_settings

log = logging.getLogger(__name__)


class RestoredChat(NamedTuple):
    """What a session file brought besides the messages. notes: what could not be brought back as it was, and why, a sentence each."""

    settings: Settings
    notes: tuple[str, ...] = ()


class Conversation:
    """Question and answer in turns: ``Conversation(runtime, system="Be brief.").ask("Hi").text``.

    messages: all turns, questions and answers. system: the system prompt; it may be changed between turns. forgotten: so many of the
    oldest turns are no longer part of the prompt, because the context is full. Not for several threads at once.
    """

    def __init__(self, runtime: Runtime, *, system: str | None = None) -> None:
        self.runtime = runtime
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.forgotten = 0
        self._said = Transcript()
        self._answer: Generator[Chunk] | None = None

    # ------------------------------------------------------------------ the verbs

    @takes_settings
    def ask(self, text: str, call: Call) -> Reply:
        """The whole answer to the next question. Keywords as those of :meth:`Runtime.chat`, and the same errors."""
        return Reply.of(list(self._asked(text, call)))

    @takes_settings
    def stream(self, text: str, call: Call) -> Generator[Chunk]:
        """Like :meth:`ask`, block by block. What an answer that is cancelled, or not read to its end, has said stays in the conversation.

        Bad input is refused by the call itself. A question without any answer, because the first block failed, is not kept.
        """
        return self._asked(text, call)

    def retry(self, **chosen: Any) -> Generator[Chunk]:
        """Stream another answer to the last question, in place of the one that it had, which stays until the new one begins.

        Keywords as those of :meth:`stream`. Raises PromptError when nothing has been asked yet.
        """
        call = Call(**chosen)
        self._end_answer()
        if not self.messages:
            raise PromptError("there is no answer yet that could be tried again; ask something first")
        return self._asked(self.messages[-2]["content"], call, self.messages[:-2])

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self._end_answer()
        self.messages, self.forgotten, self._said = [], 0, Transcript()

    def save(self, path: str | os.PathLike[str], settings: Settings | None = None) -> None:
        """Write a session file: messages, settings, and what the caches hold. Raises CatalogError and SessionError."""
        self._end_answer()
        session_file.write(expand_user(path), self.saved(settings))

    def load(self, path: str | os.PathLike[str]) -> RestoredChat:
        """Go on with what was saved. Raises CatalogError for a file that cannot be used, and then everything is as it was."""
        return self.restore(session_file.read(expand_user(path)))

    # ------------------------------------------------------------------ on disk

    def saved(self, settings: Settings | None = None) -> SavedChat:
        """All of it, as a value."""
        marks = {role: ModelMark.of(model.path) for role, model in self.runtime.models.items()}
        kept = _plain(settings) if settings else {}
        return SavedChat(self.messages, self.system, self.forgotten, kept, self._said, marks, self.runtime.saved_caches())

    def restore(self, chat: SavedChat) -> RestoredChat:
        """Go on with that. Models that are not those it was saved with have to read it again. Raises CatalogError."""
        roles = [message.get("role") for message in chat.messages]
        if roles != ["user", "assistant"] * (len(roles) // 2) or not all("content" in message for message in chat.messages):
            raise CatalogError("the session's messages are not questions and answers in turns; it cannot be continued here")
        settings, notes = _settings(chat.settings)
        marks = {role: ModelMark.of(model.path) for role, model in self.runtime.models.items()}
        same_words = marks["expert"] == chat.models.get("expert")
        if same_words and not all(0 <= token < self.runtime.n_vocab for token in chat.said.ids):
            raise CatalogError("the session holds token ids that its own models do not have; it cannot be continued")
        self._end_answer()
        self.messages, self.system, self.forgotten = list(chat.messages), chat.system, chat.forgotten
        self._said = chat.said if same_words else Transcript()
        self.runtime.reset()
        cold = {role: self._filled(role, mark, chat) for role, mark in marks.items()}
        notes += [f"the {role} reads the conversation again: {reason}" for role, reason in cold.items() if reason]
        return RestoredChat(settings, tuple(notes))

    def _filled(self, role: str, mark: ModelMark, chat: SavedChat) -> str | None:
        """Fill the cache of that model, or why not."""
        other = chat.models.get(role)
        if other != mark:
            return f"the session was saved with {other.name if other else 'no such model'}, and this is {mark.name}"
        if role in chat.caches:
            try:
                self.runtime.restore_cache(role, chat.caches[role])
            except SessionError as error:
                return str(error)
        return None

    # ------------------------------------------------------------------ how

    def _asked(self, text: str, call: Call, before: list[dict[str, str]] | None = None) -> Generator[Chunk]:
        self._end_answer()
        before = self.messages if before is None else before
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"the question is {text!r:.40}; it must be a text that is not empty")
        question = {"role": "user", "content": text}
        prompt, forgotten = self._prompt(before, question, call.max_tokens)
        chunks = self.runtime.stream(prompt.ids, **vars(call))
        if forgotten > self.forgotten:
            turns = f"{forgotten} turn{'s' * (forgotten > 1)}"
            log.warning("the context of %d tokens is full: the oldest %s left the prompt", self.runtime.n_ctx, turns)
        self._answer = self._kept([*before, question], prompt, forgotten, chunks)
        return self._answer

    def _prompt(self, before: list[dict[str, str]], question: Message, max_tokens: int) -> tuple[Transcript, int]:
        """With room for an answer: when the context is full, the oldest turns go until half of it is free, so that it lasts for a while."""
        n_ctx, forgotten = self.runtime.n_ctx, self.forgotten
        prompt = self._rendered([*before[2 * forgotten :], question])
        if len(prompt.ids) + min(max_tokens, n_ctx // 4) > n_ctx:
            while len(prompt.ids) > n_ctx // 2 and 2 * forgotten < len(before):
                forgotten += 1
                prompt = self._rendered([*before[2 * forgotten :], question])
        return prompt, forgotten

    def _rendered(self, messages: Sequence[Message]) -> Transcript:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.runtime.chat_prompt([*system, *messages], self._said)

    def _kept(self, asked: list[dict[str, str]], prompt: Transcript, forgotten: int, chunks: Iterator[Chunk]) -> Generator[Chunk]:
        read: list[Chunk] = []
        try:
            for chunk in chunks:
                read.append(chunk)
                yield chunk
        finally:
            if any(chunk.tokens for chunk in read):  # else there is nothing that could be answered to
                reply = Reply.of(read)
                self.messages = [*asked, {"role": "assistant", "content": reply.text}]
                self.forgotten = forgotten
                self._said = prompt.answered(_shown(reply))

    def _end_answer(self) -> None:
        """An answer that is still being read ends here."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()


def _shown(reply: Reply) -> list[int]:
    """The ids of an answer, but for those at the end of a broken-off one that have shown nothing yet, such as half a character."""
    tokens = list(reply.tokens)
    while reply.finish_reason in (None, "cancelled") and tokens and not tokens[-1].text:
        tokens.pop()
    return [token.id for token in tokens]


#: A bias of minus infinity, for which JSON has no number.
_NEVER = "never"


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON has them. Rules are written as they are named."""
    given = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    named = {name: str(given[name]) for name in ("rule", "thinking_rule") if given[name] is not None}
    biases = {str(key): _NEVER if value == -math.inf else value for key, value in settings.logit_bias.items()}
    return given | named | {"stop": list(settings.stop), "stop_token_ids": list(settings.stop_token_ids), "logit_bias": biases}


def _settings(given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """What a file says, checked, and what of it is left out. Raises CatalogError."""
    kept, notes = dict(given), []
    for name in ("rule", "thinking_rule"):
        if isinstance(kept.get(name), str) and registry.is_custom(kept[name]):
            notes.append(f"its {name} {kept.pop(name)} is code, which is not run because a file says so; name it again to use it")
    unknown = kept.keys() - {field.name for field in fields(Settings)}
    if unknown:
        raise CatalogError(f"the session has the unknown settings {', '.join(sorted(unknown))}; it was written by another version")
    try:
        biases = {int(key): -math.inf if value == _NEVER else value for key, value in kept.pop("logit_bias", {}).items()}
        return Settings(**kept, logit_bias=biases), notes
    except (SettingError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(f"the session's settings cannot be used here: {error}") from error
