"""What a request may say, as models that pydantic checks: OpenAI's fields, and our own in ``speccascade``.

Types are strict, numbers finite, lists bounded. Fields that nobody here knows are ignored, because OpenAI's client sends whatever its user
adds and newer versions add more; within ``speccascade`` they are refused, because there a misspelt name is ours to tell. Fields that would
change the answer and cannot be honoured are refused too. Knows nothing of models, rules, HTTP or how answers are made.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

MAX_STOPS, MAX_STOP_CHARACTERS, MAX_MESSAGES, MAX_PARTS, MAX_TOOLS, MAX_CHOICES, MAX_BIASES = 16, 1000, 4096, 1024, 128, 16, 1024
MAX_TOP_LOGPROBS = 20
#: So deep may JSON be nested that ends up in a template.
MAX_DEPTH = 100
LARGEST = 2**31 - 1

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=LARGEST)]], Field(min_length=1)]


class Checked(BaseModel):
    """Types as they are written: no text for a number, no NaN."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", protected_namespaces=())


class CascadeOptions(Checked):
    """How both models work together on one answer."""

    model_config = ConfigDict(extra="forbid")

    rule: str | None = Field(
        default=None, max_length=200, description="a built-in rule, expert (no drafts at all), or one registered at start"
    )
    alpha: float | None = Field(default=None, description="the rule's dial")
    block_size: Annotated[int, Field(ge=0, le=LARGEST)] | Literal["auto"] | None = Field(
        default=None, description="drafted tokens per block"
    )
    fidelity: bool = Field(default=True, description="keep account of how far the answer is from the expert's own")
    origins: bool = Field(default=False, description="tell of each token who wrote it and why")
    model_logprobs: bool = Field(default=False, description="tell of each token what both models held most probable")


class StreamOptions(Checked):
    """What a stream brings besides text."""

    include_usage: bool | None = None


class JsonSchema(Checked):
    """A schema under a name, as OpenAI nests it."""

    name: str | None = Field(default=None, max_length=200)
    schema_: dict[str, Any] = Field(alias="schema")


class TextFormat(Checked):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Checked):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Checked):
    """JSON under a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Sampled(Checked):
    """What all requests for text have in common. Left out or null: OpenAI's default."""

    model: str = Field(min_length=1, max_length=400, description="a pair, PAIR or PAIR@RULE, such as demo@token_v3:0.3")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    top_k: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    prompt_cache_key: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="the conversation that this prompt goes on with"
    )
    speccascade: CascadeOptions | None = None

    @property
    def cascade(self) -> CascadeOptions:
        """Our own options, or their defaults."""
        return self.speccascade or CascadeOptions()


#: What parts of a message hold besides text, by their type.
_UNREAD = {
    "image_url": "images",
    "input_image": "images",
    "input_audio": "sounds",
    "file": "files",
    "input_file": "files",
    "video_url": "films",
}


class TextPart(Checked):
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


class CalledFunction(Checked):
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


class ToolCall(Checked):
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
    Annotated[str, Tag("str")] | Annotated[list[TextPart], Field(max_length=MAX_PARTS), Tag("list[TextPart]")],
    Discriminator(_kind_of_content, custom_error_type="content_type", custom_error_message="this must be text or a list of text parts"),
]


class ChatMessage(Checked):
    """One turn, in every form in which clients send an answer back. function and function_call are OpenAI's older names."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
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


class FunctionTool(Checked):
    """What a model may call."""

    name: str = Field(min_length=1, max_length=200)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Checked):
    """A function as OpenAI wraps it."""

    type: Literal["function"]
    function: FunctionTool


class ChatRequest(Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto"] | None = Field(
        None, description="a call cannot be forced: required and a named function are refused"
    )
    functions: None = Field(default=None, description="refused; use tools")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None

    @property
    def characters(self) -> int:
        """How long the messages and tools are."""
        return sum(message.characters for message in self.messages) + sum(len(tool.model_dump_json()) for tool in self.tools or ())

    @model_validator(mode="after")
    def _goes_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionRequest(Sampled):
    """``POST /v1/completions``: one prompt, a text or token ids."""

    prompt: Annotated[str, Field(min_length=1)] | TokenIds
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: Literal[False] | None = None
    suffix: None = Field(default=None, description="refused; these models continue a text and fill no gaps")
    best_of: Literal[1] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=100_000)] | None = Field(
        None, description="GBNF, as llama.cpp's server takes it"
    )
    json_schema: dict[str, Any] | None = None


class TokenizeRequest(Checked):
    """``POST /tokenize``: the field of llama.cpp's server (content) or of vLLM (prompt), or messages."""

    model: str | None = Field(default=None, max_length=400)
    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special: bool = False

    @model_validator(mode="after")
    def _one_text(self) -> TokenizeRequest:
        if sum(each is not None for each in (self.content, self.prompt, self.messages)) != 1:
            raise ValueError("give exactly one of content, prompt and messages")
        return self


class DetokenizeRequest(Checked):
    """``POST /detokenize``."""

    model: str | None = Field(default=None, max_length=400)
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=LARGEST)]], Field(max_length=1_000_000)]
