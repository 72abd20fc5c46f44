"""How one reply is made: what a user may choose, checked once, each default written once.

Knows nothing of models; where a pair has a rule of its own, that is filled in later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import rules
from .checks import whole_number
from .errors import SettingError
from .rules import Rule
from .sampling import Sampler
from .session import MAX_ROWS


@dataclass(frozen=True)
class Settings:
    """How one reply is made; every default of generate, stream and chat is written here and nowhere else.

    rule None: the pair's own. temperature 0: greedy. block_size: drafted tokens per block, 0 for the expert alone. seed None: a
    fresh one, told in ``Reply.seed``. Raises SettingError for a value outside its range.
    """

    rule: str | Rule | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    block_size: int = 5
    max_tokens: int = 256
    seed: int | None = None
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        _ = self.sampler  # validates the four sampling values
        whole_number("block_size", self.block_size, 0, MAX_ROWS - 1)
        whole_number("max_tokens", self.max_tokens, 1, 2**31 - 1)
        if self.seed is not None:
            whole_number("seed", self.seed, 0, 2**63 - 1)
        if isinstance(self.stop, (str, bytes)) or not isinstance(self.stop, Iterable):
            raise SettingError(f"stop is {self.stop!r:.40}; it must be a list of texts")
        object.__setattr__(self, "stop", tuple(self.stop))
        if not all(isinstance(text, str) and text for text in self.stop):
            raise SettingError(f"stop is {self.stop!r:.40}; it must be a list of texts, none of them empty")
        if self.rule is not None:
            rules.parse(self.rule)

    @property
    def sampler(self) -> Sampler:
        """The sampling part of the settings."""
        return Sampler(self.temperature, self.top_k, self.top_p, self.min_p)


DEFAULTS = Settings()
