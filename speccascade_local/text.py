"""Bytes -> UTF-8 text that may be shown, stop strings, and chat templates.

A token can be half a character, and a stop string can lie across tokens: :class:`TextStream` holds back what is not yet certain.
:class:`ChatTemplate` renders a model's own Jinja template in a sandbox, because it comes out of a downloaded file
(CVE-2024-34359), and keeps control tokens that a *message* spells out from becoming control tokens.
Knows nothing of models beyond the few functions and texts it is given.
"""

from __future__ import annotations

import codecs
import datetime
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import PromptError

Message = Mapping[str, str]


class TextStream:
    """Turns emitted tokens into text, one piece per token.

    ``pieces[i]`` is what token i made visible: never half a character, and nothing that might still turn out to be the
    beginning of a stop string; held-back text appears with the token that settles it. The concatenation is the text.
    """

    def __init__(self, piece: Callable[[int], bytes], is_end: Callable[[int], bool], stop: Sequence[str] = ()) -> None:
        self.pieces: list[str] = []
        self._piece = piece
        self._is_end = is_end
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, token: int) -> bool:
        """Take the next token; True when the text ends with it (end of text, or a stop string is complete)."""
        if self._is_end(token):
            self.pieces.append("")
            return True
        text = self._held + self._decoder.decode(self._piece(token))
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if found:
            # The stop string that is complete first ends the text (of those, the longest): so token borders make no difference.
            self.pieces.append(text[: min(found)[1]])
            self._held = ""
            self._decoder.reset()
            return True
        kept = _possible_beginning(text, self._stop)
        self.pieces.append(text[: len(text) - kept])
        self._held = text[len(text) - kept :]
        return False

    def finish(self) -> None:
        """No more tokens: what is held back belongs to the text after all. A broken last character becomes U+FFFD."""
        rest = self._held + self._decoder.decode(b"", final=True)
        if rest:
            self.pieces[-1] += rest


def _possible_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of a stop string."""
    longest = max((len(s) - 1 for s in stop), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[-length:]) for s in stop):
            return length
    return 0


class ChatTemplate:
    """A model's Jinja chat template. Raises PromptError when the source does not compile.

    special_texts: ``bos_token`` and ``eos_token`` for the template. control_texts: what must not be read as a control token
    when a message contains it.
    """

    def __init__(self, source: str, *, special_texts: Mapping[str, str], control_texts: Iterable[str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # the source is a stranger's: whatever it does to the compiler is no fault of ours
            raise PromptError(f"the chat template in the model file does not compile: {error}; use a raw prompt (--raw)") from error
        self._special_texts = dict(special_texts)
        backwards = sorted(filter(None, control_texts), reverse=True)  # so a longer one comes before what it begins with
        self._control = re.compile("|".join(map(re.escape, backwards))) if backwards else None

    def render(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The prompt up to where the assistant speaks, as (text, may hold control tokens) parts.

        Wherever a message spells a control token, that spelling becomes a part of its own, marked False: to be read as plain text.
        (One gap is left: a template that joins two fields of messages without anything between them can complete a spelling whose
        halves stand in both.)
        Raises PromptError for messages that are malformed or that the template refuses.
        """
        nonce = str(secrets.randbits(64))  # unguessable, so a message cannot forge a mark; digits, so filters like upper keep it
        spelled: list[str] = []

        def mark(match: re.Match[str]) -> str:
            spelled.append(match.group())
            return f"\ue000{nonce}:{len(spelled) - 1}\ue001"

        safe = [
            {key: self._control.sub(mark, value) if self._control else value for key, value in message.items()}
            for message in _checked(messages)
        ]
        try:
            text = self._template.render(messages=safe, add_generation_prompt=True, **self._special_texts)
        except Exception as error:  # as above: a stranger's program may fail in any way
            raise PromptError(
                f"the model's chat template refuses these messages: {error}; check the roles and their order, or use a raw prompt (--raw)"
            ) from error
        parts = re.split(f"\ue000{nonce}:(\\d+)\ue001", text)  # text, index, text, index, ... text
        if any(nonce in part for part in parts[0::2]):
            raise PromptError("the model's chat template takes a message apart that spells a control token; leave that spelling out")
        return [(spelled[int(part)], False) if i % 2 else (part, True) for i, part in enumerate(parts) if part]


def _checked(messages: Sequence[Message]) -> list[dict[str, str]]:
    if not messages or isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError("a chat needs a list of at least one message, such as [{'role': 'user', 'content': 'Hi'}]")
    for position, message in enumerate(messages):
        complete = isinstance(message, Mapping) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        if not complete or not all(isinstance(value, str) for value in message.values()):
            raise PromptError(f"message {position} is {message!r}; each message is a mapping with the texts 'role' and 'content'")
    return [dict(message) for message in messages]


def _to_json(value: Any, indent: int | None = None) -> str:
    """Plain JSON, as chat templates expect; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: Any) -> NoReturn:
    """What a template calls to refuse its messages."""
    raise jinja2.TemplateError(str(message))
