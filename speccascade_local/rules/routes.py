"""Sequential cascades, the baselines: the drafter answers, and its confidence decides whether the expert answers instead.

Query-level: the drafter answers in full; below a threshold its answer is thrown away and the expert starts over. Token-level: the
drafter writes while it is sure, and the expert is called for single tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..tokens.rows import Float, Rows
from .position_rules import Chow
from .rule import ANY, Dial, Dials, Method


@dataclass(frozen=True, eq=False)
class Signals:
    """The drafter's confidence in the tokens of an answer, from its plain distributions."""

    logprobs: Float  # [n] log-probability of each emitted token
    margins: Float  # [n] probability of the first choice minus that of the second

    @classmethod
    def of(cls, token_ids: Sequence[int], rows: Sequence[Rows]) -> Signals:
        """Return the signals of an answer's tokens. rows: the row that each was drawn from, [1, n_vocab]; there may be more."""
        logprobs = [row.plain_logprob(token) for token, row in zip(token_ids, rows)]
        margins = []
        for row in rows[: len(token_ids)]:
            probs = row.plain.probs[0]
            second = np.partition(probs, -2)[-2] if len(probs) > 1 else 0.0  # a vocabulary of one token has no second choice
            margins.append(row.plain.max[0] - second)
        return cls(np.array(logprobs), np.array(margins))

    @classmethod
    def join(cls, parts: list[Signals]) -> Signals:
        """Return the signals of a whole answer from those of its parts."""
        return cls(np.concatenate([part.logprobs for part in parts]), np.concatenate([part.margins for part in parts]))


class Route(Method):
    """A query-level cascade: keep the drafter's answer iff its score is at least the threshold."""

    in_blocks = False

    #: The lowest score with which the drafter's answer is kept.
    threshold: float

    @abstractmethod
    def score(self, signals: Signals) -> float:
        """Return the drafter's confidence in its answer; higher is surer."""

    def check_pair(self, drafter: Path, expert: Path) -> None:
        """Raise SettingError for a pair that the method was not made for."""


@dataclass(frozen=True)
class ThresholdRoute(Route):
    """A route whose threshold is its dial."""

    threshold: float


@dataclass(frozen=True)
class ChowSum(ThresholdRoute):
    """Keep the drafter's answer iff Σ log q(x) >= threshold."""

    name = "chow_sum"
    trade = "the small model's whole answer or the large one's; long answers look unsure"
    dials = Dials(threshold=ANY)
    example = "-2.0"
    lossless = "threshold above 0"
    keeps_every_draft = "threshold to minus infinity"
    at_temperature_0 = "the same test, over the greedy answer"
    source = "Gupta et al. 2404.10136"

    def score(self, signals: Signals) -> float:
        return float(signals.logprobs.sum())


@dataclass(frozen=True)
class ChowAverage(ThresholdRoute):
    """Keep the drafter's answer iff the mean of log q(x) over its tokens >= threshold."""

    name = "chow_average"
    trade = "the small model's whole answer or the large one's, whatever its length"
    dials = Dials(threshold=ANY)
    example = "-0.05"
    lossless = "threshold above 0"
    keeps_every_draft = "threshold to minus infinity"
    at_temperature_0 = "the same test, over the greedy answer"
    source = "Gupta et al. 2404.10136"

    def score(self, signals: Signals) -> float:
        return float(signals.logprobs.mean())


@dataclass(frozen=True)
class ChowQuantile(ThresholdRoute):
    """Keep the drafter's answer iff the given quantile of log q(x) over its tokens >= threshold; quantile 0 is its worst token."""

    quantile: float = 0.0

    name = "chow_quantile"
    trade = "the small model's whole answer or the large one's, by its least sure tokens"
    dials = Dials(threshold=ANY, quantile=Dial(0, 1))
    example = "-1.0"
    lossless = "threshold above 0"
    keeps_every_draft = "threshold to minus infinity"
    at_temperature_0 = "the same test, over the greedy answer"
    source = "Gupta et al. 2404.10136"

    def score(self, signals: Signals) -> float:
        return float(np.quantile(signals.logprobs, self.quantile))


@dataclass(frozen=True)
class Margin(ThresholdRoute):
    """Keep the drafter's answer iff the mean of (best - second-best probability) over its tokens >= threshold."""

    name = "margin"
    trade = "the small model's whole answer or the large one's, by how clearly it chose its words"
    dials = Dials(threshold=Dial(0, 1))
    example = "0.9"
    lossless = "threshold 1, but for a drafter that is never in doubt"
    keeps_every_draft = "threshold 0"
    at_temperature_0 = "the same test, over the greedy answer"
    source = "arXiv 2605.18796 (UCCI), whose uncertainty u is 1 minus this mean"

    def score(self, signals: Signals) -> float:
        return float(signals.margins.mean())


@dataclass(frozen=True)
class TokenCascade(Chow):
    """Token by token: the drafter's token iff max q >= 1 - alpha, else the expert is called for this one token.

    The target is chow's, but the expert is evaluated only where it is asked, one token at a time, and first reads what it missed.
    """

    in_blocks = False
    name = "token_cascade"
    trade = "the expert is called for single tokens, where the drafter is unsure; it never reads in batches of drafts"
    example = "0.2"
    lossless = "alpha 0"
    keeps_every_draft = "alpha 1, without asking the expert at all"
    at_temperature_0 = "the same test"
    source = "Jitkrittum et al. 2307.02764 (Chow's rule at every token); the baseline of Narasimhan et al. 2405.19261"
