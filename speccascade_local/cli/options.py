"""The options that verbs share, in groups: one name, one help text, one default each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..bench.questions import PER_FAMILY
from ..common.errors import SettingError
from ..common.files import read_text
from ..models.catalog import Pair
from ..runtime.compare import BLOCK_SIZE
from ..runtime.load import choose
from ..runtime.settings import DEFAULTS, BlockSize, Settings
from .placement_options import PlacementOptions, in_models

in_cascade = partial(typer.Option, rich_help_panel="Cascade")
in_sampling = partial(typer.Option, rich_help_panel="Sampling")
in_output = partial(typer.Option, rich_help_panel="Output")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PAIR] PROMPT",
        show_default=False,
        help="A pair from models.yaml (default: the bundled one), and the prompt; - reads it from stdin.",
    ),
]
PairName = Annotated[str | None, typer.Argument(metavar="[PAIR]", show_default="the bundled one", help="A pair from models.yaml.")]
Raw = Annotated[bool, in_output("--raw", help="Continue the prompt without the chat template.")]
Json = Annotated[bool, in_output("--json", help="Print one JSON object instead of text.")]
Verbose = Annotated[int, in_output("--verbose", "-v", count=True, show_default=False, help="Show more; -vv adds llama.cpp's own log.")]
MaxTokens = Annotated[int, in_sampling(help="Maximum number of tokens in a reply.")]
BlockLength = Annotated[str, in_cascade(help="Drafted tokens per block; 0: the expert alone; auto: as many as pay on this machine.")]
QuestionsFile = Annotated[
    Path | None, typer.Option("--questions", help="JSONL with prompt or messages, reference and metric; Spec-Bench's file works too.")
]
PerFamily = Annotated[
    int | None,
    typer.Option(min=1, show_default=f"all of yours; {PER_FAMILY} of the built-in ones", help="Maximum number of questions per family."),
]
Temperature = Annotated[float, in_sampling(help="Sampling temperature; 0 is greedy.")]
Models = Annotated[Path | None, in_models(help="A models.yaml to look in first.")]

#: Bytes of a file with a grammar or a schema.
_LONGEST_SCHEMA = 4 << 20


@dataclass(frozen=True)
class FileOptions:
    """The models, their context and threads."""

    ctx: Annotated[int | None, in_models(show_default="4096, or what both were trained for", help="Size of the context, in tokens.")] = None
    threads: Annotated[int | None, in_models(show_default="measured", help="Number of threads; use fewer on a busy machine.")] = None
    drafter: Annotated[Path | None, in_models(help="GGUF file of the small model, instead of a pair; ngram: no model.")] = None
    expert: Annotated[Path | None, in_models(help="GGUF file of the large model, instead of a pair.")] = None
    models: Models = None
    allow_code: Annotated[
        bool, in_models("--allow-code", help="Allow a models.yaml that is not your own to run code and use other machines.")
    ] = False


@dataclass(frozen=True)
class ModelOptions(PlacementOptions, FileOptions):
    """The models, and how they are loaded."""


def pair_of(name: str | None, chosen: ModelOptions, *, complete: bool = True) -> Pair:
    """Return the pair that would be loaded; with ``complete`` its files must exist. Raises SettingError and CatalogError."""
    return choose(name, chosen.drafter, chosen.expert, chosen.models, complete=complete)


@dataclass(frozen=True)
class AnswerOptions:
    """How a question is answered."""

    rule: Annotated[
        str | None, in_cascade(show_default="the pair's own", help="Deferral rule, such as token_v3:0.3, opt:0.2, strict or never.")
    ] = None
    temperature: Temperature = DEFAULTS.temperature
    top_k: Annotated[int, in_sampling(help="Keep the k most probable tokens; 0 is off.")] = DEFAULTS.top_k
    top_p: Annotated[float, in_sampling(help="Keep the most probable tokens up to this total probability; 1 is off.")] = DEFAULTS.top_p
    min_p: Annotated[float, in_sampling(help="Drop tokens below this share of the most probable one; 0 is off.")] = DEFAULTS.min_p
    block_size: BlockLength = str(DEFAULTS.block_size)
    max_tokens: MaxTokens = DEFAULTS.max_tokens
    seed: Annotated[
        int | None, in_sampling(show_default="a new one, shown by --json and -v", help="Seed; the same seed repeats a reply.")
    ] = None
    strict_first: Annotated[int, in_cascade(help="Number of first tokens that are always the expert's.")] = DEFAULTS.strict_first
    thinking_rule: Annotated[str | None, in_cascade(show_default="the same", help="Deferral rule between <think> and </think>.")] = None
    presence_penalty: Annotated[float, in_sampling(help="Lower the logits of tokens that the reply contains.")] = DEFAULTS.presence_penalty
    frequency_penalty: Annotated[float, in_sampling(help="Lower the logits of tokens by their count in the reply.")] = (
        DEFAULTS.frequency_penalty
    )
    repetition_penalty: Annotated[float, in_sampling(help="Divide the logits of tokens in prompt or reply; 1 is off.")] = (
        DEFAULTS.repetition_penalty
    )
    logit_bias: Annotated[list[str] | None, in_sampling(metavar="ID=BIAS", help="Bias to add to a token's logit; may be repeated.")] = None
    grammar: Annotated[Path | None, in_sampling(help="GBNF file that the reply must follow.")] = None
    json_schema: Annotated[Path | None, in_sampling(help="JSON schema file that the reply must follow.")] = None
    audit: Annotated[
        bool, in_output("--audit", help="Let the expert judge the other tokens afterwards, so that TV covers the whole reply.")
    ] = DEFAULTS.audit

    def settings(self) -> Settings:
        """Return the settings. Raises SettingError, and CatalogError for a file that cannot be read."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"block_size": length(self.block_size), "logit_bias": _biases(self.logit_bias)}
        values |= {name: read_text(values[name], most=_LONGEST_SCHEMA) for name in ("grammar", "json_schema") if values[name]}
        return Settings(**values)


