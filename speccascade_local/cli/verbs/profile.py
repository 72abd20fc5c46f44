"""The verbs that measure a pair, for what needs to know it: calibrated routing, and draft lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ...bench.charts import staircase
from ...common.plots import check_writable, figure_class
from .. import options
from ..load import load_with_progress, set_log_level, stepping
from ..terminal import for_tables, profile_summary, profile_table, write


def profile_verb(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, even if this pair was measured before.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Where a picture of the table goes, .png or .svg (extra calibrate).")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """How long both models take for batches of 1 to 17 tokens on this machine: measured once, then kept.

    v(n) is a batch of n in units of a single token. Where a larger batch is the faster one, the smaller is padded to it.
    """
    set_log_level(verbose)
    if picture:
        figure_class(picture)
        check_writable(picture)
    with load_with_progress(pair, chosen, verbose, rule="strict", profile=False) as runtime, stepping("measuring", verbose) as on_step:
        found = runtime.profile(refresh=refresh, on_step=on_step)
    if picture:
        staircase(found, picture)
    if as_json:
        write(json.dumps({"pair": runtime.pair.name, **found.as_dict()}, ensure_ascii=False))
        return
    for_tables().print(profile_table(found))
    for line in profile_summary(found):
        print(line)
