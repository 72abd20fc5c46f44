"""Asks one question in several ways of one loaded pair. Each arm starts with cold caches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ..common.errors import SettingError
from ..rules import registry
from ..rules.lossy_acceptance import Fly
from ..rules.position_rules import Never, Opt, Strict
from ..rules.routes import Margin
from ..rules.rule import Method
from ..rules.token_rules import TokenV3
from ..tokens.prompt import Prompt
from .reply import Reply
from .runtime import Runtime
from .settings import DEFAULTS, BlockSize, Settings

#: Drafted tokens per block, the same for all arms.
BLOCK_SIZE = 5
#: The rule of the paper, shown beside the pair's own.
PAPER_RULE = Opt(0.2)
#: Below this mean margin the sequential cascade throws the drafter's answer away.
DEFAULT_THRESHOLD = 0.9


@dataclass(frozen=True)
class Row:
    """One arm's answer. ``wall_s``: median over the repetitions, in seconds. ``speedup``: relative to the expert alone of the same run."""

    name: str
    reply: Reply
    block_size: BlockSize
    wall_s: float
    speedup: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of wall time."""
        return self.reply.stats.tokens / self.wall_s

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of a result file."""
        measured = {"wall_s": self.wall_s, "tokens_per_s": self.tokens_per_s, "speedup": self.speedup}
        more = {"dropped": dropped_pairs(self.reply), "block_size": self.block_size}
        return {"arm": self.name, **self.reply.as_dict(), **more, **measured}


def dropped_pairs(reply: Reply) -> list[tuple[str, str]]:
    """Return each rejected rest of a draft, with the word that replaced it."""
    pairs = []
    for i, token in enumerate(reply.tokens):
        if token.dropped is not None:
            instead = "".join(later.text for later in reply.tokens[i : i + 8])
            pairs.append((token.dropped, (instead.split() or [instead])[0]))
    return pairs


def few_arms(settings: Settings, rule: Method, threshold: float) -> dict[str, Settings]:
    """Return drafter, expert, sequential cascade, speculative decoding and speculative cascade, by name."""
    cascades = dict.fromkeys([rule, PAPER_RULE])
    return {
        **_alone(settings),
        "sequential cascade": _by(settings, Margin(threshold)),
        "speculative decoding": _by(settings, Strict()),
        **{f"cascade {each}": _by(settings, each) for each in cascades},
    }


def all_arms(settings: Settings, rule: Method) -> dict[str, Settings]:
    """Return every method with its typical dials except ``calibrated``, which needs a file, and variants of speculative decoding.

    ``min-p`` is the control. Truncation alone sharpens a text and can look like the gain of a lossy rule (arXiv 2607.26627). So the expert
    alone and speculative decoding also answer under min-p 1 - alpha, with token_v3's alpha. Rules that these settings exclude are omitted,
    such as fly above temperature 0.
    """
    control = 1 - max(rule.alpha if isinstance(rule, TokenV3) else registry.DEFAULT.alpha, 0.0)
    arms = {
        **_alone(settings),
        f"expert min-p {control:.3g}": _by(settings, Strict(), block_size=0, min_p=control),
        "strict": _by(settings, Strict()),
        f"strict min-p {control:.3g}": _by(settings, Strict(), min_p=control),
        "strict block": _by(settings, Strict(), verification="block"),
        str(rule): _by(settings, rule),
    }
    if rule.in_blocks and settings.block_size:
        arms[f"{rule} cascade bonus"] = _by(settings, rule, bonus="cascade")
    for spec in registry.examples():
        method = registry.parse(spec)
        if isinstance(method, Never | Strict):
            continue
        size = settings.block_size
        if isinstance(method, Fly):
            size = Fly.TAIL + 4 if size == "auto" else max(size, Fly.TAIL + 4)
        name = spec if size == settings.block_size else f"{spec} blocks of {size}"
        with suppress(SettingError):
            arms.setdefault(name, _by(settings, method, block_size=size))
    return arms


def _alone(settings: Settings) -> dict[str, Settings]:
    return {
        "drafter alone": _by(settings, Never(), block_size=settings.block_size or DEFAULTS.block_size),
        "expert alone": _by(settings, Strict(), block_size=0),
    }


def _by(settings: Settings, method: Method, **changes: Any) -> Settings:
    """Return the settings with another method; a strict beginning and a thinking rule only where it works in blocks."""
    guards = {} if method.in_blocks else {"strict_first": DEFAULTS.strict_first, "thinking_rule": DEFAULTS.thinking_rule}
    return replace(settings, **{"rule": method, **guards, **changes})


def compare(
    runtime: Runtime, prompt: Prompt, arms: dict[str, Settings], *, repeat: int, on_step: Callable[[float], None] = lambda fraction: None
) -> list[Row]:
    """Answer ``prompt`` in every way of ``arms``, and return a row for each.

    The arms take turns, so that a slow moment of the machine does not hit only one of them.

    Args:
        runtime: the pair.
        prompt: a text or ids.
        arms: settings by name; must include "drafter alone" and "expert alone".
        repeat: answers per arm.
        on_step: called with the progress, 0..1.
    """
    for warm_up in ("drafter alone", "expert alone"):  # the first evaluations of a process are slow, so they do not count
        runtime.generate(prompt, replace(arms[warm_up], max_tokens=2))
    replies: dict[str, list[Reply]] = {name: [] for name in arms}
    for turn, name in enumerate(name for _ in range(repeat) for name in arms):
        runtime.reset()
        replies[name].append(runtime.generate(prompt, arms[name]))
        on_step((turn + 1) / (repeat * len(arms)))
    walls = {name: median(reply.stats.wall_s for reply in answers) for name, answers in replies.items()}
    return [Row(name, replies[name][0], each.block_size, walls[name], walls["expert alone"] / walls[name]) for name, each in arms.items()]
