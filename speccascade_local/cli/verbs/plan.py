"""``speccascade plan``: what a pair would bring, told before it is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict

from ...machine.plan import ACCEPTANCE_RATES, estimate_pair
from ...machine.profile_cache import measured_models
from ...models.gguf_header import header_of_size, read_header
from ...models.placement import DEFAULT_CONTEXT
from .. import options
from ..load import set_log_level
from ..terminal import stdout


def plan(chosen: options.ModelOptions, pair: options.PairName = None, as_json: options.Json = False, verbose: options.Verbose = 0) -> None:
    """How much faster than the expert alone a pair would be on this machine, and how much memory it needs, from the files' headers.

    Rests on what other pairs took here, so measure one first (speccascade profile); the range is that of how well drafts are kept. In place
    of a file that is not there yet its size will do: --drafter 0.5GB --expert 4.9GB.
    """
    set_log_level(verbose)
    named = options.pair_of(pair, chosen)
    headers = {role: header_of_size(path) or read_header(path) for role, path in named.files.items()}
    expert, drafter = headers["expert"], headers.get("drafter")
    n_ctx = chosen.ctx or min(DEFAULT_CONTEXT, *(header.n_ctx_train for header in headers.values()))
    found = estimate_pair(drafter, expert, measured_models(), n_ctx)
    if as_json:
        print(json.dumps({"pair": named.name, "n_ctx": n_ctx, **asdict(found)}))
        return

    def told(text: str) -> None:
        stdout.print(text, highlight=False, soft_wrap=True)

    (low, high), (least, most) = found.speedup, ACCEPTANCE_RATES
    told(f"{named.name}: {low:.1f} to {high:.1f} × as fast as the expert alone, where {least:.0%} to {most:.0%} of drafts are accepted")
    if found.best_length:
        told(f"  with drafts of about {found.best_length} at best")
    told("  the expert {:.1f} to {:.1f} tokens per second".format(*sorted(1 / each for each in found.expert_s)))
    if drafter:
        told("  the drafter {:.1f} to {:.1f}".format(*sorted(1 / each for each in found.drafter_s)))
    total = sum(found.memory.values())
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in found.memory.items() if size)
    more = "" if all(header.cache_bytes for header in headers.values()) else "; a size does not tell what caches need"
    told(f"memory: {total / 1e9:.2f} GB at a context of {n_ctx} ({parts}{more})")
    n, ratio = found.basis
    told(f"(from {n} measured models; the one most like the expert reads {ratio:.2g} × as much per token)")
    if found.off:
        usual, most = found.off
        told(f"(each of these foretold from the others, seconds are {usual:.0%} off in the median, {most:.0%} at most)")
