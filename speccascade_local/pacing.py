"""How long a draft is worth being: the draft length controller.

Before each further drafted token :class:`Auto` weighs what it may bring against what it costs. A block of i drafted tokens emits, on
average, 1 + a_1 + a_1 a_2 + ... tokens, a_j being the chance that the rule keeps token j; it costs i drafter steps and one batch of i + 1
in the expert. A draft goes on as long as that raises (tokens - R * seconds), R being the tokens per second that this rule has reached so
far on this runtime: the marginal rule that maximises a rate. The chance is fitted online to what this rule kept, by how sure the drafter
was; the seconds come from the profile of the pair on this machine. All clocks are the profile's, so the same history gives the same
decisions.

The decision to stop is taken from the text, from what is drafted already and from the drafter's row for the next token, never from a token
that is then withheld. So given that a token was submitted it is distributed as the drafter's row says, and the executor's guarantee
(every emitted token follows the rule's target) holds whatever the lengths are.

Knows costs and chances; nothing of rules or sessions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from .evidence import Float, Rows
from .ngram import Guess
from .profile import Profile

#: The longest draft of an automatic block: batches beyond 17 tokens are no cheaper per token on any machine measured so far.
LONGEST = 16
#: The longest block with guesses behind its draft: they cost nothing but their place in the batch, and a copy may go on for long.
LONGEST_BLOCK = 48
#: Blocks without a draft before one is tried again: of a rule that was never seen, after a success, and at most. Doubled at each failure.
FIRST_PATIENCE, USUAL_PATIENCE, LAST_PATIENCE = 8, 64, 512
#: How often a guess is right after so many matching tokens, guesses before it included, as long as nothing was seen; each weighs as much
#: as two observations.
PRIOR_GUESS = (0.1, 0.25, 0.45, 0.65, 0.8, 0.9, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.98)
FORGETTING = 0.9  # per block
#: What the drafter is taken to be like before anything was seen.
FIRST_LOG_ODDS = (1.0, 3.0, 5.0)
#: Texts differ in how well the drafter knows them, by so much (variance of log-odds) from reply to reply and from block to block of one.
DOUBT, DRIFT, MOODIEST = 6.0, 0.05, 6.0


class Pace(Protocol):
    """Who decides how long the drafts are. One object per reply; the methods are called in this order, block after block."""

    def beside(self, expert: int, drafter: int) -> bool:
        """Whether the expert shall read so many tokens of the text in a thread while the drafter reads so many and drafts."""

    def begin(self, room: int, unread: int, waiting: int, depth: int) -> None:
        """A block begins. room: the most tokens to draft. unread: what the drafter must read first. waiting: what the expert must read
        in any case, together with the draft. depth: length of the text.
        """

    def another(self, guess: Guess) -> bool:
        """Whether the drafter shall compute its next row. guess: how the text would be copied on from here."""

    def review(self, guess: Guess) -> int:
        """How many guessed tokens the drafter shall read together with what it reads anyway, to draft several tokens at once."""

    def reviewed(self, guess: Guess, kept: int) -> None:
        """Of the tokens that were reviewed so many were the drafter's own."""

    def worth(self, row: Rows) -> bool:
        """Whether a token drawn from this raw row shall be submitted."""

    def tail(self, guess: Guess) -> int:
        """How many guessed tokens shall follow the draft. Ends the draft."""

    def ahead(self, submitted: int) -> int:
        """How many tokens the drafter shall write on, in a thread, while the expert reads so many."""

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        """What became of the block: so many drafted tokens tested and kept, guesses tested and right, tokens emitted."""


