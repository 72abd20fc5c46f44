"""Sequential cascades, the baselines: the drafter answers, and a score of its confidence decides whether the expert does it instead.

Query-level: the drafter answers in full; below a threshold its answer is thrown away and the expert starts over. Token-level: the
drafter writes as long as it is sure, and the expert is called for single tokens. Knows nothing of files and of how answers are shown.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..tokens.rows import Float, Rows
from .position_rules import Chow
from .rule import ANY, Dial, Method


@dataclass(frozen=True, eq=False)
class Signals:
    """What an answer's tokens say of the drafter's confidence, judged on what may be said (temperature 1, nothing filtered)."""

    logprobs: Float  # [n] log-probability of each emitted token
    margins: Float  # [n] probability of the first choice minus that of the second

    @classmethod
    def of(cls, token_ids: Sequence[int], rows: Sequence[Rows]) -> Signals:
        """From the answer's tokens and the row that each was drawn from, [1, n_vocab]; there may be more rows."""
        logprobs = [row.plain_logprob(token) for token, row in zip(token_ids, rows)]
        margins = []
        for row in rows[: len(token_ids)]:
            probs = row.plain.probs[0]
            second = np.partition(probs, -2)[-2] if len(probs) > 1 else 0.0  # a vocabulary of one token has no second choice
            margins.append(row.plain.max[0] - second)
        return cls(np.array(logprobs), np.array(margins))

    @classmethod
    def join(cls, parts: list[Signals]) -> Signals:
        """The signals of a whole answer."""
        return cls(np.concatenate([part.logprobs for part in parts]), np.concatenate([part.margins for part in parts]))


class Route(Method):
    """A query-level cascade: keep the drafter's answer iff its ``score`` reaches the ``threshold``."""

    in_blocks: ClassVar[bool] = False

    #: The least score with which the drafter's answer stands.
    threshold: float

    @abstractmethod
    def score(self, signals: Signals) -> float:
        """The drafter's confidence in its answer; more is surer."""

    def check_pair(self, drafter: Path, expert: Path) -> None:
        """Refuse a pair that the method was not made for. Raises SettingError."""


@dataclass(frozen=True)
class Scored(Route):
    """A route whose threshold is its dial."""

    threshold: float


@dataclass(frozen=True)
class ChowSum(Scored):
    """Keep the drafter's answer iff Σ log q(x) >= threshold.

    Lossless: threshold above 0
    Keeps every draft: threshold to minus infinity
    Temperature 0: the same test, over the greedy answer
    Source: Gupta et al. 2404.10136
    """

    name: ClassVar[str] = "chow_sum"
    trade: ClassVar[str] = "the small model's whole answer or the large one's; long answers look unsure"
    dials: ClassVar[Mapping[str, Dial]] = {"threshold": ANY}
    example: ClassVar[str] = "-2.0"

    def score(self, signals: Signals) -> float:
        return float(signals.logprobs.sum())


@dataclass(frozen=True)
class ChowAverage(Scored):
    """Keep the drafter's answer iff the mean of log q(x) over its tokens >= threshold.

    Lossless: threshold above 0
    Keeps every draft: threshold to minus infinity
    Temperature 0: the same test, over the greedy answer
    Source: Gupta et al. 2404.10136
    """

    name: ClassVar[str] = "chow_average"
    trade: ClassVar[str] = "the small model's whole answer or the large one's, whatever its length"
    dials: ClassVar[Mapping[str, Dial]] = {"threshold": ANY}
    example: ClassVar[str] = "-0.05"

    def score(self, signals: Signals) -> float:
        return float(signals.logprobs.mean())


@dataclass(frozen=True)
class ChowQuantile(Scored):
    """Keep the drafter's answer iff the given quantile of log q(x) over its tokens >= threshold; quantile 0 is its worst token.

    Lossless: threshold above 0
    Keeps every draft: threshold to minus infinity
    Temperature 0: the same test, over the greedy answer
    Source: Gupta et al. 2404.10136
    """

    quantile: float = 0.0

    name: ClassVar[str] = "chow_quantile"
    trade: ClassVar[str] = "the small model's whole answer or the large one's, by its least sure tokens"
    dials: ClassVar[Mapping[str, Dial]] = {"threshold": ANY, "quantile": Dial(0, 1)}
    example: ClassVar[str] = "-1.0"

    def score(self, signals: Signals) -> float:
        return float(np.quantile(signals.logprobs, self.quantile))


@dataclass(frozen=True)
class Margin(Scored):
    """Keep the drafter's answer iff the mean of (best - second-best probability) over its tokens >= threshold.

    Lossless: threshold 1, but for a drafter that is never in doubt
    Keeps every draft: threshold 0
    Temperature 0: the same test, over the greedy answer
    Source: arXiv 2605.18796 (UCCI), whose uncertainty u is 1 minus this mean
    """

    name: ClassVar[str] = "margin"
    trade: ClassVar[str] = "the small model's whole answer or the large one's, by how clearly it chose its words"
    dials: ClassVar[Mapping[str, Dial]] = {"threshold": Dial(0, 1)}
    example: ClassVar[str] = "0.9"

    def score(self, signals: Signals) -> float:
        return float(signals.margins.mean())


@dataclass(frozen=True)
class TokenCascade(Chow):
    """Token by token: the drafter's token iff max q >= 1 - alpha, else the expert is called for this one token.

    The target is chow's, but the expert is only evaluated where it is asked, one token at a time, and reads what it missed.

    Lossless: alpha 0
    Keeps every draft: alpha 1, without asking the expert at all
    Temperature 0: the same test
    Source: Jitkrittum et al. 2307.02764 (Chow's rule at every token); the baseline of Narasimhan et al. 2405.19261
    """

    in_blocks: ClassVar[bool] = False
    name: ClassVar[str] = "token_cascade"
    trade: ClassVar[str] = "the expert is called for single tokens, where the drafter is unsure; it never reads in batches of drafts"
    example: ClassVar[str] = "0.2"
