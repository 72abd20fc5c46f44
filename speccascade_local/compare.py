"""The same question asked several ways over one loaded pair, so that the ways can be seen side by side.

Every arm starts with cold caches. Knows nothing of how the result is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from .rules import Opt, Rule, Strict
from .runtime import Prompt, Reply, Runtime

#: The rule of the paper, shown beside the pair's own.
PAPER_RULE = Opt(0.2)


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
        return {
            "arm": self.name,
            "rule": str(self.reply.rule),
            "block_size": self.block_size,
            "seed": self.reply.seed,
            "text": self.reply.text,
            "finish_reason": self.reply.finish_reason,
            "origins": self.reply.origins,
            "dropped": dropped_pairs(self.reply),
            "confidence": self.reply.confidence,
            "stats": self.reply.stats.counts(),
            "wall_s": self.wall_s,
            "tokens_per_s": self.tokens_per_s,
            "speedup": self.speedup,
        }


def dropped_pairs(reply: Reply) -> list[tuple[str, str]]:
    """What was drafted and thrown away, with what stands there instead."""
    return [(token.dropped, token.text) for token in reply.tokens if token.dropped is not None]


def compare(
    runtime: Runtime,
    prompt: Prompt,
    *,
    rule: Rule,
    threshold: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    block_size: int,
    max_tokens: int,
    seed: int,
    repeat: int,
    on_step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Answer ``prompt`` by drafter, expert, sequential cascade, speculative decoding and speculative cascade.

    The arms take turns ``repeat`` times, so that a slow moment of the machine does not fall on one of them; ``on_step`` is called
    after each answer.
    """
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "max_tokens": max_tokens, "seed": seed}

    def speculative(arm_rule: Rule, block: int) -> Callable[[], Reply]:
        return lambda: runtime.generate(prompt, rule=arm_rule, block_size=block, **sampling)  # type: ignore[arg-type]

    cascades = dict.fromkeys([rule, PAPER_RULE])  # once each, should they be the same
    arms: dict[str, tuple[Callable[[], Reply], int]] = {
        "drafter alone": (lambda: runtime.generate(prompt, rule="never", **sampling), 0),  # type: ignore[arg-type]
        "expert alone": (speculative(Strict(), 0), 0),
        "sequential cascade": (lambda: runtime.sequential(prompt, threshold=threshold, **sampling), 0),  # type: ignore[arg-type]
        "speculative decoding": (speculative(Strict(), block_size), block_size),
        **{f"speculative cascade {each}": (speculative(each, block_size), block_size) for each in cascades},
    }
    for arm_rule in ("strict", "never"):  # the first evaluations of a process are slow; they count for nobody
        runtime.generate(prompt, rule=arm_rule, max_tokens=2)
    replies: dict[str, list[Reply]] = {name: [] for name in arms}
    for _ in range(repeat):
        for name, (ask, _block) in arms.items():
            runtime.reset()
            replies[name].append(ask())
            on_step()
    walls = {name: median(reply.stats.wall_s for reply in answers) for name, answers in replies.items()}
    return [Row(name, replies[name][0], block, walls[name], walls["expert alone"] / walls[name]) for name, (_ask, block) in arms.items()]
