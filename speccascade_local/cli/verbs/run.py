"""The verbs that answer: one prompt, or one prompt in every way."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ...common.errors import SettingError
from ...runtime.reply import Chunk, Reply
from .. import options
from ..load import load_with_progress, pair_and_prompt, prompt_ids, set_log_level, tell_rule
from ..terminal import legend, print_figures, print_tokens, shows_styles, stderr, write


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
    with load_with_progress(pair, chosen, verbose, rule=asking.rule, profile=settings.block_size == "auto") as runtime:
        read: list[Chunk] = []
        for chunk in runtime.stream(prompt_ids(runtime, prompt, raw), settings):
            if not read and verbose:
                tell_rule(chunk.rule, chunk.seed)
            read.append(chunk)
            if not as_json:
                print_tokens(chunk.tokens, coloured=show_origin)
    reply = Reply.of(read)
    if as_json:
        how = settings.as_dict() | {"rule": str(reply.rule), "seed": reply.seed}
        asked = {"pair": runtime.pair.name, "prompt": prompt, "settings": how}
        write(json.dumps({**asked, **reply.as_dict()}, ensure_ascii=False))
    else:
        write("")
        if show_origin and shows_styles():
            stderr.print(legend())
        if reply.finish_reason == "length":
            limit = f"--max-tokens {settings.max_tokens}" if len(reply.tokens) == settings.max_tokens else f"a context of {runtime.n_ctx}"
            told = f"(cut off after {len(reply.tokens)} tokens: {limit})"
            stderr.print(told, soft_wrap=True)
    if verbose:
        print_figures(reply)