@dataclass(frozen=True)
class RunOptions(AnswerOptions):
    """How one prompt is answered."""

    verification: Annotated[str, in_cascade(help="token, or block: test whole blocks, which accepts longer drafts.")] = (
        DEFAULTS.verification
    )
    bonus: Annotated[
        str, in_cascade(help="After an accepted draft: expert, for a token of its own, or cascade, for one more drafted token.")
    ] = DEFAULTS.bonus
    logprobs: Annotated[int | None, in_output(show_default="none", help="With --json: number of log-probabilities per token.")] = None
    logprobs_of: Annotated[
        str, in_output(help="With --logprobs: drawn, for the distribution of the token, or raw, for the model's own at temperature 1.")
    ] = DEFAULTS.logprobs_of
    model_logprobs: Annotated[bool, in_output("--model-logprobs", help="With --logprobs: add those of both models.")] = False


@dataclass(frozen=True)
class ChatOptions(AnswerOptions):
    """How each question of a chat is answered."""

    max_tokens: MaxTokens = 2048


@dataclass(frozen=True)
class CompareOptions(AnswerOptions):
    """How each arm of a comparison answers: with the same seed and the same block size."""

    block_size: BlockLength = str(BLOCK_SIZE)
    seed: Annotated[int, typer.Option(help="Seed; the same for every arm.")] = 0
    audit: Annotated[
        bool,
        in_output(
            "--audit/--no-audit",
            help="Let the expert judge the other tokens afterwards, so that TV covers the whole reply; not part of the times.",
        ),
    ] = True


def in_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """Return the verb as typer takes it: each parameter that is one of the groups above becomes the group's fields."""
    groups: dict[str, Any] = {name: hint for name, hint in get_type_hints(verb).items() if is_dataclass(hint)}

    @wraps(verb)
    def call(**values: Any) -> None:
        filled = {name: group(**{field.name: values.pop(field.name) for field in fields(group)}) for name, group in groups.items()}
        verb(**values, **filled)

    options: list[Parameter] = []
    for parameter in _parameters(verb):
        options += _parameters(groups[parameter.name]) if parameter.name in groups else [parameter]
    call.__signature__ = Signature(options)  # type: ignore[attr-defined]  # typer reads both this and the annotations
    call.__annotations__ = {option.name: option.annotation for option in options}
    return call


def _parameters(source: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters of a function or a group with their types and options."""
    hints = get_type_hints(source, include_extras=True)
    return [
        parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in signature(source).parameters.values()
    ]


def length(text: str) -> BlockSize:
    """Return ``"auto"``, or 5 for ``"5"``. Raises SettingError."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"--block-size {text!r:.40} is neither a whole number nor auto") from None


def _biases(texts: list[str] | None) -> dict[int, float]:
    """Return ``{42: -5.0}`` for ``["42=-5"]``. Raises SettingError."""
    biases: dict[int, float] = {}
    for text in texts or ():
        token, _, bias = text.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise SettingError(f"--logit-bias {text!r:.40} is not ID=BIAS, such as 42=-5") from None
    return biases
