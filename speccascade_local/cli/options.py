"""The options that verbs share, in groups: one name, one help text, one default each.

Knows nothing of what the verbs do with them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
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
from .placement_options import PlacementOptions

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PAIR] PROMPT",
        show_default=False,
        help=("A pair from models.yaml (default: the bundled one), and the prompt; - reads it from stdin."),
    ),
]
PairName = Annotated[str | None, typer.Argument(metavar="[PAIR]", show_default="the bundled one", help="A pair from models.yaml.")]
Raw = Annotated[bool, typer.Option("--raw", rich_help_panel="Output", help="Continue the prompt as it is, without the chat template.")]
Json = Annotated[bool, typer.Option("--json", rich_help_panel="Output", help="One JSON object instead of text.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, rich_help_panel="Output", help="Tell more; -vv adds llama.cpp's own log."
    ),
]
MaxTokens = Annotated[int, typer.Option(rich_help_panel="Sampling", help="Longest answer, in tokens.")]
BlockLength = Annotated[
    str,
    typer.Option(rich_help_panel="Cascade", help="Drafted tokens per block; 0 is the expert alone, auto as many as pay on this machine."),
]
QuestionsFile = Annotated[
    Path | None,
    typer.Option("--questions", help="JSONL with prompt or messages, reference and metric; Spec-Bench's file is read too."),
]
PerFamily = Annotated[
    int | None,
    typer.Option(min=1, show_default=f"all of yours; {PER_FAMILY} of the built-in ones", help="At most so many questions of each family."),
]
Heat = Annotated[float, typer.Option(rich_help_panel="Sampling", help="0 is greedy.")]
Models = Annotated[Path | None, typer.Option(rich_help_panel="Models", help="A models.yaml to look in first.")]

#: Bytes of a grammar or a schema in a file.
_LONGEST_SCHEMA = 4 << 20


@dataclass(frozen=True)
class FileOptions:
    """Which models, and how much text they hold."""

    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", show_default="4096, or what both were trained for", rich_help_panel="Models", help=("Tokens that the context holds.")
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(show_default="measured", rich_help_panel="Models", help="Threads; fewer where the machine is busy otherwise."),
    ] = None
    drafter: Annotated[
        Path | None,
        typer.Option("--drafter", rich_help_panel="Models", help="The small model's GGUF file, in place of a pair; ngram: none."),
    ] = None
    expert: Annotated[
        Path | None, typer.Option("--expert", rich_help_panel="Models", help="The large model's GGUF file, in place of a pair.")
    ] = None
    models: Models = None
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            rich_help_panel="Models",
            help="Run code and use other machines that a models.yaml names which is not your own.",
        ),
    ] = False


@dataclass(frozen=True)
class ModelOptions(PlacementOptions, FileOptions):
    """Which models, and how they are loaded."""


def pair_of(name: str | None, chosen: ModelOptions, *, complete: bool = True) -> Pair:
    """The pair that would be loaded. complete: False where its files need not be there. Raises SettingError and CatalogError."""
    return choose(name, chosen.drafter, chosen.expert, chosen.models, complete=complete)


@dataclass(frozen=True)
class AskingOptions:
    """How a question is answered."""

    rule: Annotated[
        str | None,
        typer.Option(
            "--rule",
            show_default="the pair's own",
            rich_help_panel="Cascade",
            help=("Deferral rule, such as token_v3:0.3, opt:0.2, strict or never."),
        ),
    ] = None
    temperature: Heat = DEFAULTS.temperature
    top_k: Annotated[int, typer.Option(rich_help_panel="Sampling", help="Keep the k most probable tokens; 0 is off.")] = DEFAULTS.top_k
    top_p: Annotated[float, typer.Option(rich_help_panel="Sampling", help="Keep the most probable tokens up to this mass; 1 is off.")] = (
        DEFAULTS.top_p
    )
    min_p: Annotated[
        float, typer.Option(rich_help_panel="Sampling", help="Drop tokens below this share of the most probable one; 0 is off.")
    ] = DEFAULTS.min_p
    block_size: BlockLength = str(DEFAULTS.block_size)
    max_tokens: MaxTokens = DEFAULTS.max_tokens
    seed: Annotated[
        int | None, typer.Option(show_default="a fresh one, told in --json and -v", rich_help_panel="Sampling", help="Repeats an answer.")
    ] = None
    strict_first: Annotated[
        int, typer.Option(rich_help_panel="Cascade", help="So many first tokens are the expert's, whatever the rule says.")
    ] = DEFAULTS.strict_first
    thinking_rule: Annotated[
        str | None,
        typer.Option("--thinking-rule", show_default="the same", rich_help_panel="Cascade", help="Rule between <think> and </think>."),
    ] = None
    presence_penalty: Annotated[float, typer.Option(rich_help_panel="Sampling", help="Lowers tokens that the answer has used.")] = (
        DEFAULTS.presence_penalty
    )
    frequency_penalty: Annotated[
        float, typer.Option(rich_help_panel="Sampling", help="Lowers tokens by how often the answer has used them.")
    ] = DEFAULTS.frequency_penalty
    repetition_penalty: Annotated[
        float, typer.Option(rich_help_panel="Sampling", help="Divides logits of tokens in prompt or answer; 1 is off.")
    ] = DEFAULTS.repetition_penalty
    logit_bias: Annotated[
        list[str] | None,
        typer.Option("--logit-bias", metavar="ID=BIAS", rich_help_panel="Sampling", help="Added to a token's logit; may be repeated."),
    ] = None
    grammar: Annotated[Path | None, typer.Option("--grammar", rich_help_panel="Sampling", help="A GBNF file that the answer follows.")] = (
        None
    )
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", rich_help_panel="Sampling", help="A JSON schema file that the answer follows.")
    ] = None

    audit: Annotated[
        bool,
        typer.Option(
            "--audit", rich_help_panel="Output", help="Let the expert judge afterwards what it was not asked about, so that TV covers all."
        ),
    ] = DEFAULTS.audit

    def settings(self) -> Settings:
        """What they mean. Raises SettingError, and CatalogError for a file that cannot be read."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given |= {"block_size": length(self.block_size), "logit_bias": _biases(self.logit_bias)}
        given |= {name: read_text(given[name], most=_LONGEST_SCHEMA) for name in ("grammar", "json_schema") if given[name]}
        return Settings(**given)


