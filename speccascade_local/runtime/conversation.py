"""A conversation of several turns with a loaded pair: the messages, and a prompt for each turn that begins with what the caches hold.

When the history exceeds the context, the oldest turns leave the prompt, the system prompt stays, and the log warns.
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
from .settings import Cancel, OnChunk, Settings, Watch, settings_with

log = logging.getLogger(__name__)


class RestoredChat(NamedTuple):
    """What a session file held besides the messages. ``notes``: a sentence for each thing that could not be restored."""

    settings: Settings
    notes: tuple[str, ...] = ()


class Conversation:
    """Question and answer in turns: ``Conversation(runtime, system="Be brief.").ask("Hi").text``. For one thread at a time.

    Attributes:
        runtime: the pair that answers.
        system: the system prompt; it may change between turns.
        messages: all turns, questions and answers.
        forgotten: how many of the oldest turns are no longer part of the prompt, because the context is full.
    """

    def __init__(self, runtime: Runtime, *, system: str | None = None) -> None:
        self.runtime = runtime
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.forgotten = 0
        self._said = Transcript()
        self._answer: Generator[Chunk] | None = None

    def ask(
        self, text: str, settings: Settings | None = None, *, cancel: Cancel | None = None, on_chunk: OnChunk = None, **overrides: Any
    ) -> Reply:
        """Return the whole answer to the next question. Arguments and errors are those of :meth:`Runtime.generate`."""
        return Reply.of(list(self.stream(text, settings, cancel=cancel, on_chunk=on_chunk, **overrides)))

    def stream(
        self, text: str, settings: Settings | None = None, *, cancel: Cancel | None = None, on_chunk: OnChunk = None, **overrides: Any
    ) -> Generator[Chunk]:
        """Yield the answer of :meth:`ask` block by block.

        The call itself refuses bad input. What a cancelled answer, or one that is not read to its end, has said stays in the conversation.
        A question without any answer, because the first block failed, does not.
        """
        return self._answer_to(text, settings_with(settings, overrides), Watch(cancel=cancel, on_chunk=on_chunk))

    def retry(
        self, settings: Settings | None = None, *, cancel: Cancel | None = None, on_chunk: OnChunk = None, **overrides: Any
    ) -> Generator[Chunk]:
        """Stream another answer to the last question; the old one stays until the new one begins.

        Raises PromptError when nothing has been asked yet, and what :meth:`stream` raises.
        """
        made_of = settings_with(settings, overrides), Watch(cancel=cancel, on_chunk=on_chunk)
        self._end_answer()
        if not self.messages:
            raise PromptError("there is no answer to try again; ask something first")
        return self._answer_to(self.messages[-2]["content"], *made_of, self.messages[:-2])

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self._end_answer()
        self.messages, self.forgotten, self._said = [], 0, Transcript()

    def save(self, path: str | os.PathLike[str], settings: Settings | None = None) -> None:
        """Write a session file: messages, settings, and what the caches hold. Raises CatalogError and SessionError."""
        self._end_answer()
        session_file.write(expand_user(path), self.saved(settings))

    def load(self, path: str | os.PathLike[str]) -> RestoredChat:
        """Continue what was saved. Raises CatalogError for a file that cannot be used, and then nothing has changed."""
        return self.restore(session_file.read(expand_user(path)))

    # ------------------------------------------------------------------ on disk

    def saved(self, settings: Settings | None = None) -> SavedChat:
        """Return the whole conversation as a value."""
        marks = {role: ModelMark.of(model.path) for role, model in self.runtime.models.items()}
        plain = _plain(settings) if settings else {}
        return SavedChat(self.messages, self.system, self.forgotten, plain, self._said, marks, self.runtime.saved_caches())

    def restore(self, chat: SavedChat) -> RestoredChat:
        """Continue a saved conversation. Models other than those it was saved with read it again. Raises CatalogError."""
        roles = [message.get("role") for message in chat.messages]
        if roles != ["user", "assistant"] * (len(roles) // 2) or not all("content" in message for message in chat.messages):
            raise CatalogError("the session's messages are not questions and answers in turns, so it cannot be continued here")
        settings, notes = _settings(chat.settings)
        marks = {role: ModelMark.of(model.path) for role, model in self.runtime.models.items()}
        same_words = marks["expert"] == chat.models.get("expert")
        if same_words and not all(0 <= token < self.runtime.n_vocab for token in chat.said.ids):
            raise CatalogError("the session holds token ids that its own models do not have, so it cannot be continued")
        self._end_answer()
        self.messages, self.system, self.forgotten = list(chat.messages), chat.system, chat.forgotten
        self._said = chat.said if same_words else Transcript()
        self.runtime.reset()
        cold = {role: self._fill_cache(role, mark, chat) for role, mark in marks.items()}
        notes += [f"the {role} reads the conversation again: {reason}" for role, reason in cold.items() if reason]
        return RestoredChat(settings, tuple(notes))

    def _fill_cache(self, role: str, mark: ModelMark, chat: SavedChat) -> str | None:
        """Fill the cache of a model, or return why that is impossible."""
        other = chat.models.get(role)
        if other != mark:
            return f"the session was saved with {other.name if other else 'none'}, and this is {mark.name}"
        if role in chat.caches:
            try:
                self.runtime.restore_cache(role, chat.caches[role])
            except SessionError as error:
                return str(error)
        return None

    def _answer_to(self, text: str, settings: Settings, watch: Watch, before: list[dict[str, str]] | None = None) -> Generator[Chunk]:
        """Answer a question that follows the messages ``before``; None: all of them."""
        self._end_answer()
        before = self.messages if before is None else before
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"the question is {text!r:.40}; it must be a text, and not empty")
        question = {"role": "user", "content": text}
        prompt, forgotten = self._prompt(before, question, settings.max_tokens)
        chunks = self.runtime.stream(prompt.ids, settings, cancel=watch.cancel, on_chunk=watch.on_chunk)
        if forgotten > self.forgotten:
            turns = f"{forgotten} turn{'s' * (forgotten > 1)}"
            log.warning("the context of %d tokens is full: the oldest %s left the prompt", self.runtime.n_ctx, turns)
        self._answer = self._store_answer([*before, question], prompt, forgotten, chunks)
        return self._answer

    def _prompt(self, before: list[dict[str, str]], question: Message, max_tokens: int) -> tuple[Transcript, int]:
        """Return a prompt that leaves room, and how many turns it omits: where the context is full, the oldest until half is free."""
        n_ctx, forgotten = self.runtime.n_ctx, self.forgotten
        prompt = self._render([*before[2 * forgotten :], question])
        if len(prompt.ids) + min(max_tokens, n_ctx // 4) > n_ctx:
            while len(prompt.ids) > n_ctx // 2 and 2 * forgotten < len(before):
                forgotten += 1
                prompt = self._render([*before[2 * forgotten :], question])
        return prompt, forgotten

    def _render(self, messages: Sequence[Message]) -> Transcript:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.runtime.chat_prompt([*system, *messages], self._said)

    def _store_answer(self, asked: list[dict[str, str]], prompt: Transcript, forgotten: int, chunks: Iterator[Chunk]) -> Generator[Chunk]:
        read: list[Chunk] = []
        try:
            for chunk in chunks:
                read.append(chunk)
                yield chunk
        finally:
            if any(chunk.tokens for chunk in read):
                reply = Reply.of(read)
                self.messages = [*asked, {"role": "assistant", "content": reply.text}]
                self.forgotten = forgotten
                self._said = prompt.answered(_visible_ids(reply))

    def _end_answer(self) -> None:
        """End an answer that is still being read."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()


