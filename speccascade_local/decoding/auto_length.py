"""The automatic draft length: drafts as many tokens as pay, by the profile of this machine and by what the rule kept so far.

Before each further drafted token :class:`AutoLength` weighs what it may bring against what it costs. A block of i drafted tokens emits, on
average, 1 + a_1 + a_1 a_2 + ... tokens, where a_j is the chance that the rule keeps token j. It costs i drafter steps and one batch of
i + 1 tokens in the expert. (Without a bonus token both are those of i - 1 tokens, and at least one is drafted.) A draft continues as long
as that raises (tokens - R * seconds), R being the tokens per second that this rule has reached so far: the marginal rule that maximizes a
rate. The chance is fitted online to what this rule kept, by how sure the drafter was of what may be said. The seconds come from the
profile. No clock is read, so the same history gives the same decisions.

The decision to stop depends on the text, on what is drafted already and on the drafter's row for the next token, never on a token that is
then withheld. So a submitted token is distributed as the drafter's row says, and every emitted token follows the rule's target whatever
the lengths are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from ..tokens.rows import Float, Rows
from .history import AcceptanceHistory
from .lengths import LONGEST, LONGEST_BLOCK, LengthPolicy
from .ngram import NOTHING, Guess
from .profile import Profile

# These constants were chosen by trying: modelled speeds of all families at the costs of a large pair.
#: Blocks without a draft before one is tried again: after a success, and at most. Doubled at each failure.
USUAL_PATIENCE, LAST_PATIENCE = 64, 512
#: The share of the counted tokens and seconds that is left after one more block, and the tokens, at the expert's own speed, that the
#: count begins with.
FORGETTING, FIRST_TOKENS = 0.9, 8
#: How much faster than single rows a reviewed guess must be.
REVIEW_GAIN = 1.15
#: Log-odds of the drafter's confidence before anything was seen.
FIRST_LOG_ODDS = (1.0, 3.0, 5.0)
#: Texts differ in how well the drafter knows them, by this variance of log-odds: from reply to reply, from block to block, and at most.
DOUBT, DRIFT, MOODIEST = 6.0, 0.05, 6.0


class AutoLength(LengthPolicy):
    """Chooses lengths from the profile and from the history of acceptance, which it extends.

    Without a drafter only guesses can be submitted. ``prompt`` tokens of the prompt count as unread whatever the caches hold, so that the
    same call decides alike; None: those that are unread.
    """

    def __init__(self, profile: Profile, history: AcceptanceHistory, *, has_drafter: bool = True, prompt: int | None = None) -> None:
        self._profile, self._history, self._has_drafter, self._prompt = profile, history, has_drafter, prompt
        self._costs: dict[tuple[int, int], tuple[Float, float]] = {}
        self._mood, self._doubt = 0.0, DOUBT
        # How sure the drafter may be of the next token: as it usually is, and more and more as it was in this reply.
        usual = [log_odds for log_odds, _ in history.outcomes] or FIRST_LOG_ODDS
        self._usual = deque(np.quantile(usual, (0.1, 0.9, 0.5, 0.3, 0.7)).tolist())
        self._recent = deque(self._usual, maxlen=10)
        self._plan: BlockPlan  # from ``begin`` on
        self._began = 0  # where the latest block began
        self._read: int | None = None  # how much of the text the drafter has read

    def reads_beside(self, expert: int, drafter: int) -> bool:
        if self._prompt is not None:
            expert = drafter = self._prompt
        seconds, batch = self._profile.expert.batch_s, LONGEST + 1
        if not drafter:
            return False
        hidden = min(seconds(expert), self._profile.drafter.batch_s(drafter)) * (1 - self._profile.overlap)
        # The first draft is then scored in a batch of its own, instead of at the end of the prompt's; that reads all weights once more.
        return hidden > max(seconds(batch) - (seconds(expert + batch) - seconds(expert)), seconds(1))

    def begin(self, room: int, depth: int, *, first: bool, bonus: bool = True) -> None:
        self._prompt = None  # read by now, or about to be
        history = self._history
        batch, step = self._block_costs(depth if first else 1, depth)
        if bonus:
            alone = 1 / batch[0]
        else:  # the expert does not read the last token of the draft, and a draft has at least one
            batch = np.concatenate((batch[:1], batch[:-1]))
            alone = 1 / (batch[1] + step)
        # The least draft is always possible, so the rate is never below it; and as long as nothing is known, not above it.
        rate = max(alone, (history.tokens + FIRST_TOKENS) / (history.seconds + FIRST_TOKENS / alone))
        self._plan = BlockPlan(
            batch,
            step,
            self._profile.drafter.batch_s(self._unread_by_drafter(depth), depth) + self._profile.draft_s,
            rate,
            min(room, LONGEST_BLOCK),
            history.chance(np.array(self._recent), self._mood),
            probing=self._has_drafter and history.quiet >= history.patience,
            bonus=bonus,
        )

    def _block_costs(self, waiting: int, depth: int) -> tuple[Float, float]:
        """Return the expert's seconds by number of submitted tokens, and the drafter's seconds of a row."""
        bucket = waiting, depth // 64
        if bucket not in self._costs:
            batches = np.array([self._profile.expert.batch_s(waiting + n, depth) for n in range(LONGEST_BLOCK + 1)])
            # A prompt is read whatever is drafted: only what drafts add to it counts, and that is no staircase.
            batches += self._profile.expert.batch_s(1, depth) - batches[0] + self._profile.block_s
            self._costs[bucket] = batches, self._profile.drafter.batch_s(1, depth) + self._profile.draft_s
        return self._costs[bucket]

    def _unread_by_drafter(self, depth: int) -> int:
        """Return how many tokens the drafter must read first, without the prompt, if it read for its drafts alone.

        Recording makes it read more, which must not change how long drafts are. The prompt is read once for a whole reply, so no single
        draft can pay for it.
        """
        if self._read is None:
            self._read = depth - 1
        elif self._plan.rows:
            self._read = min(self._began + self._plan.rows, depth) - 1
        self._began = depth
        return max(depth - self._read, 1)

    def wants_row(self, guess: Guess) -> bool:
        plan = self._plan
        if not self._has_drafter or plan.drafted >= min(plan.room, LONGEST):
            return False
        plan.weigh_ending(self._history.guesses.chances(guess))
        if not plan.row_pays():
            return False
        plan.add_row()
        return True

    def count_reviewed(self, guess: Guess) -> int:
        plan = self._plan
        best, length, expected, kept = REVIEW_GAIN / plan.step, 0, 1.0, 1.0
        for i, chance in enumerate(self._history.reviews.chances(guess)[: plan.room - plan.drafted - 1], start=1):
            kept *= chance
            expected += kept
            rate = expected / self._profile.drafter.batch_s(i + 1)
            if rate > best:
                best, length = rate, i
        return length

    def learn_review(self, guess: Guess, kept: int) -> None:
        asked = len(guess.token_ids)
        self._history.reviews.learn(guess.match, min(kept + 1, asked), kept)
        self._plan.add_review(self._profile.drafter.batch_s(asked + 1), kept)

    def wants_token(self, row: Rows) -> bool:
        plan = self._plan
        log_odds = min(max(-math.log(max(row.plain.rest[0], 1e-12)), -12.0), 12.0)  # max q / (1 - max q)
        self._recent.append(log_odds)
        chances = self._history.chance(np.array([log_odds]), self._mood)
        if not plan.token_pays(chances):
            plan.refuse()
            return False
        plan.submit(log_odds, float(chances[0]))
        return True

    def count_guesses(self, guess: Guess) -> int:
        return self._plan.end_with(guess, self._history.guesses.chances(guess))

    def count_ahead(self, submitted: int) -> int:
        plan = self._plan
        # It is used if all is kept and the drafter knows the bonus token; if not, what the two cost each other is lost.
        if plan.refused or plan.all_kept * float(plan.chances.mean()) <= self._profile.overlap:
            return 0
        # More than such a draft again, in place of the bonus token and after it, would hardly be used.
        return min(int(plan.batch[min(submitted, LONGEST_BLOCK)] / plan.step), plan.drafted + 1)

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        history, plan = self._history, self._plan
        if tested:
            outcomes = [(log_odds, i < kept) for i, log_odds in enumerate(plan.log_odds[:tested])]
            self._update_mood(outcomes)
            history.outcomes.extend(outcomes)
            history.fit()
        if guessed:
            history.guesses.learn(plan.guess.match, min(guessed, right + 1) if kept == plan.drafted else 0, right)
        if plan.drafted:
            failed = plan.probing and not kept
            history.patience = min(2 * history.patience, LAST_PATIENCE) if failed else USUAL_PATIENCE if kept else history.patience
            history.quiet = 0
        else:
            history.quiet += 1
            # Nothing was drafted, so what was seen last says less and less about the next token.
            self._recent.append(self._usual[0])
            self._usual.rotate(-1)
        seconds = plan.seconds + plan.batch[min(plan.drafted + guessed, LONGEST_BLOCK)]
        history.tokens = FORGETTING * history.tokens + tokens
        history.seconds = FORGETTING * history.seconds + seconds

    def _update_mood(self, outcomes: list[tuple[float, bool]]) -> None:
        """Update a Kalman filter over this reply's log-odds: its first outcomes say much about the rest of it, later ones less."""
        for log_odds, kept in outcomes:
            chance = float(self._history.chance(np.array(log_odds), self._mood))
            self._doubt = 1 / (1 / self._doubt + chance * (1 - chance))
            self._mood = min(max(self._mood + self._doubt * (kept - chance), -MOODIEST), MOODIEST)
        self._doubt += DRIFT


