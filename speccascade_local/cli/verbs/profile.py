"""``speccascade profile``: measure batches of both models, on which draft lengths depend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ...bench.charts import save_batch_times
from ...common.plots import check_writable, figure_class
from .. import options
from ..load import load_with_progress, progress_of, set_log_level
from ..terminal import for_tables, profile_summary, profile_table, write


def run(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, even if this pair has a profile.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the table, .png or .svg (extra calibrate).")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure how long both models take for batches of 1 to 17 tokens on this machine; the result is cached.

    v(n) is the time of a batch of n relative to a single token. Where a larger batch is faster, the smaller one is padded to it.
    """
    set_log_level(verbose)
    if picture:
        figure_class(picture)
        check_writable(picture)
    with load_with_progress(pair, chosen, verbose, rule="strict", profile=False) as runtime, progress_of("measuring", verbose) as on_step:
        profile = runtime.profile(refresh=refresh, on_step=on_step)
    if picture:
        save_batch_times(picture, profile)
    if as_json:
        write(json.dumps({"pair": runtime.pair.name, **profile.as_dict()}, ensure_ascii=False))
        return
    for_tables().print(profile_table(profile))
    for line in profile_summary(profile):
        print(line)