def _visible_ids(reply: Reply) -> list[int]:
    """Return the ids of an answer; where it was cut off, without those at its end that show nothing yet, such as half a character."""
    tokens = list(reply.tokens)
    while reply.finish_reason in (None, "cancelled") and tokens and not tokens[-1].text:
        tokens.pop()
    return [token.id for token in tokens]


#: A bias of minus infinity, for which JSON has no number.
_NEVER = "never"


def _plain(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON has them, rules by name."""
    given = settings.as_dict()
    named = {name: str(given[name]) for name in ("rule", "thinking_rule") if given[name] is not None}
    biases = {str(key): _NEVER if value == -math.inf else value for key, value in settings.logit_bias.items()}
    return given | named | {"stop": list(settings.stop), "stop_token_ids": list(settings.stop_token_ids), "logit_bias": biases}


def _settings(given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Return the settings of a file, checked, and notes on what is omitted. Raises CatalogError."""
    values, notes = dict(given), []
    for name in ("rule", "thinking_rule"):
        if isinstance(values.get(name), str) and registry.is_custom(values[name]):
            notes.append(f"its {name} {values.pop(name)} is code, which a session file may not run; name it again to use it")
    unknown = values.keys() - {field.name for field in fields(Settings)}
    if unknown:
        raise CatalogError(f"the session has the unknown settings {', '.join(sorted(unknown))}; it was written by another version")
    try:
        biases = {int(key): -math.inf if value == _NEVER else value for key, value in values.pop("logit_bias", {}).items()}
        return Settings(**values, logit_bias=biases), notes
    except (SettingError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(f"the session's settings cannot be used here: {error}") from error
