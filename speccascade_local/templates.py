"""Messages -> the prompt that a model's own chat template makes of them.

:class:`ChatTemplate` has the model's Jinja template rendered at arm's length (rendering.py), because it comes out of a downloaded file
(CVE-2024-34359), and keeps control tokens that a *message* spells out from becoming control tokens. Knows nothing of models beyond the
texts it is given.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from .errors import PromptError
from .rendering import renderer

#: ``role`` and ``content``; an assistant's may have ``tool_calls``, a tool's ``tool_call_id``.
Message = Mapping[str, Any]
#: Text, and whether control tokens are read in it.
Part = tuple[str, bool]

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
        backwards = sorted(filter(None, control_texts), reverse=True)  # so a longer one comes before what it begins with
        self._control = re.compile("|".join(map(re.escape, backwards))) if backwards else None

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[Part]:
        """The prompt up to where the assistant speaks, as (text, may hold control tokens) parts.

        tools: functions that the model may call, as OpenAI describes them. Wherever a message or a tool spells a control token, that
        spelling becomes a part of its own, marked False: to be read as plain text.
        (One gap is left: a template that joins two fields of messages without anything between them can complete a spelling whose
        halves stand in both.) A system message that the template has no place for goes before the first of the user's.
        Raises PromptError for messages that are malformed or that the template refuses, and for a template that takes too long.
        """
        checked = _checked(messages)
        if [message["role"] for message in checked[:2]] == ["system", "user"] and not self.takes_system:
            system, user, *rest = checked
            checked = [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]
        nonce = str(secrets.randbits(64))  # unguessable, so a message cannot forge a mark; digits, so filters like upper keep it
        spelled: list[str] = []

        def mark(match: re.Match[str]) -> str:
            spelled.append(match.group())
            return f"\ue000{nonce}:{len(spelled) - 1}\ue001"

        def safe(value: Any) -> Any:
            if isinstance(value, str):
                return self._control.sub(mark, value) if self._control else value
            if isinstance(value, Mapping):
                return {safe(key): safe(each) for key, each in value.items()}
            return [safe(each) for each in value] if isinstance(value, (list, tuple)) else value

        rendered = self._rendered(safe(checked), safe(tools))
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

    def _rendered(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        given = {"messages": messages, "add_generation_prompt": True, **self._special_texts}
        return renderer.render(self._source, given | ({"tools": tools} if tools else {}))


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not messages or isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError("a chat needs a list of at least one message, such as [{'role': 'user', 'content': 'Hi'}]")
    for position, message in enumerate(messages):
        complete = isinstance(message, Mapping) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        if not complete or not all(isinstance(value, str) or name == "tool_calls" for name, value in message.items()):
            raise PromptError(f"message {position} is {message!r}; each message is a mapping with the texts 'role' and 'content'")
    return [dict(message) for message in messages]
