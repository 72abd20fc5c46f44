"""``speccascade compare``: answer one question in several ways, side by side."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ...common.errors import SettingError
from ...rules import registry
from ...runtime.compare import DEFAULT_THRESHOLD, all_arms, compare, few_arms
from .. import options
from ..load import load_with_progress, pair_and_prompt, print_rule, progress_of, prompt_ids, set_log_level
from ..terminal import comparison_table, legend, print_groups, print_row, shows_styles, stdout, write

DEFAULT_QUESTION = "Who is Buzz Aldrin?"


def run(
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
    repeat: Annotated[int, typer.Option(min=1, help="How often each arm answers, in turns; times are medians.")] = 1,
    raw: options.Raw = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Answer one question with the drafter, the expert, a plain cascade, speculative decoding and a speculative cascade.

    The cascade's rule is --rule or the pair's own; opt:0.2, the paper's, stands beside it. Without a prompt the question is
    "Who is Buzz Aldrin?". TV is the mean total variation between each token's distribution and the expert's own: 0 is the expert, 1 has
    nothing in common with it. The expert judges tokens that it did not check afterwards, outside the measured time.
    """
    set_log_level(verbose)
    if everything and threshold is not None:
        raise SettingError("--all shows sequential cascades with thresholds of its own; omit --threshold")
    below = DEFAULT_THRESHOLD if threshold is None else threshold
    pair, prompt = pair_and_prompt(words or [DEFAULT_QUESTION], chosen)
    settings = asking.settings()  # raises before anything is loaded
    with load_with_progress(pair, chosen, verbose, profile=settings.block_size == "auto") as runtime:
        own = registry.parse(asking.rule or runtime.rule)
        if verbose:
            print_rule(own, asking.seed)
        arms = all_arms(settings, own) if everything else few_arms(settings, own, below)
        ids = prompt_ids(runtime, prompt, raw)
        with progress_of("asking", verbose) as on_step:
            rows = compare(runtime, ids, arms, repeat=repeat, on_step=on_step)
    if as_json:
        request = {"pair": runtime.pair.name, "prompt": prompt, "settings": {**settings.as_dict(), "rule": str(own)}}
        result = {**request, "repeat": repeat, "threshold": below, "rows": [row.as_dict() for row in rows]}
        write(json.dumps(result, ensure_ascii=False, indent=1))
        return
    if everything:
        print_groups(rows)
    else:
        for row in rows:
            print_row(row)
    if shows_styles():
        stdout.print(legend(), end="\n\n")
    stdout.print(comparison_table(rows))
