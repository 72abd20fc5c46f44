"""Which ways of answering are compared: rules by block sizes by temperatures, and the controls without which no comparison says much.

Knows nothing of questions and measurements.
"""

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

#: What all others are compared with.
BASE, DRAFTER = "expert alone", "drafter alone"
T = TypeVar("T")


@dataclass(frozen=True)
class Arm:
    """One way of answering. ``name`` and temperature are unique in a grid."""

    name: str
    method: Method
    settings: Settings

    def described(self) -> dict[str, Any]:
        """For result rows."""
        settings = self.settings
        told = {name: getattr(settings, name) for name in ("temperature", "block_size", "top_k", "top_p", "min_p", "verification", "bonus")}
        return {"arm": self.name, "rule": str(self.method), "alpha": getattr(self.method, "alpha", None), **told}


def grid(
    rules: Sequence[Method], block_sizes: Sequence[BlockSize], temperatures: Sequence[float], settings: Settings = DEFAULTS
) -> list[Arm]:
    """Every rule at every block size and temperature, once each, after the controls.

    Controls at each temperature: the expert alone, the drafter alone, strict at each block size, and the expert under min-p, because
    truncation by itself sharpens a text and can look like the gain of a lossy rule (arXiv 2607.26627); 1 - alpha of the first token_v3. It
    is left out at temperature 0, where it is the expert alone. Raises SettingError for a rule that means nothing under these settings.
    """
    truncated = 1 - max(next((rule.alpha for rule in rules if isinstance(rule, TokenV3)), registry.DEFAULT.alpha), 0.0)
    arms: dict[tuple[str, float, BlockSize, float], Arm] = {}
    for temperature in temperatures:
        here = replace(settings, temperature=temperature)
        for name, method, chosen in _parse_arm(rules, block_sizes, here, truncated):
            checked = replace(chosen, rule=method)
            checked.method(method)
            key = str(method), temperature, chosen.block_size if method.in_blocks else 0, chosen.min_p
            arms.setdefault(key, Arm(name, method, checked))
    return list(arms.values())


def _parse_arm(
    rules: Sequence[Method], block_sizes: Sequence[BlockSize], settings: Settings, truncated: float
) -> Iterator[tuple[str, Method, Settings]]:
    alone = replace(settings, block_size=0)
    yield BASE, Strict(), alone
    yield DRAFTER, Never(), replace(settings, block_size=DEFAULTS.block_size)
    if settings.temperature > 0:
        yield f"expert min-p {truncated:.3g}", Strict(), replace(alone, min_p=truncated)
    for rule, block_size in product([Strict(), *rules], block_sizes):
        name = f"{rule}, {'auto blocks' if block_size == 'auto' else f'blocks of {block_size}'}" if rule.in_blocks else str(rule)
        yield name, rule, replace(settings, block_size=block_size)


def parse_list(text: str, kind: Callable[[str], T], what: str, example: str) -> list[T]:
    """``"3,5"`` -> [3, 5]. Raises SettingError."""
    parts = [part.strip() for part in text.split(",")]
    found = []
    for part in parts:
        try:
            found.append(kind(part))
        except (ValueError, SettingError):
            one = "" if len(parts) == 1 else f" {part!r:.40} in"
            raise SettingError(
                f"{what}:{one} {text!r:.60} is not allowed; give values with commas between them, such as {example}"
            ) from None
    return found


def parse_rules(text: str, alphas: Sequence[float] = ()) -> list[Method]:
    """``"strict,token_v3:0.3"`` -> rules; a name without dials is taken at every one of ``alphas``. Raises SettingError.

    A comma that a digit follows belongs to the rule before it: ``typical:0.09,0.3``.
    """
    specs = [spec for spec in re.split(r",(?=[A-Za-z_])", text) if spec]
    if not specs:
        raise SettingError(f"--rules {text!r:.40} names no rule; give some, such as token_v3:0.3,opt:0.2")
    return [registry.parse(each) for spec in specs for each in _with_alphas(spec.rstrip(","), alphas)]


def _with_alphas(spec: str, alphas: Sequence[float]) -> list[str]:
    takes_one = spec in registry.METHODS and "alpha" in registry.METHODS[spec].dials
    return [f"{spec}:{alpha:g}" for alpha in alphas] if takes_one and alphas else [spec]