class BlockPlan:
    """A block that is being drafted, and what it is worth: its tokens, less what they might have cost at ``rate``.

    Args:
        batch: seconds of the expert, by the number of tokens submitted.
        step: seconds of a row of the drafter.
        first: seconds of its first row.
        rate: tokens per second.
        room: the most tokens to submit.
        chances: P(kept) of tokens that the drafter is as sure of as it was lately.
        probing: whether the first token is drafted only to see whether the rule keeps it.
        bonus: whether a fully kept draft brings one more token; without it each block has a draft and no guess follows it.
    """

    def __init__(
        self, batch: Float, step: float, first: float, rate: float, room: int, chances: Float, *, probing: bool, bonus: bool = True
    ) -> None:
        self.batch, self.step, self.rate, self.room, self.chances = batch, step, rate, room, chances
        self.probing = probing
        self.log_odds: list[float] = []  # of the drafter's confidence, of each drafted token
        self.all_kept = 1.0  # chance that all of the draft is kept
        self.rows = 0  # of the drafter
        self.seconds = 0.0  # of the drafter
        self.refused = False  # whether no token of the last row was worth submitting
        self.guess = NOTHING  # the one that follows the draft
        self._first, self._bonus = first, bonus
        self._settled = 0.0  # tokens that the drafted places emit: a place emits one if all before it are kept
        self._free_rows = 0  # rows that a review has computed already
        self._ending = 0.0  # what the block is worth if it ends here
        # 1 + a + a² + ...: what follows a kept token, by how many more are drafted, while their chances are unknown
        powers = chances.mean() ** np.arange(LONGEST)
        self._further = np.cumsum(powers) if bonus else np.concatenate(([0.0], np.cumsum(powers[:-1])))

    @property
    def drafted(self) -> int:
        return len(self.log_odds)

    @property
    def must_draft(self) -> bool:
        """Whether the next token is drafted whatever it is worth."""
        return (self.probing or not self._bonus) and not self.drafted

    def weigh_ending(self, chances: Sequence[float]) -> None:
        """Note what the block is worth if it ends here. ``chances``: of each guess in turn."""
        _, self._ending = self._best_guesses(chances)

    def row_pays(self) -> bool:
        """Return whether one more row of the drafter is expected to pay."""
        if self.must_draft:
            return True
        cost = self.step if self.drafted else self._first
        return bool(np.maximum(self.worth_with(self.chances), self._ending).mean() - self.rate * cost > self._ending)

    def token_pays(self, chances: Float) -> bool:
        """Return whether a token with this chance, [1], is worth submitting."""
        return self.must_draft or bool(self.worth_with(chances)[0] > self._ending)

    def add_row(self) -> None:
        """Count one more row of the drafter."""
        self.rows += 1
        if self._free_rows:
            self._free_rows -= 1  # it costs the same in decisions, which would otherwise depend on a token that is not submitted yet
        else:
            self.seconds += self.step if self.drafted else self._first

    def add_review(self, seconds: float, kept: int) -> None:
        """Count a review that took ``seconds`` in place of one step, and computed ``kept`` further rows."""
        self.seconds += seconds - self.step
        self._free_rows = kept

    def refuse(self) -> None:
        """End the draft, because no token of the last row is worth submitting."""
        self.refused = True

    def submit(self, log_odds: float, chance: float) -> None:
        """Add a token to the draft. ``chance``: P(kept)."""
        chance = max(chance, 0.5) if self.probing and not self.drafted else chance
        self.log_odds.append(log_odds)
        self._settled += self.all_kept
        self.all_kept *= chance

    def end_with(self, guess: Guess, chances: Sequence[float]) -> int:
        """End the draft, and return how many tokens of the guess follow it."""
        self.guess = guess
        return self._best_guesses(chances)[0]

    def worth_with(self, chances: Float) -> Float:
        """Return the most that the block can be worth with one more token, by that token's chance, at the best length. [k]"""
        more = np.arange(min(self.room, LONGEST) - self.drafted)
        tokens = self._settled + self.all_kept + self.all_kept * chances[:, None] * self._further[more]
        cost = more * self.step + self.batch[self.drafted + 1 + more]
        worth: Float = (tokens - self.rate * cost).max(axis=1)
        return worth

    def _best_guesses(self, chances: Sequence[float]) -> tuple[int, float]:
        """Return how many guesses to submit if the draft ends here, and what the block is then worth."""
        expected = self._settled + self._bonus * self.all_kept
        chances = chances[: self.room - self.drafted]
        if not chances or not self._bonus:
            return 0, float(expected - self.rate * self.batch[self.drafted])
        tokens = np.cumsum([expected, *(self.all_kept * np.cumprod(chances))])
        worth = tokens - self.rate * self.batch[self.drafted : self.drafted + len(tokens)]
        length = len(worth) - 1 - int(np.argmax(worth[::-1]))  # guesses that cost nothing are taken
        return length, float(worth[length])
