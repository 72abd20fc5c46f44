"""What a request may say, as models that pydantic checks: OpenAI's fields, and our own in ``speccascade``.

Types are strict, numbers finite, lists bounded. Fields that nobody here knows are ignored, because OpenAI's client sends whatever its user
adds and newer versions add more; within ``speccascade`` they are refused, because there a misspelt name is ours to tell. Fields that would
change the answer and cannot be honoured are refused too. Knows nothing of models, rules, HTTP or how answers are made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from .messages import MAX_TOOLS, ChatMessage, Checked

MAX_STOPS, MAX_STOP_CHARACTERS, MAX_MESSAGES, MAX_CHOICES, MAX_BIASES = 16, 1000, 4096, 16, 1024
MAX_TOP_LOGPROBS = 20
LARGEST = 2**31 - 1

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=LARGEST)]], Field(min_length=1)]


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
    cache_salt: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="as in vLLM: what was read for a prompt serves only requests with the same one"
    )
    speccascade: CascadeOptions | None = None

    @property
    def cascade(self) -> CascadeOptions:
        """Our own options, or their defaults."""
        return self.speccascade or CascadeOptions()


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