@dataclass(frozen=True)
class AnswerOptions(AskingOptions):
    """Asked once."""

    verification: Annotated[
        str, typer.Option("--verification", rich_help_panel="Cascade", help="token, or block: coins over whole blocks, more kept drafts.")
    ] = DEFAULTS.verification
    bonus: Annotated[
        str,
        typer.Option(
            "--bonus", rich_help_panel="Cascade", help="After a kept draft: the expert's own token, or cascade: one drafted token more."
        ),
    ] = DEFAULTS.bonus
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs", show_default="none", rich_help_panel="Output", help="With --json: log-probabilities, this many per token."
        ),
    ] = None
    logprobs_of: Annotated[
        str,
        typer.Option(
            "--logprobs-of",
            rich_help_panel="Output",
            help="With --logprobs: of what they are; drawn: what the token was drawn from, raw: the model's own row at temperature 1.",
        ),
    ] = DEFAULTS.logprobs_of
    model_logprobs: Annotated[
        bool, typer.Option("--model-logprobs", rich_help_panel="Output", help="With --logprobs: those of both models too.")
    ] = False


@dataclass(frozen=True)
class ChatOptions(AskingOptions):
    """Asked again and again."""

    max_tokens: MaxTokens = 2048


@dataclass(frozen=True)
class CompareOptions(AskingOptions):
    """Asked in every way, each with the same seed and blocks of the same length."""

    block_size: BlockLength = str(BLOCK_SIZE)
    seed: Annotated[int, typer.Option(help="The same for every arm.")] = 0
    audit: Annotated[
        bool,
        typer.Option(
            "--audit/--no-audit",
            rich_help_panel="Output",
            help="Let the expert judge afterwards what it was not asked about, so that TV covers all; no part of the times.",
        ),
    ] = True


def in_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """A parameter of the verb that is one of the groups above stands for its fields, each an option of its own."""
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name not in groups:
            options.append(parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY))
            continue
        group = groups[parameter.name]
        kinds = get_type_hints(group, include_extras=True)
        options += [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[field.name])
            for field in fields(group)
        ]

    @wraps(verb)
    def call(**given: Any) -> None:
        made = {name: group(**{field.name: given.pop(field.name) for field in fields(group)}) for name, group in groups.items()}
        verb(**given, **made)

    call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # what typer reads, and the annotations
    call.__annotations__ = {option.name: option.annotation for option in options}
    return call


def length(given: str) -> BlockSize:
    """``"auto"``, or ``"5"`` -> 5. Raises SettingError."""
    if given == "auto":
        return "auto"
    try:
        return int(given)
    except ValueError:
        raise SettingError(f"--block-size {given!r:.40} is neither a whole number nor auto") from None


def _biases(given: list[str] | None) -> dict[int, float]:
    """``["42=-5"]`` -> ``{42: -5.0}``. Raises SettingError."""
    found: dict[int, float] = {}
    for text in given or ():
        token, _, bias = text.partition("=")
        try:
            found[int(token)] = float(bias)
        except ValueError:
            raise SettingError(f"--logit-bias {text!r:.40} is not ID=BIAS, such as 42=-5") from None
    return found
