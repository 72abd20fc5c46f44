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

import numpy as np

from .experience import Experience
from .ngram import Guess
from .pacing import LONGEST, LONGEST_BLOCK
from .profile import Profile
from .rows import Float, Rows

#: Blocks without a draft before one is tried again: after a success, and at most. Doubled at each failure.
USUAL_PATIENCE, LAST_PATIENCE = 64, 512
FORGETTING = 0.9  # per block
#: What the drafter is taken to be like before anything was seen.
FIRST_LOG_ODDS = (1.0, 3.0, 5.0)
#: Texts differ in how well the drafter knows them, by so much (variance of log-odds) from reply to reply and from block to block of one.
DOUBT, DRIFT, MOODIEST = 6.0, 0.05, 6.0


class Auto:
    """Lengths from the profile and from experience, which it extends.

    has_drafter: False where there is no second model, and guesses are all that can be submitted.
    """

    def __init__(self, profile: Profile, experience: Experience, *, has_drafter: bool = True) -> None:
        self._profile, self._seen, self._has_drafter = profile, experience, has_drafter
        self._costs: dict[tuple[int, int], tuple[Float, float]] = {}
        self._mood, self._doubt = 0.0, DOUBT
        self._depth: int | None = None  # where the latest block began
        self._rows = 0  # that the drafter computed for it
        # How sure the drafter may be of the next token: as it usually is, and more and more as it was in this reply.
        usual = [log_odds for log_odds, _ in experience.outcomes] or FIRST_LOG_ODDS
        self._usual = deque(np.quantile(usual, (0.1, 0.9, 0.5, 0.3, 0.7)).tolist())
        self._recent = deque(self._usual, maxlen=10)

    def beside(self, expert: int, drafter: int) -> bool:
        """See :class:`~speccascade_local.pacing.Pace`."""
        seconds, batch = self._profile.expert.batch_s, LONGEST + 1
        if not drafter:
            return False
        hidden = min(seconds(expert), self._profile.drafter.batch_s(drafter)) * (1 - self._profile.overlap)
        # The first draft is then checked in a batch of its own, in place of at the end of the prompt's; that reads all weights once more.
        return hidden > max(seconds(batch) - (seconds(expert + batch) - seconds(expert)), seconds(1))

    def begin(self, room: int, depth: int, *, first: bool) -> None:
        """See :class:`~speccascade_local.pacing.Pace`."""
        self._room = min(room, LONGEST_BLOCK)
        waiting = depth if first else 1
        bucket = waiting, depth // 64
        if bucket not in self._costs:
            batches = np.array([self._profile.expert.batch_s(waiting + n, depth) for n in range(LONGEST_BLOCK + 1)])
            # A prompt is read whatever is drafted: what drafts add to it is all that counts, and that is no staircase.
            batches += self._profile.expert.batch_s(1, depth) - batches[0] + self._profile.block_s
            self._costs[bucket] = batches, self._profile.drafter.batch_s(1, depth) + self._profile.draft_s
        self._batch, self._step = self._costs[bucket]
        alone = 1 / self._batch[0]
        # The expert alone is always to be had, so no draft may be worth less than that; and until something is known, not more.
        self._rate = max(alone, (self._seen.tokens + 8) / (self._seen.seconds + 8 / alone))
        self._seconds, self._first = 0.0, self._profile.drafter.batch_s(self._behind(depth), depth) + self._profile.draft_s
        self._expected, self._all_kept = 1.0, 1.0  # tokens of the block as drafted so far; chance that all of it is kept
        self._drafted = self._rows = 0
        self._refused = False
        self._said: list[float] = []  # log-odds of the drafter, of each drafted token
        self._probing = self._has_drafter and self._seen.quiet >= self._seen.patience
        # a + a² + ...: what further tokens bring beyond one that is kept, their chances being unknown yet
        self._chances = self._seen.chance(np.array(self._recent), self._mood)
        self._further = np.concatenate(([0.0], np.cumsum(self._chances.mean() ** np.arange(1, LONGEST))))

    def another(self, guess: Guess) -> bool:
        """See :class:`~speccascade_local.pacing.Pace`."""
        if not self._has_drafter or self._drafted >= min(self._room, LONGEST):
            return False
        self._stop = self._best_tail(guess)[1]
        cost = self._step if self._drafted else self._first
        if not (self._probing and not self._drafted):
            values = self._if_kept(self._chances)
            if np.maximum(values, self._stop).mean() - self._rate * cost <= self._stop:
                return False
        self._seconds += cost
        self._rows += 1
        return True

    def _behind(self, depth: int) -> int:
        """How much the drafter has to read before it can go on, the prompt apart, had it read for its drafts alone.

        An account of tokens lets it read more, and must not change how long drafts are. The prompt is read once for a whole reply,
        so no single draft can pay for it.
        """
        if self._depth is None:
            self._read = depth - 1
        elif self._rows:
            self._read = min(self._depth + self._rows, depth) - 1
        self._depth = depth
        return max(depth - self._read, 1)

    def review(self, guess: Guess) -> int:
        """See :class:`~speccascade_local.pacing.Pace`."""
        best, length, expected, kept = 1.15 / self._step, 0, 1.0, 1.0
        for i, chance in enumerate(self._seen.reviews.chances(guess)[: self._room - self._drafted - 1], start=1):
            kept *= chance
            expected += kept
            rate = expected / self._profile.drafter.batch_s(i + 1)
            if rate > best:
                best, length = rate, i
        return length

    def reviewed(self, guess: Guess, kept: int) -> None:
        """See :class:`~speccascade_local.pacing.Pace`."""
        asked = len(guess.token_ids)
        self._seen.reviews.learn(guess.match, min(kept + 1, asked), kept)
        self._seconds += self._profile.drafter.batch_s(asked + 1) - self._step

    def worth(self, row: Rows) -> bool:
        """See :class:`~speccascade_local.pacing.Pace`."""
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
        """See :class:`~speccascade_local.pacing.Pace`."""
        self._guess = guess
        return self._best_tail(guess)[0]

    def ahead(self, submitted: int) -> int:
        """See :class:`~speccascade_local.pacing.Pace`."""
        # It is used if all is kept and the drafter knows the bonus token; if not, what the two cost each other is lost.
        if self._refused or self._all_kept * float(self._chances.mean()) <= self._profile.overlap:
            return 0
        # More than such a draft again, in place of the bonus token and behind it, would hardly be used.
        return min(int(self._batch[min(submitted, LONGEST_BLOCK)] / self._step), self._drafted + 1)

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        """See :class:`~speccascade_local.pacing.Pace`."""
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
        """The most that a block can be worth if one token more is submitted, by that token's chance, the best length chosen. [k]"""
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
