"""Messages -> the prompt that a model's own chat template makes of them.

The Jinja template comes from a downloaded file (CVE-2024-34359), so a child process renders it: tokens/template_process.py. A control
token that a *message* spells out stays plain text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from ..common.errors import PromptError
from .prompt import Part
from .template_process import renderer

#: ``role`` and ``content``; an assistant's message may have ``tool_calls``, a tool's ``tool_call_id``.
Message = Mapping[str, Any]

#: The longest control token, in characters; those of published models have fewer than 40.
LONGEST_CONTROL = 128

_PROBE = "speccascade"


class ChatTemplate:
    """A model's Jinja chat template. Raises PromptError where the source does not compile.

    Args:
        source: The template.
        special_texts: ``bos_token`` and ``eos_token`` for the template.
        control_texts: The spellings of control tokens, which stay plain text in messages.
    """

    def __init__(self, source: str, *, special_texts: Mapping[str, str], control_texts: Iterable[str]) -> None:
        renderer.check(source)
        self._source = source
        self._special_texts = dict(special_texts)
        self._control = _Spellings(control_texts)

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, continues: bool = True) -> list[Part]:
        """Return the prompt up to where the assistant answers, as parts: each text with whether it may hold control tokens.

        A system message that the template cannot place goes before the first user message. A control token that a message or tool spells
        becomes a part marked False. One gap is left: a template that joins two fields without anything between them can complete a
        spelling whose halves are in both.

        Args:
            messages: The conversation.
            tools: Functions that the model may call, as OpenAI describes them.
            continues: Whether a last message of the assistant is the beginning of its answer. Then the prompt ends where its content ends,
                white space included. An empty message begins nothing; one that calls tools is complete.

        Raises:
            PromptError: Messages are malformed, the template refuses them, cannot leave an answer unfinished, or takes too long.
        """
        turns = _check_messages(messages)
        is_begun = continues and turns[-1]["role"] == "assistant" and not turns[-1].get("tool_calls")
        if is_begun and not turns[-1]["content"]:
            turns, is_begun = turns[:-1], False
            _check_messages(turns)
        if [message["role"] for message in turns[:2]] == ["system", "user"] and not self.takes_system:
            system, user, *rest = turns
            turns = [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]
        nonce = str(secrets.randbits(64))  # unguessable, so a message cannot forge a mark; digits, so filters like upper keep it
        spellings: list[str] = []

        def mark(spelling: str) -> str:
            spellings.append(spelling)
            return f"\ue000{nonce}:{len(spellings) - 1}\ue001"

        def safe(value: Any) -> Any:
            if isinstance(value, str):
                return self._control.sub(mark, value)
            if isinstance(value, Mapping):
                return {safe(key): safe(each) for key, each in value.items()}
            return [safe(each) for each in value] if isinstance(value, (list, tuple)) else value

        turns, end = safe(turns), f"\ue000{nonce}\ue001"
        if is_begun:
            turns[-1]["content"] += end
        text = self._render(turns, safe(tools), add_generation_prompt=not is_begun)
        if is_begun:
            text, *after = text.split(end)
            if len(after) != 1:
                raise PromptError(
                    "the model's chat template changes an assistant's last message, so it cannot be continued; let the last message be the "
                    "user's"
                )
        parts = re.split(f"\ue000{nonce}:(\\d+)\ue001", text)  # text, index, text, index, ... text
        if any(nonce in part for part in parts[0::2]):
            raise PromptError("the model's chat template splits a message that spells a control token; leave that spelling out")
        return [(spellings[int(part)], False) if i % 2 else (part, True) for i, part in enumerate(parts) if part]

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system message, which some refuse and some leave out."""
        try:
            text = self._render([{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}])
        except PromptError:
            return False
        return _PROBE in text.lower()

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template lists the functions that may be called."""
        function = {"name": _PROBE, "description": _PROBE, "parameters": {"type": "object", "properties": {}}}
        probe = {"type": "function", "function": function}
        try:
            return _PROBE in self._render([{"role": "user", "content": "?"}], [probe])
        except PromptError:
            return False

    def _render(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, add_generation_prompt: bool = True
    ) -> str:
        variables = {"messages": messages, "add_generation_prompt": add_generation_prompt, **self._special_texts}
        return renderer.render(self._source, variables | ({"tools": tools} if tools else {}))


class _Spellings:
    """Finds spellings of tokens in a text.

    The cost at a place depends on how many lengths the tokens with its first character have, not on the number of tokens. Raises
    PromptError for a token that is longer than any real one.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(filter(None, texts))
        longest = max(map(len, self._texts), default=0)
        if longest > LONGEST_CONTROL:
            raise PromptError(
                f"the model file has a control token of {longest} characters, and at most {LONGEST_CONTROL} are supported; "
                "use a raw prompt (--raw)"
            )
        lengths: dict[str, set[int]] = {}
        for text in self._texts:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}
        self._first = re.compile(f"[{re.escape(''.join(lengths))}]") if lengths else re.compile(r"(?!)")

    def sub(self, mark: Callable[[str], str], text: str) -> str:
        """Return the text with each spelling replaced by ``mark`` of it; the longest of several at the same place."""
        parts, done, at = list[str](), 0, 0
        while match := self._first.search(text, at):
            at = match.start()
            length = next((n for n in self._lengths[text[at]] if text[at : at + n] in self._texts), 0)
            if length:
                parts += [text[done:at], mark(text[at : at + length])]
                done = at + length
            at += length or 1
        return "".join([*parts, text[done:]])


def _check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not messages or isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError("a chat needs a list of at least one message, such as [{'role': 'user', 'content': 'Hi'}]")
    for position, message in enumerate(messages):
        complete = isinstance(message, Mapping) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        if not complete or not all(isinstance(value, str) or name == "tool_calls" for name, value in message.items()):
            raise PromptError(f"message {position} is {message!r}; it must be a mapping with the texts 'role' and 'content'")
    return [dict(message) for message in messages]
