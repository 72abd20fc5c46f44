"""Requests as pydantic models: OpenAI's fields, and our own in ``speccascade``.

Types are strict, numbers finite, and lists bounded; validation of a list stops at its first wrong item, so that no body takes long. Other
servers' fields are translated before, by the table in server/openai/fields.py, which also lists all fields here. Unknown fields are refused
only within ``speccascade``, where they are misspelled.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, model_validator

from ...decoding.fidelity import LogprobsOf
from .messages import MAX_TOOLS, Messages, StrictModel

MAX_STOPS, MAX_STOP_CHARACTERS, MAX_CHOICES, MAX_BIASES = 16, 1000, 16, 1024
MAX_TOP_LOGPROBS = 20
#: Maximum number of token ids in a prompt, and of fields in ``speccascade``, misspelled ones included.
MAX_IDS, MAX_OPTIONS = 1_000_000, 32
LARGEST = 2**31 - 1

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
#: A text or a list, distinguished before validation, so that an error is about one of them only.
_TEXT_OR_LIST = Discriminator(
    lambda value: "text" if isinstance(value, str) else "list" if isinstance(value, list) else None,
    custom_error_type="text_or_list",
    custom_error_message="must be a text or a list",
)
Stops = Annotated[
    Annotated[Stop, Tag("text")] | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True), Tag("list")], _TEXT_OR_LIST
]
TokenId = Annotated[int, Field(ge=0, le=LARGEST)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
Prompt = Annotated[Annotated[str, Field(min_length=1), Tag("text")] | Annotated[TokenIds, Tag("list")], _TEXT_OR_LIST]
Schema = dict[str, Any] | bool
Grammar = Annotated[str, Field(min_length=1, max_length=100_000)]


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must be 1 or more, or -1 for as many as the context holds")
    return value


def _biases(value: Any) -> dict[int, float]:
    """Read OpenAI's object, or llama.cpp's list of pairs in which false forbids a token. Raises ValueError at the first wrong item."""
    if not isinstance(value, (dict, list)):
        raise ValueError('must be an object, such as {"42": -5}, or a list, such as [[42, -5], [7, false]]')
    if len(value) > MAX_BIASES:
        raise ValueError(f"has {len(value)} token ids; at most {MAX_BIASES} are allowed")
    return dict(map(_bias, value.items() if isinstance(value, dict) else value))


def _bias(pair: Any) -> tuple[int, float]:
    if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
        raise ValueError("each item must be a token id and its bias, such as [42, -5] or [42, false]")
    token, bias = pair
    if isinstance(token, str) and token.isdecimal() and len(token) <= 10:
        token = int(token)
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= LARGEST:
        raise ValueError(f'{token!r:.40} is not a token id; keys are ids, such as {{"42": -5}}; POST /tokenize returns them')
    if bias is False:
        return token, -math.inf
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
        raise ValueError(f"the bias of token {token} is {bias!r:.40}; it must be between -100 and 100, or false for never")
    return token, float(bias)


Biases = Annotated[
    dict[int, Annotated[float, Field(allow_inf_nan=True)]],
    BeforeValidator(_biases),
    WithJsonSchema({"anyOf": [{"type": "object", "maxProperties": MAX_BIASES}, {"type": "array", "maxItems": MAX_BIASES}]}),
]
Limit = Annotated[int, Field(ge=-1, le=LARGEST), AfterValidator(_not_zero)]


class CascadeOptions(StrictModel):
    """How both models work together on one reply."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _limit_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_OPTIONS:
            raise ValueError(f"has {len(value):,} fields; the {len(cls.model_fields)} allowed are {', '.join(cls.model_fields)}")
        return value

    rule: str | None = Field(
        default=None, max_length=200, description="a built-in rule, expert (no drafts at all), or one registered at start"
    )
    alpha: float | None = Field(default=None, description="the rule's dial")
    block_size: Annotated[int, Field(ge=0, le=LARGEST)] | Literal["auto"] | None = Field(
        default=None, description="drafted tokens per block"
    )
    fidelity: bool = Field(default=True, description="measure how far the reply is from the expert's own")
    audit: bool = Field(default=False, description="let the expert afterwards judge each token that it did not read")
    origins: bool = Field(default=False, description="report who wrote each token and why")
    logprobs_of: LogprobsOf = Field(
        default="raw",
        description="raw for the model's own log-probabilities at temperature 1, or drawn for those that the token was drawn from",
    )
    model_logprobs: bool = Field(default=False, description="report the most probable candidates of both models for each token")


class StreamOptions(StrictModel):
    """What a stream sends besides text."""

    include_usage: bool | None = None


class JsonSchema(StrictModel):
    """A named schema, as OpenAI nests it."""

    name: str | None = Field(default=None, max_length=200)
    schema_: Schema = Field(alias="schema")


