"""``speccascade run``: answer one prompt."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ...common.errors import SettingError
from ...runtime.reply import Chunk, Reply
from .. import options
from ..load import load_with_progress, pair_and_prompt, print_rule, prompt_ids, set_log_level
from ..terminal import legend, print_figures, print_tokens, shows_styles, stderr, write


def run(
    asking: options.RunOptions,
    chosen: options.ModelOptions,
    words: options.Words = None,
    raw: options.Raw = False,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Color each token by its origin.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Answer one prompt. The text streams to stdout."""
    set_log_level(verbose)
    pair, prompt = pair_and_prompt(words, chosen)
    settings = asking.settings()  # raises before anything is loaded
    if settings.logprobs is not None and not as_json:
        raise SettingError("--logprobs are not shown in text; add --json")
    with load_with_progress(pair, chosen, verbose, rule=asking.rule, profile=settings.block_size == "auto") as runtime:
        chunks: list[Chunk] = []
        for chunk in runtime.stream(prompt_ids(runtime, prompt, raw), settings):
            if not chunks and verbose:
                print_rule(chunk.rule, chunk.seed)
            chunks.append(chunk)
            if not as_json:
                print_tokens(chunk.tokens, colored=show_origin)
    reply = Reply.of(chunks)
    if as_json:
        used = {**settings.as_dict(), "rule": str(reply.rule), "seed": reply.seed}
        write(json.dumps({"pair": runtime.pair.name, "prompt": prompt, "settings": used, **reply.as_dict()}, ensure_ascii=False))
    else:
        write("")
        if show_origin and shows_styles():
            stderr.print(legend())
        if reply.finish_reason == "length":
            limit = f"--max-tokens {settings.max_tokens}" if len(reply.tokens) == settings.max_tokens else f"a context of {runtime.n_ctx}"
            stderr.print(f"(cut off after {len(reply.tokens)} tokens: {limit})", soft_wrap=True)
    if verbose:
        print_figures(reply)
