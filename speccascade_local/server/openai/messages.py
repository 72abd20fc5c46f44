"""One turn of a conversation in every form that clients send: text, parts of text, function calls and their results.

Types are strict, numbers finite, lists and nesting bounded.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

MAX_MESSAGES, MAX_PARTS, MAX_TOOLS = 4096, 1024, 128
#: Maximum number of parts and tool calls in all messages together.
MAX_ALL_PARTS = 16_384
#: Maximum nesting of JSON that reaches a chat template.
MAX_DEPTH = 100


class StrictModel(BaseModel):
    """A model without type conversion: no text for a number, no NaN."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", protected_namespaces=())


#: Contents that are not read, by the type of the part.
_UNREAD = {
    "image_url": "images",
    "input_image": "images",
    "input_audio": "sounds",
    "file": "files",
    "input_file": "files",
    "video_url": "films",
}


class TextPart(StrictModel):
    """A part of a message, under any of OpenAI's names for text."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str = Field(validation_alias=AliasChoices("text", "refusal"))

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            unread = _UNREAD.get(str(value.get("type")))
            if unread:
                raise ValueError(f"{unread} are not read; send text parts")
            if not isinstance(value.get("text", value.get("refusal")), str):
                raise ValueError('this part has no text; send {"type": "text", "text": "..."}')
        return value


class CalledFunction(StrictModel):
    """A function that an assistant called. ``arguments`` is an object, the JSON text of one, or nothing."""

    name: str
    arguments: str | dict[str, Any] | None = Field(default=None, validate_default=True)

    @field_validator("arguments", mode="after")
    @classmethod
    def _parse(cls, value: str | dict[str, Any] | None) -> dict[str, Any]:
        """Return the object, because chat templates write it as JSON again."""
        arguments: Any = value
        if isinstance(value, str):
            try:
                arguments = pydantic_core.from_json(value, allow_inf_nan=False) if value.strip() else None
            except ValueError as error:
                raise ValueError(f"the arguments are not valid JSON: {error}") from None
        if arguments is None:
            return {}
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments are a JSON {type(arguments).__name__}; they must be an object")
        _require_plain(arguments)
        return arguments

    @property
    def characters(self) -> int:
        return len(self.name) + len(json.dumps(self.arguments))


def _require_plain(value: Any) -> None:
    """Raise ValueError for a value that cannot be written as JSON again."""
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"the arguments are nested more than {MAX_DEPTH} deep; flatten them")
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())]
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("the arguments hold a number that is too large for JSON") from None


class ToolCall(StrictModel):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    def as_dict(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return ({} if self.id is None else {"id": self.id}) | {"type": "function", "function": function}


def _kind_of_content(value: Any) -> str | None:
    return "str" if isinstance(value, str) else "list[TextPart]" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("list[TextPart]")],
    Discriminator(_kind_of_content, custom_error_type="content_type", custom_error_message="must be text or a list of text parts"),
]


class ChatMessage(StrictModel):
    """One turn, in every form that clients send. ``function`` and ``function_call`` are OpenAI's older names."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    audio: None = Field(default=None, description="refused; audio is not read")

    @model_validator(mode="after")
    def _require_content(self) -> ChatMessage:
        if self.content is None and self.role not in ("assistant", "tool", "function"):
            raise ValueError("content is missing; only messages of the assistant or a tool may omit it")
        return self

    @property
    def text(self) -> str:
        """All parts, joined, or the refusal of a message without any."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        return text or self.refusal or ""

    @property
    def calls(self) -> list[ToolCall]:
        return [*(self.tool_calls or ()), *([ToolCall(function=self.function_call)] if self.function_call else ())]

    @property
    def characters(self) -> int:
        """The length of the message, calls included."""
        return len(self.text) + len(self.name or "") + len(self.tool_call_id or "") + sum(call.function.characters for call in self.calls)


def _limit_parts(messages: Any) -> Any:
    """Raise ValueError for too many parts and calls, before any is validated."""
    if isinstance(messages, list):
        lists = (each.get(name) for each in messages if isinstance(each, dict) for name in ("content", "tool_calls"))
        parts = sum(len(each) for each in lists if isinstance(each, list))
        if parts > MAX_ALL_PARTS:
            raise ValueError(f"there are {parts:,} parts and tool calls in all; at most {MAX_ALL_PARTS:,} are allowed")
    return messages


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), BeforeValidator(_limit_parts)]