class TextFormat(StrictModel):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(StrictModel):
    """Any JSON object, or llama.cpp's form with a schema."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(default=None, alias="schema")


class SchemaFormat(StrictModel):
    """JSON under a schema: OpenAI's ``json_schema``, or the schema alone."""

    type: Literal["json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Schema | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _require_one_schema(self) -> SchemaFormat:
        if (self.json_schema is None) == (self.schema_ is None):
            raise ValueError("needs json_schema, an object that holds the schema, or schema; give exactly one of them")
        return self


class GrammarFormat(StrictModel):
    """Text under a grammar in GBNF."""

    type: Literal["grammar"]
    grammar: Grammar


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat | GrammarFormat, Field(discriminator="type")]


class SamplingFields(StrictModel):
    """The fields of all requests for text. A field that is omitted or null has OpenAI's default."""

    model: str | None = Field(default=None, max_length=400, description="a pair, PAIR or PAIR@RULE, such as demo@token_v3:0.3")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(None, description="a negative number is no seed")
    stop: Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_BIASES, fail_fast=True)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_n_sigma: Annotated[float, Field(ge=-1, le=1e6)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Biases | None = None
    max_tokens: Limit | None = Field(None, description="-1 for as many as the context holds")
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    grammar: Grammar | None = Field(None, description="GBNF, as llama.cpp's server takes it")
    json_schema: Schema | None = None
    prompt_cache_key: Annotated[str, Field(max_length=200)] | None = Field(None, description="the conversation that this prompt continues")
    cache_salt: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="as in vLLM: requests share KV caches only with the same salt"
    )
    speccascade: CascadeOptions | None = None

    @property
    def constraint(self) -> dict[str, Any]:
        """Grammar or schema that the reply follows, by the names of runtime/settings.py."""
        fields: dict[str, Any] = {"grammar": self.grammar, "json_schema": self.json_schema}
        form = self.response_format
        if isinstance(form, GrammarFormat):
            fields["grammar"] = form.grammar
        elif isinstance(form, SchemaFormat):
            fields["json_schema"] = form.json_schema.schema_ if form.json_schema else form.schema_
        elif isinstance(form, ObjectFormat):
            fields["json_schema"] = {"type": "object"} if form.schema_ is None else form.schema_
        return {name: value for name, value in fields.items() if value is not None}

    @model_validator(mode="after")
    def _check_ends(self) -> SamplingFields:
        if self.min_tokens and self.stop:
            raise ValueError("min_tokens and stop: a stop text may end the reply before min_tokens; omit one of them")
        return self

    @property
    def cascade(self) -> CascadeOptions:
        return self.speccascade or CascadeOptions()


class FunctionTool(StrictModel):
    """A function that a model may call."""

    name: str = Field(min_length=1, max_length=200)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(StrictModel):
    """A function as OpenAI wraps it."""

    type: Literal["function"]
    function: FunctionTool


class ChatRequest(SamplingFields):
    """The body of ``POST /v1/chat/completions``."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["none", "auto"] | None = Field(
        None, description="a call cannot be forced: required and a named function are refused"
    )
    continue_final_message: bool | None = Field(None, description="whether the assistant's last message is continued")
    add_generation_prompt: bool | None = Field(None, description="true begins a new turn, also after a message of the assistant")

    @property
    def characters(self) -> int:
        return sum(message.characters for message in self.messages) + sum(len(tool.model_dump_json()) for tool in self.tools or ())

    @model_validator(mode="after")
    def _check_combination(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        last = self.messages[-1].role
        if self.continue_final_message and last != "assistant":
            raise ValueError(f"continue_final_message needs a last message of the assistant; its role is {last}")
        if self.add_generation_prompt is not None and self.add_generation_prompt == bool(self.continue_final_message):
            raise ValueError("continue_final_message and add_generation_prompt: exactly one can be true; give one of them")
        return self

    @property
    def continues(self) -> bool | None:
        """Whether to continue the assistant's last message; None for the default."""
        return False if self.add_generation_prompt else self.continue_final_message


class CompletionRequest(SamplingFields):
    """The body of ``POST /v1/completions``: one prompt, a text or token ids."""

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class TokenizeRequest(StrictModel):
    """The body of ``POST /tokenize``: ``content`` as in llama.cpp's server, ``prompt`` as in vLLM, or ``messages``."""

    model: str | None = Field(default=None, max_length=400)
    content: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special: bool = False

    @model_validator(mode="after")
    def _require_one_text(self) -> TokenizeRequest:
        if sum(each is not None for each in (self.content, self.prompt, self.messages)) != 1:
            raise ValueError("give exactly one of content, prompt and messages")
        return self


class DetokenizeRequest(StrictModel):
    """The body of ``POST /detokenize``."""

    model: str | None = Field(default=None, max_length=400)
    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]
