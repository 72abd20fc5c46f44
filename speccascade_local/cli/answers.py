"""The verbs that answer: one prompt, or one prompt in every way."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .. import methods
from ..compare import DEFAULT_THRESHOLD, all_arms, compare, few_arms
from ..errors import SettingError
from ..reply import Chunk, Reply
from . import options
from .invocation import loaded, pair_and_prompt, prompt_ids, set_log_level, stepping, tell_rule
from .terminal import comparison_table, legend, print_figures, print_groups, print_row, print_tokens, stderr, stdout, styled, write

DEFAULT_QUESTION = "Who is Buzz Aldrin?"


def run(
    asking: options.AnswerOptions,
    chosen: options.ModelOptions,
    words: options.Words = None,
    raw: options.Raw = False,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Colour each token by who wrote it.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Answer one prompt. The text goes to stdout as it is made."""
    set_log_level(verbose)
    pair, prompt = pair_and_prompt(words, chosen)
    settings = asking.settings()  # refused before anything is loaded
    if settings.logprobs is not None and not as_json:
        raise SettingError("--logprobs has no room in a terminal's text; add --json")
    with loaded(pair, chosen, verbose, rule=asking.rule, profile=settings.block_size == "auto") as runtime:
        read: list[Chunk] = []
        for chunk in runtime.stream(prompt_ids(runtime, prompt, raw), **vars(settings)):
            if not read and verbose:
                tell_rule(chunk.rule, chunk.seed)
            read.append(chunk)
            if not as_json:
                print_tokens(chunk.tokens, coloured=show_origin)
    reply = Reply.of(read)
    if as_json:
        asked = {"pair": runtime.pair.name, "prompt": prompt, "settings": {**vars(settings), "rule": str(reply.rule), "seed": reply.seed}}
        write(json.dumps({**asked, **reply.as_dict()}, ensure_ascii=False))
    else:
        write("")
        if show_origin and styled():
            stderr.print(legend())
        if reply.finish_reason == "length":
            limit = f"--max-tokens {settings.max_tokens}" if len(reply.tokens) == settings.max_tokens else f"a context of {runtime.n_ctx}"
            told = f"(cut off after {len(reply.tokens)} tokens: {limit})"
            stderr.print(told, soft_wrap=True)
    if verbose:
        print_figures(reply)


def compare_verb(
    asking: options.CompareOptions,
    chosen: options.ModelOptions,
    words: options.Words = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default=str(DEFAULT_THRESHOLD),
            help="Sequential cascade: below this confidence the expert starts over; not with --all.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every method but calibrated, with typical dials, and the min-p control.")
    ] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Ask this often in turns; times are medians.")] = 1,
    raw: options.Raw = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Ask one question in every way: drafter, expert, plain cascade, speculative decoding, speculative cascade.

    The cascade's rule is --rule or the pair's own, and beside it the paper's, opt:0.2. Without a prompt the question is
    "Who is Buzz Aldrin?". TV is the mean distance (total variation) between what each token was drawn from and the expert's own
    distribution: 0 is the expert, 1 has nothing in common with it. Where the expert was not asked about a token it judges it afterwards,
    outside the measured time.
    """
    set_log_level(verbose)
    if everything and threshold is not None:
        raise SettingError("--all shows sequential cascades with thresholds of its own; leave --threshold away")
    below = DEFAULT_THRESHOLD if threshold is None else threshold
    pair, prompt = pair_and_prompt(words or [DEFAULT_QUESTION], chosen)
    settings = asking.settings()  # refused before anything is loaded
    with loaded(pair, chosen, verbose, profile=settings.block_size == "auto") as runtime:
        own = methods.parse(asking.rule or runtime.rule)
        if verbose:
            tell_rule(own, asking.seed)
        arms = all_arms(settings, own) if everything else few_arms(settings, own, below)
        ids = prompt_ids(runtime, prompt, raw)
        with stepping("asking", verbose) as on_step:
            rows = compare(runtime, ids, arms, repeat=repeat, on_step=on_step)
    if as_json:
        asked = {"pair": runtime.pair.name, "prompt": prompt, "settings": {**vars(settings), "rule": str(own)}}
        write(
            json.dumps(
                {**asked, "repeat": repeat, "threshold": below, "rows": [row.as_dict() for row in rows]}, ensure_ascii=False, indent=1
            )
        )
        return
    if everything:
        print_groups(rows)
    else:
        for row in rows:
            print_row(row)
    if styled():
        stdout.print(legend(), end="\n\n")
    stdout.print(comparison_table(rows))
