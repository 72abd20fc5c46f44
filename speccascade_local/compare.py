"""The same question asked several ways over one loaded pair, so that the ways can be seen side by side.

Every arm starts with cold caches. Knows nothing of how the result is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from .reply import Reply
from .rules import Never, Opt, Strict, parse
from .runtime import Prompt, Runtime
from .settings import DEFAULTS, Settings

#: The rule of the paper, shown beside the pair's own.
PAPER_RULE = Opt(0.2)
SEQUENTIAL = "sequential cascade"


@dataclass(frozen=True)
class Row:
    """One arm's answer. wall_s: median over the repetitions, in seconds; speedup: against the expert alone of the same run."""

    name: str
    reply: Reply
    block_size: int
    wall_s: float
    speedup: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the answer per second of wall time."""
        return self.reply.stats.tokens / self.wall_s

    def as_dict(self) -> dict[str, Any]:
        """For result files."""
        measured = {"wall_s": self.wall_s, "tokens_per_s": self.tokens_per_s, "speedup": self.speedup}
        more = {"dropped": dropped_pairs(self.reply), "confidence": self.reply.confidence, "block_size": self.block_size}
        return {"arm": self.name, **self.reply.as_dict(), **more, **measured}


def dropped_pairs(reply: Reply) -> list[tuple[str, str]]:
    """What was drafted and thrown away, with the word that stands there instead."""
    pairs = []
    for i, token in enumerate(reply.tokens):
        if token.dropped is not None:
            instead = "".join(later.text for later in reply.tokens[i : i + 8])
            pairs.append((token.dropped, (instead.split() or [instead])[0]))
    return pairs


def compare(
    runtime: Runtime,
    prompt: Prompt,
    settings: Settings,
    *,
    threshold: float,
    repeat: int,
    on_step: Callable[[float], None] = lambda fraction: None,
) -> list[Row]:
    """Answer ``prompt`` by drafter, expert, sequential cascade, speculative decoding and speculative cascade.

    ``settings`` hold for every arm, as far as it has them; the cascade uses their rule or the pair's own. The arms take turns
    ``repeat`` times, so that a slow moment of the machine does not fall on one of them; ``on_step`` is told the fraction done.
    """
    rule = runtime.rule if settings.rule is None else parse(settings.rule)
    cascades = dict.fromkeys([rule, PAPER_RULE])  # once each, should they be the same
    arms = {
        "drafter alone": replace(settings, rule=Never(), block_size=settings.block_size or DEFAULTS.block_size),
        "expert alone": replace(settings, rule=Strict(), block_size=0),
        SEQUENTIAL: settings,
        "speculative decoding": replace(settings, rule=Strict()),
        **{f"cascade {each}": replace(settings, rule=each) for each in cascades},
    }

    def ask(name: str) -> Reply:
        runtime.reset()
        if name != SEQUENTIAL:
            return runtime.generate(prompt, **vars(arms[name]))
        shared = {key: value for key, value in vars(settings).items() if key not in ("rule", "block_size")}
        return runtime.sequential(prompt, threshold=threshold, **shared)

    for warm_up in ("drafter alone", "expert alone"):  # the first evaluations of a process are slow; they count for nobody
        runtime.generate(prompt, **vars(replace(arms[warm_up], max_tokens=2)))
    replies: dict[str, list[Reply]] = {name: [] for name in arms}
    for turn, name in enumerate(name for _ in range(repeat) for name in arms):
        replies[name].append(ask(name))
        on_step((turn + 1) / (repeat * len(arms)))
    walls = {name: median(reply.stats.wall_s for reply in answers) for name, answers in replies.items()}
    return [Row(name, replies[name][0], each.block_size, walls[name], walls["expert alone"] / walls[name]) for name, each in arms.items()]
