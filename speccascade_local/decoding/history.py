"""The history of one rule at one temperature on a pair: how often drafts and guesses were kept, and at what speed."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..tokens.rows import Float
from .ngram import Guess

#: Blocks without a draft before one is tried again, of a rule that was never seen.
FIRST_PATIENCE = 8
#: How many tested tokens a history keeps, the latest ones.
MAX_OUTCOMES = 256
#: How often a guess is right after 0..LONGEST_MATCH matching tokens, guesses before it included, while nothing was seen; each weighs as
#: much as two observations.
PRIOR_GUESS = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass
class GuessHistory:
    """How often a guess was right, by the number of matching tokens before it."""

    right: list[float] = field(default_factory=lambda: [2 * prior for prior in PRIOR_GUESS])
    asked: list[float] = field(default_factory=lambda: [2.0] * len(PRIOR_GUESS))

    def __post_init__(self) -> None:
        if not len(self.right) == len(self.asked) == len(PRIOR_GUESS):
            raise ValueError(f"right and asked must have {len(PRIOR_GUESS)} numbers each")

    def chances(self, guess: Guess) -> list[float]:
        """Return P(right) of each guessed token, given that those before it were right."""
        at = min(guess.match, len(self.asked) - 1)
        known = [right / asked for right, asked in zip(self.right[at:], self.asked[at:])]
        return (known + known[-1:] * len(guess.token_ids))[: len(guess.token_ids)]

    def learn(self, match: int, tested: int, right: int) -> None:
        """Learn that of ``tested`` guesses after ``match`` matching tokens the first ``right`` were right."""
        for i in range(tested):
            place = min(match + i, len(self.asked) - 1)
            self.right[place] = 0.98 * self.right[place] + (i < right)
            self.asked[place] = 0.98 * self.asked[place] + 1


@dataclass
class AcceptanceHistory:
    """What one rule at one temperature has shown on this pair.

    ``outcomes``: the latest tested tokens, each as the log-odds of the drafter's confidence and whether it was kept. ``tokens``,
    ``seconds``: emitted, and spent by the profile, with older blocks weighing less.
    """

    outcomes: deque[tuple[float, bool]] = field(default_factory=deque)
    curve: tuple[float, float] = (0.0, 1.0)  # P(kept) = logistic(curve[0] + curve[1] * log-odds)
    tokens: float = 0.0
    seconds: float = 0.0
    guesses: GuessHistory = field(default_factory=GuessHistory)
    reviews: GuessHistory = field(default_factory=GuessHistory)
    quiet: int = 0  # blocks without a draft
    patience: int = FIRST_PATIENCE

    def __post_init__(self) -> None:
        self.outcomes = deque(self.outcomes, maxlen=MAX_OUTCOMES)

    def chance(self, log_odds: Float, mood: float = 0.0) -> Float:
        """P(kept) of tokens, by the log-odds of the drafter's confidence and by how much surer than usual this reply's are. [k]"""
        chance: Float = 1 / (1 + np.exp(-(self.curve[0] + self.curve[1] * log_odds + mood)))
        return chance

    def fit(self) -> None:
        """Logistic regression on the outcomes, by a few Newton steps from the last fit; few of them are drawn to "as sure as it says"."""
        x, kept = np.array(self.outcomes, dtype=np.float64).T
        features = np.stack([np.ones_like(x), x])
        curve, prior, pull = np.array(self.curve), np.array([0.0, 1.0]), np.array([0.3, 3.0])

        def misfit(curve: Float) -> float:
            said = curve @ features
            return float(np.logaddexp(0, said).sum() - kept @ said + 0.5 * pull @ (curve - prior) ** 2)

        now = misfit(curve)
        for _ in range(3):
            chance = 1 / (1 + np.exp(-(curve @ features)))
            slope = features @ (chance - kept) + pull * (curve - prior)
            curvature = (features * (chance * (1 - chance))) @ features.T + np.diag(pull)
            step = np.linalg.solve(curvature, slope)
            # Where the curve is flat a whole step goes far beyond the best fit, and the next one as far back.
            while (then := misfit(curve - step)) > now + 1e-9:
                step /= 2
            curve, now = curve - step, then
        self.curve = float(np.clip(curve[0], -8, 8)), float(np.clip(curve[1], 0, 4))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self) | {"outcomes": list(self.outcomes)}
