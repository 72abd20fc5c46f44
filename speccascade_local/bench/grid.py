"""The arms of a comparison: rules by block sizes by temperatures, and the controls."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

from ..common.errors import SettingError
from ..rules import registry
from ..rules.position_rules import Never, Strict
from ..rules.rule import Method
from ..rules.token_rules import TokenV3
from ..runtime.settings import DEFAULTS, BlockSize, Settings

#: All other arms are compared with BASE.
BASE, DRAFTER = "expert alone", "drafter alone"
T = TypeVar("T")


@dataclass(frozen=True)
class Arm:
    """One way of answering. In a grid, name and temperature together are unique."""

    name: str
    method: Method
    settings: Settings

    def as_dict(self) -> dict[str, Any]:
        """Return the part of a result row that describes the arm."""
        names = ("temperature", "block_size", "top_k", "top_p", "min_p", "verification", "bonus")
        settings = {name: getattr(self.settings, name) for name in names}
        return {"arm": self.name, "rule": str(self.method), "alpha": getattr(self.method, "alpha", None), **settings}


def grid(
    rules: Sequence[Method], block_sizes: Sequence[BlockSize], temperatures: Sequence[float], settings: Settings = DEFAULTS
) -> list[Arm]:
    """Return every rule at every block size and temperature, once each, after the controls.

    Controls at each temperature are the expert alone, the drafter alone, and strict at each block size. Above temperature 0 the expert
    under min-p, at 1 - alpha of the first token_v3, is one too: truncation alone sharpens a text and can look like the gain of a lossy rule
    (arXiv 2607.26627). Raises SettingError for a rule that has no meaning under these settings.
    """
    min_p = 1 - max(next((rule.alpha for rule in rules if isinstance(rule, TokenV3)), registry.DEFAULT.alpha), 0.0)
    arms: dict[tuple[str, float, BlockSize, float], Arm] = {}
    for temperature in temperatures:
        here = replace(settings, temperature=temperature)
        for name, method, arm_settings in _arms(rules, block_sizes, here, min_p):
            with_rule = replace(arm_settings, rule=method)
            with_rule.method(method)  # raises
            key = str(method), temperature, arm_settings.block_size if method.in_blocks else 0, arm_settings.min_p
            arms.setdefault(key, Arm(name, method, with_rule))
    return list(arms.values())


def _arms(
    rules: Sequence[Method], block_sizes: Sequence[BlockSize], settings: Settings, min_p: float
) -> Iterator[tuple[str, Method, Settings]]:
    """Yield name, rule and settings of each arm at one temperature."""
    alone = replace(settings, block_size=0)
    yield BASE, Strict(), alone
    yield DRAFTER, Never(), replace(settings, block_size=DEFAULTS.block_size)
    if settings.temperature > 0:
        yield f"expert min-p {min_p:.3g}", Strict(), replace(alone, min_p=min_p)
    for rule, block_size in product([Strict(), *rules], block_sizes):
        name = f"{rule}, {'auto blocks' if block_size == 'auto' else f'blocks of {block_size}'}" if rule.in_blocks else str(rule)
        yield name, rule, replace(settings, block_size=block_size)


def parse_list(text: str, kind: Callable[[str], T], option: str, example: str) -> list[T]:
    """Return [3, 5] for ``"3,5"``. Raises SettingError."""
    parts, values = [part.strip() for part in text.split(",")], []
    for part in parts:
        try:
            values.append(kind(part))
        except (ValueError, SettingError):
            one = "" if len(parts) == 1 else f" {part!r:.40} in"
            raise SettingError(f"{option}:{one} {text!r:.60} is not allowed; separate values by commas, such as {example}") from None
    return values


def parse_rules(text: str, alphas: Sequence[float] = ()) -> list[Method]:
    """Return the rules of ``"strict,token_v3:0.3"``; a name without dials stands for the rule at every alpha. Raises SettingError.

    A comma before a digit belongs to the rule: ``typical:0.09,0.3``.
    """
    specs = [spec for spec in re.split(r",(?=[A-Za-z_])", text) if spec]
    if not specs:
        raise SettingError(f"--rules {text!r:.40} names no rule; give at least one, such as token_v3:0.3,opt:0.2")
    return [registry.parse(each) for spec in specs for each in _with_alphas(spec.rstrip(","), alphas)]


def _with_alphas(spec: str, alphas: Sequence[float]) -> list[str]:
    takes_one = spec in registry.METHODS and "alpha" in registry.METHODS[spec].dials
    return [f"{spec}:{alpha:g}" for alpha in alphas] if takes_one and alphas else [spec]
