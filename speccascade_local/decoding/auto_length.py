"""How long a draft is worth being: the draft length controller.

Before each further drafted token :class:`AutoLength` weighs what it may bring against what it costs. A block of i drafted tokens emits, on
average, 1 + a_1 + a_1 a_2 + ... tokens, a_j being the chance that the rule keeps token j; it costs i drafter steps and one batch of i + 1
in the expert. (Without a bonus token both are those of i - 1 tokens, and at least one is drafted.) A draft goes on as long as that
raises (tokens - R * seconds), R being the tokens per second that this rule has reached so far on this runtime: the marginal rule that
maximises a rate. The chance is fitted online to what this rule kept, by how sure the drafter was of what may be said; the seconds come from
the profile of the pair on this machine. All clocks are the profile's, so the same history gives the same decisions.

The decision to stop is taken from the text, from what is drafted already and from the drafter's row for the next token, never from a token
that is then withheld. So given that a token was submitted it is distributed as the drafter's row says, and the executor's guarantee
(every emitted token follows the rule's target) holds whatever the lengths are.

Knows costs and chances; nothing of rules or sessions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from ..tokens.rows import Float, Rows
from .history import AcceptanceHistory
from .lengths import LONGEST, LONGEST_BLOCK
from .ngram import NOTHING, Guess
from .profile import Profile

# What follows was chosen by trying: modelled speeds of all families at the costs of a large pair.
#: Blocks without a draft before one is tried again: after a success, and at most. Doubled at each failure.
USUAL_PATIENCE, LAST_PATIENCE = 64, 512
#: How much of what was counted of tokens and seconds is left after one block more, and at how many tokens at the expert's own speed the
#: count begins.
FORGETTING, FIRST_TOKENS = 0.9, 8
#: By so much a reviewed guess must be faster than a row at a time.
REVIEW_GAIN = 1.15
#: What the drafter is taken to be like before anything was seen.
FIRST_LOG_ODDS = (1.0, 3.0, 5.0)
#: Texts differ in how well the drafter knows them, by so much (variance of log-odds) from reply to reply and from block to block of one.
DOUBT, DRIFT, MOODIEST = 6.0, 0.05, 6.0


class AutoLength:
    """Lengths from the profile and from experience, which it extends.

    has_drafter: False where there is no second model, and guesses are all that can be submitted. prompt: tokens of a prompt that is
    taken for unread, whatever the caches hold, so that the same call decides alike; None to ask what is unread.
    """

    def __init__(self, profile: Profile, experience: AcceptanceHistory, *, has_drafter: bool = True, prompt: int | None = None) -> None:
        self._profile, self._seen, self._has_drafter, self._prompt = profile, experience, has_drafter, prompt
        self._costs: dict[tuple[int, int], tuple[Float, float]] = {}
        self._mood, self._doubt = 0.0, DOUBT
        # How sure the drafter may be of the next token: as it usually is, and more and more as it was in this reply.
        usual = [log_odds for log_odds, _ in experience.outcomes] or FIRST_LOG_ODDS
        self._usual = deque(np.quantile(usual, (0.1, 0.9, 0.5, 0.3, 0.7)).tolist())
        self._recent = deque(self._usual, maxlen=10)
        self._block: BlockPlan  # from ``begin`` on
        self._began = 0  # where the latest block began
        self._read: int | None = None  # what of the text the drafter has read

    def beside(self, expert: int, drafter: int) -> bool:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        if self._prompt is not None:
            expert = drafter = self._prompt
        seconds, batch = self._profile.expert.batch_s, LONGEST + 1
        if not drafter:
            return False
        hidden = min(seconds(expert), self._profile.drafter.batch_s(drafter)) * (1 - self._profile.overlap)
        # The first draft is then checked in a batch of its own, in place of at the end of the prompt's; that reads all weights once more.
        return hidden > max(seconds(batch) - (seconds(expert + batch) - seconds(expert)), seconds(1))

    def begin(self, room: int, depth: int, *, first: bool, bonus: bool = True) -> None:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        self._prompt = None  # read by now, or about to be
        waiting = depth if first else 1
        bucket = waiting, depth // 64
        if bucket not in self._costs:
            batches = np.array([self._profile.expert.batch_s(waiting + n, depth) for n in range(LONGEST_BLOCK + 1)])
            # A prompt is read whatever is drafted: what drafts add to it is all that counts, and that is no staircase.
            batches += self._profile.expert.batch_s(1, depth) - batches[0] + self._profile.block_s
            self._costs[bucket] = batches, self._profile.drafter.batch_s(1, depth) + self._profile.draft_s
        batch, step = self._costs[bucket]
        if bonus:
            alone = 1 / batch[0]
        else:  # the judge need not read the last of the draft, and a draft of one token is the least
            batch = np.concatenate((batch[:1], batch[:-1]))
            alone = 1 / (batch[1] + step)
        # The least draft is always to be had, so none may be worth less than that; and until something is known, not more.
        rate = max(alone, (self._seen.tokens + FIRST_TOKENS) / (self._seen.seconds + FIRST_TOKENS / alone))
        self._block = BlockPlan(
            batch,
            step,
            self._profile.drafter.batch_s(self._behind(depth), depth) + self._profile.draft_s,
            rate,
            min(room, LONGEST_BLOCK),
            self._seen.chance(np.array(self._recent), self._mood),
            probing=self._has_drafter and self._seen.quiet >= self._seen.patience,
            bonus=bonus,
        )

    def another(self, guess: Guess) -> bool:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        block = self._block
        if not self._has_drafter or block.drafted >= min(block.room, LONGEST):
            return False
        _, block.ending = block.best_tail(self._seen.guesses.chances(guess))
        cost = block.step if block.drafted else block.first
        if not block.must_draft:
            values = block.worth_if_kept(block.chances)
            if np.maximum(values, block.ending).mean() - block.rate * cost <= block.ending:
                return False
        block.rows += 1
        if block.free_rows:
            block.free_rows -= 1  # to decide as if it cost nothing would tell of a token that is not submitted yet
        else:
            block.seconds += cost
        return True

    def _behind(self, depth: int) -> int:
        """How much the drafter has to read before it can go on, the prompt apart, had it read for its drafts alone.

        An account of tokens lets it read more, and must not change how long drafts are. The prompt is read once for a whole reply,
        so no single draft can pay for it.
        """
        if self._read is None:
            self._read = depth - 1
        elif self._block.rows:
            self._read = min(self._began + self._block.rows, depth) - 1
        self._began = depth
        return max(depth - self._read, 1)

    def review(self, guess: Guess) -> int:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        block = self._block
        best, length, expected, kept = REVIEW_GAIN / block.step, 0, 1.0, 1.0
        for i, chance in enumerate(self._seen.reviews.chances(guess)[: block.room - block.drafted - 1], start=1):
            kept *= chance
            expected += kept
            rate = expected / self._profile.drafter.batch_s(i + 1)
            if rate > best:
                best, length = rate, i
        return length

    def learn_review(self, guess: Guess, kept: int) -> None:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        asked = len(guess.token_ids)
        self._seen.reviews.learn(guess.match, min(kept + 1, asked), kept)
        self._block.seconds += self._profile.drafter.batch_s(asked + 1) - self._block.step
        self._block.free_rows = kept

    def worth(self, row: Rows) -> bool:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        block = self._block
        log_odds = min(max(-math.log(max(row.plain.rest[0], 1e-12)), -12.0), 12.0)  # max q / (1 - max q)
        self._recent.append(log_odds)
        chances = self._seen.chance(np.array([log_odds]), self._mood)
        if not block.must_draft and block.worth_if_kept(chances)[0] <= block.ending:
            block.refused = True
            return False
        chance = float(chances[0])
        block.submit(log_odds, max(chance, 0.5) if block.is_probe else chance)
        return True

    def tail(self, guess: Guess) -> int:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        self._block.guess = guess
        return self._block.best_tail(self._seen.guesses.chances(guess))[0]

    def ahead(self, submitted: int) -> int:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        block = self._block
        # It is used if all is kept and the drafter knows the bonus token; if not, what the two cost each other is lost.
        if block.refused or block.all_kept * float(block.chances.mean()) <= self._profile.overlap:
            return 0
        # More than such a draft again, in place of the bonus token and behind it, would hardly be used.
        return min(int(block.batch[min(submitted, LONGEST_BLOCK)] / block.step), block.drafted + 1)

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        """See :class:`~speccascade_local.decoding.lengths.LengthPolicy`."""
        seen, block = self._seen, self._block
        if tested:
            outcomes = [(log_odds, i < kept) for i, log_odds in enumerate(block.said[:tested])]
            self._feel(outcomes)
            seen.outcomes.extend(outcomes)
            seen.fit()
        if guessed:
            seen.guesses.learn(block.guess.match, min(guessed, right + 1) if kept == block.drafted else 0, right)
        if block.drafted:
            failed = block.probing and not kept
            seen.patience = min(2 * seen.patience, LAST_PATIENCE) if failed else USUAL_PATIENCE if kept else seen.patience
            seen.quiet = 0
        else:
            seen.quiet += 1
            # Nothing was looked at, so what was last seen says less and less about what comes next.
            self._recent.append(self._usual[0])
            self._usual.rotate(-1)
        spent = block.seconds + block.batch[min(block.drafted + guessed, LONGEST_BLOCK)]
        seen.tokens = FORGETTING * seen.tokens + tokens
        seen.seconds = FORGETTING * seen.seconds + spent

    def _feel(self, outcomes: list[tuple[float, bool]]) -> None:
        """A Kalman filter over the mood: the first outcomes of a reply say much about the rest of it, later ones less."""
        for log_odds, kept in outcomes:
            chance = float(self._seen.chance(np.array(log_odds), self._mood))
            self._doubt = 1 / (1 / self._doubt + chance * (1 - chance))
            self._mood = min(max(self._mood + self._doubt * (kept - chance), -MOODIEST), MOODIEST)
        self._doubt += DRIFT


class BlockPlan:
    """A block in the making, and what it is worth: tokens, less what they might have cost at ``rate``.

    batch: seconds of the expert, by the number of tokens submitted. step, first: seconds of a row of the drafter, and of its first one.
    rate: tokens per second. room: the most tokens to submit. chances: P(kept) of tokens that the drafter is as sure of as it was lately.
    probing: whether the first token is drafted to see what becomes of it. bonus: whether a draft that is kept whole brings a token more;
    without it there is no block without a draft, and no guess behind one.
    """

    def __init__(
        self, batch: Float, step: float, first: float, rate: float, room: int, chances: Float, *, probing: bool, bonus: bool = True
    ) -> None:
        self.batch, self.step, self.first, self.rate, self.room, self.chances = batch, step, first, rate, room, chances
        self.probing, self.bonus = probing, bonus
        self.said: list[float] = []  # log-odds of the drafter, of each drafted token
        self.settled = 0.0  # tokens that the drafted places emit: a place does if all before it are kept
        self.all_kept = 1.0  # chance that all of the draft is kept
        self.rows = self.free_rows = 0  # of the drafter; how many it has computed already, while it reviewed guesses
        self.seconds = 0.0  # of the drafter
        self.refused = False  # the last row, because no token of it was worth submitting
        self.ending = 0.0  # what it is worth if it ends here
        self.guess = NOTHING  # its tail
        # 1 + a + a² + ...: what follows a token that is kept, by how many more are drafted, their chances being unknown yet
        powers = chances.mean() ** np.arange(LONGEST)
        self.further = np.cumsum(powers) if bonus else np.concatenate(([0.0], np.cumsum(powers[:-1])))

    @property
    def drafted(self) -> int:
        """How many tokens."""
        return len(self.said)

    @property
    def expected(self) -> float:
        """Tokens of the block as drafted so far."""
        return self.settled + self.bonus * self.all_kept

    @property
    def is_probe(self) -> bool:
        """Whether the next token is drafted to see what becomes of it."""
        return self.probing and not self.said

    @property
    def must_draft(self) -> bool:
        """Whether the next token is drafted whatever it is worth."""
        return (self.probing or not self.bonus) and not self.said

    def submit(self, log_odds: float, chance: float) -> None:
        """One token more."""
        self.said.append(log_odds)
        self.settled += self.all_kept
        self.all_kept *= chance

    def worth_if_kept(self, chances: Float) -> Float:
        """The most that it can be worth if one token more is submitted, by that token's chance, the best length chosen. [k]"""
        more = np.arange(min(self.room, LONGEST) - self.drafted)
        tokens = self.settled + self.all_kept + self.all_kept * chances[:, None] * self.further[more]
        cost = more * self.step + self.batch[self.drafted + 1 + more]
        worth: Float = (tokens - self.rate * cost).max(axis=1)
        return worth

    def best_tail(self, chances: Sequence[float]) -> tuple[int, float]:
        """How many guesses to submit if the draft ends here, and what the block is worth then. chances: of each guess in turn."""
        chances = chances[: self.room - self.drafted]
        if not chances or not self.bonus:
            return 0, float(self.expected - self.rate * self.batch[self.drafted])
        tokens = np.cumsum([self.expected, *(self.all_kept * np.cumprod(chances))])
        worth = tokens - self.rate * self.batch[self.drafted : self.drafted + len(tokens)]
        length = len(worth) - 1 - int(np.argmax(worth[::-1]))  # what costs nothing is taken
        return length, float(worth[length])
