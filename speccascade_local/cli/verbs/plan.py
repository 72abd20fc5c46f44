"""``speccascade plan``: estimate the speed and memory of a pair without loading it."""

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


def run(chosen: options.ModelOptions, pair: options.PairName = None, as_json: options.Json = False, verbose: options.Verbose = 0) -> None:
    """Estimate how much faster than the expert alone a pair is on this machine, and how much memory it needs, from the file headers.

    The estimate rests on measurements of other pairs, so measure one first (speccascade profile). Its range covers how many drafts are
    accepted. Instead of a file that is not here yet you can give its size: --drafter 0.5GB --expert 4.9GB.
    """
    set_log_level(verbose)
    named = options.pair_of(pair, chosen)
    headers = {role: header_of_size(path) or read_header(path) for role, path in named.files.items()}
    expert, drafter = headers["expert"], headers.get("drafter")
    n_ctx = chosen.ctx or min(DEFAULT_CONTEXT, *(header.n_ctx_train for header in headers.values()))
    plan = estimate_pair(drafter, expert, measured_models(), n_ctx)
    if as_json:
        print(json.dumps({"pair": named.name, "n_ctx": n_ctx, **asdict(plan)}))
        return
    (low, high), (least, most) = plan.speedup, ACCEPTANCE_RATES
    lines = [f"{named.name}: {low:.1f} to {high:.1f} × as fast as the expert alone, if {least:.0%} to {most:.0%} of drafts are accepted"]
    if plan.best_length:
        lines.append(f"  best with drafts of about {plan.best_length} tokens")
    lines.append("  the expert {:.1f} to {:.1f} tokens per second".format(*sorted(1 / each for each in plan.expert_s)))
    if drafter:
        lines.append("  the drafter {:.1f} to {:.1f} tokens per second".format(*sorted(1 / each for each in plan.drafter_s)))
    total = sum(plan.memory.values())
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.memory.items() if size)
    more = "" if all(header.cache_bytes for header in headers.values()) else "; without KV caches, which a size does not determine"
    lines.append(f"memory: {total / 1e9:.2f} GB at a context of {n_ctx} ({parts}{more})")
    n, ratio = plan.basis
    lines.append(f"(from {n} measured models; the one most like the expert reads {ratio:.2g} × as much per token)")
    if plan.off:
        usual, worst = plan.off
        lines.append(f"(each of these estimated from the others: seconds are {usual:.0%} off in the median, {worst:.0%} at most)")
    for line in lines:
        stdout.print(line, highlight=False, soft_wrap=True)
