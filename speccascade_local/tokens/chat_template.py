"""Messages -> the prompt that a model's own chat template makes of them.

:class:`ChatTemplate` has the model's Jinja template rendered at arm's length (tokens/template_process.py), because it comes out of a downloaded file
(CVE-2024-34359), and keeps control tokens that a *message* spells out from becoming control tokens. Knows nothing of models beyond the
texts it is given.
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

#: ``role`` and ``content``; an assistant's may have ``tool_calls``, a tool's ``tool_call_id``.
Message = Mapping[str, Any]

#: Characters; those of published models have fewer than 40.
LONGEST_CONTROL = 128

_PROBE = "speccascade"


class ChatTemplate:
    """A model's Jinja chat template. Raises PromptError when the source does not compile.

    special_texts: ``bos_token`` and ``eos_token`` for the template. control_texts: what must not be read as a control token
    when a message contains it.
    """

    def __init__(self, source: str, *, special_texts: Mapping[str, str], control_texts: Iterable[str]) -> None:
        renderer.check(source)
        self._source = source
        self._special_texts = dict(special_texts)
        self._control = _Spellings(control_texts)

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, continues: bool = True) -> list[Part]:
        """The prompt up to where the assistant speaks, as (text, may hold control tokens) parts.

        tools: functions that the model may call, as OpenAI describes them. continues: a last message of the assistant's is the beginning of
        what it says, so the prompt ends where its content ends, white space included; one that is empty begins nothing, and one that calls
        tools is complete. Wherever a message or a tool spells a control token, that spelling becomes a part of its own, marked False: to
        be read as plain text.
        (One gap is left: a template that joins two fields of messages without anything between them can complete a spelling whose
        halves stand in both.) A system message that the template has no place for goes before the first of the user's.
        Raises PromptError for messages that are malformed or that the template refuses, for an answer that the template cannot leave
        unfinished, and for a template that takes too long.
        """
        checked = _check_messages(messages)
        begun = continues and checked[-1]["role"] == "assistant" and not checked[-1].get("tool_calls")
        if begun and not checked[-1]["content"]:
            checked, begun = checked[:-1], False
            _check_messages(checked)
        if [message["role"] for message in checked[:2]] == ["system", "user"] and not self.takes_system:
            system, user, *rest = checked
            checked = [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]
        nonce = str(secrets.randbits(64))  # unguessable, so a message cannot forge a mark; digits, so filters like upper keep it
        spelled: list[str] = []

        def mark(found: str) -> str:
            spelled.append(found)
            return f"\ue000{nonce}:{len(spelled) - 1}\ue001"

        def safe(value: Any) -> Any:
            if isinstance(value, str):
                return self._control.sub(mark, value)
            if isinstance(value, Mapping):
                return {safe(key): safe(each) for key, each in value.items()}
            return [safe(each) for each in value] if isinstance(value, (list, tuple)) else value

        given, end = safe(checked), f"\ue000{nonce}\ue001"
        if begun:
            given[-1]["content"] += end
        rendered = self._rendered(given, safe(tools), add_generation_prompt=not begun)
        if begun:
            rendered, *behind = rendered.split(end)
            if len(behind) != 1:
                raise PromptError(
                    "the model's chat template does not write an assistant's last message as it is, so it cannot be continued; let the "
                    "last message be the user's"
                )
        parts = re.split(f"\ue000{nonce}:(\\d+)\ue001", rendered)  # text, index, text, index, ... text
        if any(nonce in part for part in parts[0::2]):
            raise PromptError("the model's chat template takes a message apart that spells a control token; leave that spelling out")
        return [(spelled[int(part)], False) if i % 2 else (part, True) for i, part in enumerate(parts) if part]

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system message anywhere, which some refuse and some leave out."""
        try:
            text = self._rendered([{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}])
        except PromptError:
            return False
        return _PROBE in text.lower()

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template writes anywhere which functions may be called."""
        probe = {
            "type": "function",
            "function": {"name": _PROBE, "description": _PROBE, "parameters": {"type": "object", "properties": {}}},
        }
        try:
            return _PROBE in self._rendered([{"role": "user", "content": "?"}], [probe])
        except PromptError:
            return False

    def _rendered(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, add_generation_prompt: bool = True
    ) -> str:
        given = {"messages": messages, "add_generation_prompt": add_generation_prompt, **self._special_texts}
        return renderer.render(self._source, given | ({"tools": tools} if tools else {}))


class _Spellings:
    """Where a text spells one of some tokens. Raises PromptError for one that is longer than any real one.

    What a place costs depends on how many lengths the tokens that begin with its character have, not on how many tokens there are.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(filter(None, texts))
        longest = max(map(len, self._texts), default=0)
        if longest > LONGEST_CONTROL:
            raise PromptError(
                f"the model file has a control token of {longest} characters, and at most {LONGEST_CONTROL} can be kept out of messages; "
                "use a raw prompt (--raw)"
            )
        lengths: dict[str, set[int]] = {}
        for text in self._texts:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}
        self._first = re.compile(f"[{re.escape(''.join(lengths))}]") if lengths else re.compile(r"(?!)")

    def sub(self, mark: Callable[[str], str], text: str) -> str:
        """The text with each spelling replaced by what ``mark`` makes of it; of several that begin at a place, the longest."""
        parts, done, at = list[str](), 0, 0
        while found := self._first.search(text, at):
            at = found.start()
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
            raise PromptError(f"message {position} is {message!r}; each message is a mapping with the texts 'role' and 'content'")
    return [dict(message) for message in messages]
