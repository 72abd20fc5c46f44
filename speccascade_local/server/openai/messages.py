"""One turn of a conversation in every form in which clients send it: text, parts of text, calls of functions and their answers.

Types are strict, numbers finite, lists and depths bounded. Knows nothing of requests, models or how answers are made.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

MAX_MESSAGES, MAX_PARTS, MAX_TOOLS = 4096, 1024, 128
#: Parts and tool calls of all messages together.
MAX_ALL_PARTS = 16_384
#: So deep may JSON be nested that ends up in a template.
MAX_DEPTH = 100


class StrictModel(BaseModel):
    """Types as they are written: no text for a number, no NaN."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", protected_namespaces=())


#: What parts of a message hold besides text, by their type.
_UNREAD = {
    "image_url": "images",
    "input_image": "images",
    "input_audio": "sounds",
    "file": "files",
    "input_file": "files",
    "video_url": "films",
}


class TextPart(StrictModel):
    """A piece of a message, under any of the names that OpenAI's protocols have for text."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str = Field(validation_alias=AliasChoices("text", "refusal"))

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:
        if isinstance(given, dict):
            unread = _UNREAD.get(str(given.get("type")))
            if unread:
                raise ValueError(f"{unread} are not read; send text parts")
            if not isinstance(given.get("text", given.get("refusal")), str):
                raise ValueError('this part has no text; send {"type": "text", "text": "..."}')
        return given


class CalledFunction(StrictModel):
    """What an assistant called. arguments: an object, as JSON text or as it is; nothing for none."""

    name: str
    arguments: str | dict[str, Any] | None = Field(default=None, validate_default=True)

    @field_validator("arguments", mode="after")
    @classmethod
    def _is_object(cls, given: str | dict[str, Any] | None) -> dict[str, Any]:
        """Templates write arguments as JSON, so they must not be text by then."""
        found: Any = given
        if isinstance(given, str):
            try:
                found = pydantic_core.from_json(given, allow_inf_nan=False) if given.strip() else None
            except ValueError as error:
                raise ValueError(f"the arguments are not valid JSON: {error}") from None
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise ValueError(f"the arguments are a JSON {type(found).__name__}; they must be an object")
        _require_plain(found)
        return found

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.name) + len(json.dumps(self.arguments))


def _require_plain(value: Any) -> None:
    """Refuse what cannot be written as JSON again. Raises ValueError."""
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"the arguments are nested more than {MAX_DEPTH} deep; flatten them")
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())]
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("the arguments have a number that is too large for JSON") from None


class ToolCall(StrictModel):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    def as_dict(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return ({} if self.id is None else {"id": self.id}) | {"type": "function", "function": function}


def _kind_of_content(given: Any) -> str | None:
    return "str" if isinstance(given, str) else "list[TextPart]" if isinstance(given, list) else None


Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("list[TextPart]")],
    Discriminator(_kind_of_content, custom_error_type="content_type", custom_error_message="this must be text or a list of text parts"),
]


class ChatMessage(StrictModel):
    """One turn, in every form in which clients send an answer back. function and function_call are OpenAI's older names."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    audio: None = Field(default=None, description="refused; sounds are not read")

    @model_validator(mode="after")
    def _said_something(self) -> ChatMessage:
        if self.content is None and self.role not in ("assistant", "tool", "function"):
            raise ValueError("content is missing; only an assistant's message or a tool's may do without")
        return self

    @property
    def text(self) -> str:
        """All parts, joined; of a message without any, its refusal."""
        said = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        return said or self.refusal or ""

    @property
    def calls(self) -> list[ToolCall]:
        """What it calls."""
        return [*(self.tool_calls or ()), *([ToolCall(function=self.function_call)] if self.function_call else ())]

    @property
    def characters(self) -> int:
        """How long it is, calls included."""
        return len(self.text) + len(self.name or "") + len(self.tool_call_id or "") + sum(call.function.characters for call in self.calls)


def _bound(messages: Any) -> Any:
    """Count parts and calls before they are looked at. Raises ValueError."""
    if isinstance(messages, list):
        lists = (each.get(name) for each in messages if isinstance(each, dict) for name in ("content", "tool_calls"))
        parts = sum(len(each) for each in lists if isinstance(each, list))
        if parts > MAX_ALL_PARTS:
            raise ValueError(f"there are {parts:,} parts and tool calls in all; {MAX_ALL_PARTS:,} are allowed")
    return messages


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), BeforeValidator(_bound)]
