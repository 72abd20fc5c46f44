"""The options that several verbs share: one name, one help text each.

Knows nothing of what the verbs do with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PAIR] PROMPT",
        show_default=False,
        help=("A pair from models.yaml (default: the bundled one), and the prompt; - reads it from stdin."),
    ),
]
PairName = Annotated[str | None, typer.Argument(metavar="[PAIR]", show_default="the bundled one", help="A pair from models.yaml.")]
RuleName = Annotated[
    str | None,
    typer.Option(
        "--rule",
        show_default="the pair's own",
        rich_help_panel="Cascade",
        help=("Deferral rule, such as token_v3:0.3, opt:0.2, strict or never."),
    ),
]
Temperature = Annotated[float, typer.Option(rich_help_panel="Sampling", help="0 is greedy.")]
TopK = Annotated[int, typer.Option(rich_help_panel="Sampling", help="Keep the k most probable tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(rich_help_panel="Sampling", help="Keep the most probable tokens up to this mass; 1 is off.")]
MinP = Annotated[float, typer.Option(rich_help_panel="Sampling", help="Drop tokens below this share of the most probable one; 0 is off.")]
BlockSize = Annotated[
    str,
    typer.Option(rich_help_panel="Cascade", help="Drafted tokens per block; 0 is the expert alone, auto as many as pay on this machine."),
]
SmallFile = Annotated[
    Path | None, typer.Option("--small", rich_help_panel="Models", help="A third, still smaller model that drafts for the drafter.")
]
MaxTokens = Annotated[int, typer.Option(rich_help_panel="Sampling", help="Longest answer, in tokens.")]
Seed = Annotated[
    int | None, typer.Option(show_default="a fresh one, told in --json and -v", rich_help_panel="Sampling", help="Repeats an answer.")
]
Context = Annotated[
    int | None,
    typer.Option(
        "--ctx", show_default="4096, or what both were trained for", rich_help_panel="Models", help=("Tokens that the context holds.")
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(show_default="physical cores", rich_help_panel="Models", help="Threads; fewer where the machine is busy otherwise."),
]
GpuLayers = Annotated[int, typer.Option(rich_help_panel="Models", help="Layers on the GPU, -1 for all; needs a build with one.")]
DrafterFile = Annotated[
    Path | None, typer.Option("--drafter", rich_help_panel="Models", help="The small model's GGUF file, in place of a pair; ngram: none.")
]
ExpertFile = Annotated[
    Path | None, typer.Option("--expert", rich_help_panel="Models", help="The large model's GGUF file, in place of a pair.")
]
Models = Annotated[Path | None, typer.Option(rich_help_panel="Models", help="A models.yaml to look in first.")]
StrictFirst = Annotated[int, typer.Option(rich_help_panel="Cascade", help="So many first tokens are the expert's, whatever the rule says.")]
ThinkingRule = Annotated[
    str | None,
    typer.Option("--thinking-rule", show_default="the same", rich_help_panel="Cascade", help="Rule between <think> and </think>."),
]
VerificationName = Annotated[
    str, typer.Option("--verification", rich_help_panel="Cascade", help="token, or block: coins over whole blocks, more kept drafts.")
]
BonusName = Annotated[
    str,
    typer.Option(
        "--bonus", rich_help_panel="Cascade", help="After a kept draft: the expert's own token, or cascade: one drafted token more."
    ),
]
LogprobsCount = Annotated[
    int | None,
    typer.Option("--logprobs", show_default="none", rich_help_panel="Output", help="With --json: log-probabilities, this many per token."),
]
ModelLogprobs = Annotated[
    bool, typer.Option("--model-logprobs", rich_help_panel="Output", help="With --logprobs: those of both models too.")
]
PresencePenalty = Annotated[float, typer.Option(rich_help_panel="Sampling", help="Lowers tokens that the answer has used.")]
FrequencyPenalty = Annotated[float, typer.Option(rich_help_panel="Sampling", help="Lowers tokens by how often the answer has used them.")]
RepetitionPenalty = Annotated[
    float, typer.Option(rich_help_panel="Sampling", help="Divides logits of tokens in prompt or answer; 1 is off.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=BIAS", rich_help_panel="Sampling", help="Added to a token's logit; may be repeated."),
]
GrammarFile = Annotated[Path | None, typer.Option("--grammar", rich_help_panel="Sampling", help="A GBNF file that the answer follows.")]
SchemaFile = Annotated[
    Path | None, typer.Option("--json-schema", rich_help_panel="Sampling", help="A JSON schema file that the answer follows.")
]
Raw = Annotated[bool, typer.Option("--raw", rich_help_panel="Output", help="Continue the prompt as it is, without the chat template.")]
Json = Annotated[bool, typer.Option("--json", rich_help_panel="Output", help="One JSON object instead of text.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, rich_help_panel="Output", help="Tell more; -vv adds llama.cpp's own log."
    ),
]