class Fixed:
    """Always the same length, and the drafter alone."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._left = 0

    def beside(self, expert: int, drafter: int) -> bool:
        return False

    def begin(self, room: int, unread: int, waiting: int, depth: int) -> None:
        self._left = min(room, self.length)

    def another(self, guess: Guess) -> bool:
        self._left -= 1
        return self._left >= 0

    def review(self, guess: Guess) -> int:
        return 0

    def reviewed(self, guess: Guess, kept: int) -> None:
        pass

    def worth(self, row: Rows) -> bool:
        return True

    def tail(self, guess: Guess) -> int:
        return 0

    def ahead(self, submitted: int) -> int:
        return 0

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        pass


# --------------------------------------------------------------------------- what is learnt


@dataclass
class Hits:
    """How often a guess was right, by the number of matching tokens before it."""

    right: list[float] = field(default_factory=lambda: [2 * prior for prior in PRIOR_GUESS])
    asked: list[float] = field(default_factory=lambda: [2.0] * len(PRIOR_GUESS))

    def chances(self, guess: Guess) -> list[float]:
        """P(right) of each guessed token, given that those before it were."""
        places = [min(guess.match + i, len(self.asked) - 1) for i in range(len(guess.token_ids))]
        return [self.right[place] / self.asked[place] for place in places]

    def learn(self, match: int, tested: int, right: int) -> None:
        """So many guesses after ``match`` matching tokens were tested, and the first ``right`` of them were right."""
        for i in range(tested):
            place = min(match + i, len(self.asked) - 1)
            self.right[place] = 0.98 * self.right[place] + (i < right)
            self.asked[place] = 0.98 * self.asked[place] + 1


@dataclass
class Experience:
    """What one rule at one temperature has shown on this pair.

    outcomes: log-odds of the drafter's confidence, and whether the token was kept, of the latest tokens that were tested.
    tokens, seconds: emitted and spent (by the profile), older blocks weighing less.
    """

    outcomes: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=256))
    curve: tuple[float, float] = (0.0, 1.0)  # P(kept) = logistic(curve[0] + curve[1] * log-odds)
    tokens: float = 0.0
    seconds: float = 0.0
    guesses: Hits = field(default_factory=Hits)
    reviews: Hits = field(default_factory=Hits)
    quiet: int = 0  # blocks without a draft
    patience: int = FIRST_PATIENCE

    def chance(self, log_odds: Float, mood: float = 0.0) -> Float:
        """P(kept) of tokens that the drafter is so sure of, in a reply where it is that much surer to be kept than usual (log-odds). [k]"""
        chance: Float = 1 / (1 + np.exp(-(self.curve[0] + self.curve[1] * log_odds + mood)))
        return chance

    def fit(self) -> None:
        """Logistic regression on the outcomes, by a few Newton steps from the last fit; few of them are drawn to "as sure as it says"."""
        x, kept = np.array(self.outcomes, dtype=np.float64).T
        features = np.stack([np.ones_like(x), x])
        weight, prior, pull = np.array(self.curve), np.array([0.0, 1.0]), np.array([0.3, 3.0])
        for _ in range(3):
            chance = 1 / (1 + np.exp(-(weight @ features)))
            slope = features @ (kept - chance) - pull * (weight - prior)
            curvature = (features * (chance * (1 - chance))) @ features.T + np.diag(pull)
            weight = weight + np.linalg.solve(curvature, slope)
        self.curve = float(np.clip(weight[0], -8, 8)), float(np.clip(weight[1], 0, 4))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: list(value) if isinstance(value, deque) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Experience:
        """What ``as_dict`` gave. Raises ValueError for anything else."""
        try:
            found = cls(**{**stored, **{name: Hits(**stored[name]) for name in ("guesses", "reviews")}})
            found.outcomes = deque(((float(x), bool(kept)) for x, kept in stored["outcomes"]), maxlen=cls().outcomes.maxlen)
            found.curve = float(stored["curve"][0]), float(stored["curve"][1])
            hits = [value for each in (found.guesses, found.reviews) for counts in (each.right, each.asked) for value in counts]
            numbers = [found.tokens, found.seconds, found.quiet, found.patience, *found.curve, *hits]
            numbers += [x for x, _ in found.outcomes]
            if len(hits) != 4 * len(PRIOR_GUESS) or not all(map(math.isfinite, numbers)):
                raise ValueError("numbers are missing or not finite")
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(f"not what was saved: {error}") from error
        return found


# --------------------------------------------------------------------------- the controller


class Auto:
    """Lengths from the profile and from experience, which it extends.

    has_drafter: False where there is no second model, and guesses are all that can be submitted.
    """

    def __init__(self, profile: Profile, experience: Experience, *, has_drafter: bool = True) -> None:
        self._profile, self._seen, self._has_drafter = profile, experience, has_drafter
        self._costs: dict[tuple[int, int], tuple[Float, float]] = {}
        self._mood, self._doubt = 0.0, DOUBT
        # How sure the drafter may be of the next token: as it usually is, and more and more as it was in this reply.
        usual = [log_odds for log_odds, _ in experience.outcomes] or FIRST_LOG_ODDS
        self._usual = deque(np.quantile(usual, (0.1, 0.9, 0.5, 0.3, 0.7)).tolist())
        self._recent = deque(self._usual, maxlen=10)

    def beside(self, expert: int, drafter: int) -> bool:
        """See :class:`Pace`."""
        seconds, batch = self._profile.expert.batch_s, LONGEST + 1
        if not drafter:
            return False
        hidden = min(seconds(expert), self._profile.drafter.batch_s(drafter)) * (1 - self._profile.overlap)
        # The first draft is then checked in a batch of its own, in place of at the end of the prompt's; that reads all weights once more.
        return hidden > max(seconds(batch) - (seconds(expert + batch) - seconds(expert)), seconds(1))

    def begin(self, room: int, unread: int, waiting: int, depth: int) -> None:
        """See :class:`Pace`."""
        self._room = min(room, LONGEST_BLOCK)
        bucket = waiting, depth // 64
        if bucket not in self._costs:
            batches = np.array([self._profile.expert.batch_s(waiting + n, depth) for n in range(LONGEST_BLOCK + 1)])
            # A prompt is read whatever is drafted: what drafts add to it is all that counts, and that is no staircase.
            batches += self._profile.expert.batch_s(1, depth) - batches[0]
            self._costs[bucket] = batches, self._profile.drafter.batch_s(1, depth)
        self._batch, self._step = self._costs[bucket]
        alone = 1 / self._batch[0]
        # The expert alone is always to be had, so no draft may be worth less than that; and until something is known, not more.
        self._rate = max(alone, (self._seen.tokens + 8) / (self._seen.seconds + 8 / alone))
        self._seconds, self._first = 0.0, self._profile.drafter.batch_s(max(unread, 1), depth)
        self._expected, self._all_kept = 1.0, 1.0  # tokens of the block as drafted so far; chance that all of it is kept
        self._drafted = 0
        self._refused = False
        self._said: list[float] = []  # log-odds of the drafter, of each drafted token
        self._probing = self._has_drafter and self._seen.quiet >= self._seen.patience
        # a + a² + ...: what further tokens bring beyond one that is kept, their chances being unknown yet
        self._chances = self._seen.chance(np.array(self._recent), self._mood)
        self._further = np.concatenate(([0.0], np.cumsum(self._chances.mean() ** np.arange(1, LONGEST))))

    def another(self, guess: Guess) -> bool:
        """See :class:`Pace`."""
        if not self._has_drafter or self._drafted >= min(self._room, LONGEST):
            return False
        self._stop = self._best_tail(guess)[1]
        cost = self._step if self._drafted else self._first
        if not (self._probing and not self._drafted):
            values = self._if_kept(self._chances)
            if np.maximum(values, self._stop).mean() - self._rate * cost <= self._stop:
                return False
        self._seconds += cost
        return True

    def review(self, guess: Guess) -> int:
        """See :class:`Pace`."""
        best, length, expected, kept = 1.15 / self._step, 0, 1.0, 1.0
        for i, chance in enumerate(self._seen.reviews.chances(guess)[: self._room - self._drafted - 1], start=1):
            kept *= chance
            expected += kept
            rate = expected / self._profile.drafter.batch_s(i + 1)
            if rate > best:
                best, length = rate, i
        return length

    def reviewed(self, guess: Guess, kept: int) -> None:
        """See :class:`Pace`."""
        asked = len(guess.token_ids)
        self._seen.reviews.learn(guess.match, min(kept + 1, asked), kept)
        self._seconds += self._profile.drafter.batch_s(asked + 1) - self._step

    def worth(self, row: Rows) -> bool:
        """See :class:`Pace`."""
        log_odds = min(max(-math.log(max(row.plain.rest[0], 1e-12)), -12.0), 12.0)  # max q / (1 - max q)
        self._recent.append(log_odds)
        chances = self._seen.chance(np.array([log_odds]), self._mood)
        chance = float(chances[0])
        probe = self._probing and not self._drafted
        if not probe and self._if_kept(chances)[0] <= self._stop:
            self._refused = True
            return False
        self._said.append(log_odds)
        self._drafted += 1
        self._all_kept *= max(chance, 0.5) if probe else chance
        self._expected += self._all_kept
        return True

    def tail(self, guess: Guess) -> int:
        """See :class:`Pace`."""
        self._guess = guess
        return self._best_tail(guess)[0]

    def ahead(self, submitted: int) -> int:
        """See :class:`Pace`."""
        # It is used if all is kept and the drafter knows the bonus token; if not, what the two cost each other is lost.
        if self._refused or self._all_kept * float(self._chances.mean()) <= self._profile.overlap:
            return 0
        # More than such a draft again, in place of the bonus token and behind it, would hardly be used.
        return min(int(self._batch[min(submitted, LONGEST_BLOCK)] / self._step), self._drafted + 1)

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        """See :class:`Pace`."""
        seen = self._seen
        guesses = 0
        if tested:
            outcomes = [(log_odds, i < kept) for i, log_odds in enumerate(self._said[:tested])]
            self._feel(outcomes)
            seen.outcomes.extend(outcomes)
            seen.fit()
        if guessed:
            guesses = min(guessed, right + 1) if kept == self._drafted else 0
            seen.guesses.learn(self._guess.match, guesses, right)
        if self._drafted:
            failed = self._probing and not kept
            seen.patience = min(2 * seen.patience, LAST_PATIENCE) if failed else USUAL_PATIENCE if kept else seen.patience
            seen.quiet = 0
        else:
            seen.quiet += 1
            # Nothing was looked at, so what was last seen says less and less about what comes next.
            self._recent.append(self._usual[0])
            self._usual.rotate(-1)
        spent = self._seconds + self._batch[min(self._drafted + guessed, LONGEST_BLOCK)]
        seen.tokens = FORGETTING * seen.tokens + tokens
        seen.seconds = FORGETTING * seen.seconds + spent

    def _feel(self, outcomes: list[tuple[float, bool]]) -> None:
        """A Kalman filter over the mood: the first outcomes of a reply say much about the rest of it, later ones less."""
        for log_odds, kept in outcomes:
            chance = float(self._seen.chance(np.array(log_odds), self._mood))
            self._doubt = 1 / (1 / self._doubt + chance * (1 - chance))
            self._mood = min(max(self._mood + self._doubt * (kept - chance), -MOODIEST), MOODIEST)
        self._doubt += DRIFT

    def _if_kept(self, chances: Float) -> Float:
        """The most that a block can be worth if one token more is submitted, by that token's chance; lengths to come are free. [k]"""
        more = np.arange(min(self._room, LONGEST) - self._drafted)
        tokens = self._all_kept * chances[:, None] * (1 + self._further[more])
        cost = more * self._step + self._batch[self._drafted + 1 + more]
        worth: Float = (self._expected + tokens - self._rate * cost).max(axis=1)
        return worth

    def _best_tail(self, guess: Guess) -> tuple[int, float]:
        """How many guesses to submit if the draft ends here, and what the block is worth then."""
        chances = self._seen.guesses.chances(guess)[: self._room - self._drafted]
        tokens = np.cumsum([self._expected, *(self._all_kept * np.cumprod(chances))])
        worth = tokens - self._rate * self._batch[self._drafted : self._drafted + len(tokens)]
        length = len(worth) - 1 - int(np.argmax(worth[::-1]))  # what costs nothing is taken
        return length, float(worth[length])
