"""The controller of draft lengths, on toys: what it decides, and that nothing it decides changes what is written."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from exact import chain, courses
from hypothesis import example, given
from hypothesis import strategies as st
from loop_runs import run
from strategies import JUDGED_RULES
from toys import ToySession, always_accepts, certain, never_accepts, never_ends, random_rows, sometimes_accepts, writing

from speccascade_local.decoding.auto_length import AutoLength, BlockPlan
from speccascade_local.decoding.draft import propose
from speccascade_local.decoding.fidelity import Recording
from speccascade_local.decoding.history import AcceptanceHistory
from speccascade_local.decoding.lengths import LONGEST, FixedLength
from speccascade_local.decoding.loop import BlockLoop
from speccascade_local.decoding.ngram import NOTHING, Guess, NgramIndex, NgramSession
from speccascade_local.decoding.profile import SIZES, Profile, Speed
from speccascade_local.decoding.stats import Stats
from speccascade_local.machine.profile_cache import read_histories
from speccascade_local.rules.position_rules import Chow, Never, Strict
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Mask, Sampler
from speccascade_local.tokens.shaping import Penalties, Shaper


def speed(*steps: float) -> Speed:
    """A staircase: the seconds of a batch of n."""
    return Speed(1, 1, (0,), (tuple(float(steps[min(n, len(steps)) - 1]) for n in SIZES),), steps[-1] / SIZES[-1])


FLAT = Profile(speed(1.0), speed(0.01), 1.0, {})  # a batch costs what one token costs
LINEAR = Profile(Speed(1, 1, (0,), (tuple(float(n) for n in SIZES),), 1.0), speed(0.2), 1.0, {})  # nothing is gained by batches


class Whimsical(FixedLength):
    """Lengths from a script: what is decided is anything, as long as it does not come from a token that is then withheld."""

    def __init__(self, *script: int) -> None:
        super().__init__(0)
        self.script = itertools.cycle(script)

    def begin(self, room: int, depth: int, *, first: bool, bonus: bool = True) -> None:
        self._left = min(room, next(self.script))

    def wants_token(self, row: Rows) -> bool:
        return int(100 * row.plain.probs[0, 0]) % 3 > 0

    def count_guesses(self, guess: Guess) -> int:
        return next(self.script)

    def count_reviewed(self, guess: Guess) -> int:
        return next(self.script)


class Hasty(Whimsical):
    """Writes ahead whatever it costs."""

    def wants_token(self, row: Rows) -> bool:
        return True

    def count_ahead(self, submitted: int) -> int:
        return 2


class Together(Hasty):
    """Lets both models read the prompt at once, too."""

    def reads_beside(self, expert: int, drafter: int) -> bool:
        return True


class Wavering(Hasty):
    """Looks at a row, and stops there now and then."""

    wants_token = Whimsical.wants_token


def ways_to_draft() -> dict[str, dict]:
    """Keyword arguments of decode, made anew for each run because index and experience grow."""
    index = NgramIndex()
    cheap = Profile(speed(1.0), speed(0.3, 0.31, 0.32), 1.0, {})
    return {
        "automatic": {"lengths": AutoLength(FLAT, AcceptanceHistory())},
        "automatic, with an index": {"lengths": AutoLength(cheap, AcceptanceHistory()), "index": index},
        "anything": {"lengths": Whimsical(2, 0, 1, 3, 1)},
        "anything, with an index": {"lengths": Whimsical(2, 1, 3, 0, 2, 2), "index": index},
        "written ahead": {"lengths": Hasty(1)},  # the third token stands where the second block goes on with what was written
        "written ahead, any length": {"lengths": Hasty(2, 1, 3, 0)},
        "written ahead, unless unsure": {"lengths": Wavering(2)},
        "written ahead of reviews": {"lengths": Hasty(1, 2), "index": index},
        "read together": {"lengths": Together(2)},
        "guesses alone": {"lengths": AutoLength(FLAT, AcceptanceHistory(), has_drafter=False), "index": index},
    }


@pytest.mark.parametrize("way", ways_to_draft())
def test_summed_over_every_course_of_events_a_strict_text_has_exactly_the_experts_probability(way):
    rows = [session.row_of for session in sometimes_accepts(3)]
    found = Counter()
    prompt = [0, 1, 0]  # something that an index can copy on
    for chance, (text, _, _) in courses(
        lambda rng: run(sometimes_accepts(3), Strict(), prompt=prompt, rng=rng, block_size=3, max_tokens=3, **ways_to_draft()[way])
    ):
        found[tuple(text)] += chance
    for path in itertools.product(range(3), repeat=3):
        assert found[path] == pytest.approx(chain(Strict(), *rows, Sampler(), path, prompt=prompt), abs=1e-9)


@pytest.mark.parametrize("rule", JUDGED_RULES, ids=str)
@pytest.mark.parametrize("way", ["anything", "anything, with an index"])
def test_whatever_comes_after_it_a_drafted_token_has_exactly_the_rules_target(rule, way):
    """The first token is always drafted; how the drafter came to it, and how long the block becomes, must not matter."""
    rows = [session.row_of for session in sometimes_accepts(3)]
    found = Counter()
    prompt = [0, 1, 0]

    def course(rng):
        settings = ways_to_draft()[way]
        settings["lengths"].wants_token = lambda row: True
        return run(sometimes_accepts(3), rule, prompt=prompt, rng=rng, block_size=2, max_tokens=2, **settings)

    for chance, (text, blocks, _) in courses(course):
        assert blocks[0].draft.token_ids
        found[text[0]] += chance
    for token in range(3):
        assert found[token] == pytest.approx(chain(rule, *rows, Sampler(), [token], prompt=prompt), abs=1e-9)


@pytest.mark.parametrize("make", [always_accepts, never_accepts, sometimes_accepts])
@given(script=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), with_index=st.booleans())
def test_at_temperature_zero_strict_writes_the_experts_text_whatever_the_lengths_and_both_caches_stay_true(make, script, with_index):
    alone = run(make(), Strict(), temperature=0, block_size=0, max_tokens=25)[0]
    drafter, expert = make()
    index = NgramIndex() if with_index else None
    text, blocks, stats = run(
        (drafter, expert), Strict(), temperature=0, block_size=5, max_tokens=25, lengths=Whimsical(*script), index=index
    )
    assert text == alone
    whole = [1, 2, *text]
    for session in (drafter, expert):
        assert session.tokens == whole[: len(session.tokens)]
    assert len(expert.tokens) == len(whole) - 1
    assert stats.drafted == sum(len(block.draft.submitted) for block in blocks)
    assert stats.guessed == sum(len(block.draft.guesses) for block in blocks)
    assert stats.accepted == sum(origin in ("accepted", "matched") for block in blocks for origin in block.verdict.origins)


def test_what_repeats_itself_is_guessed_and_every_guess_that_is_right_saves_an_expert_call():
    loop = certain(lambda text: (text[-1] + 1) % 5, 7)
    drafter, expert = ToySession(loop, 7), ToySession(loop, 7)
    lengths = AutoLength(FLAT, AcceptanceHistory(), has_drafter=False)
    text, _, stats = run(
        (drafter, expert), Strict(), prompt=[0, 1, 2, 3, 4] * 2, block_size=LONGEST, max_tokens=40, lengths=lengths, index=NgramIndex()
    )
    assert text == [0, 1, 2, 3, 4] * 8
    assert stats.drafter_calls == 0
    assert stats.guessed == stats.accepted >= 36
    assert stats.expert_calls <= 4


def test_a_drafter_that_reviews_right_guesses_is_called_once_for_many_tokens():
    loop = certain(lambda text: (text[-1] + 1) % 5, 7)
    drafter, expert = ToySession(loop, 7), ToySession(loop, 7)
    _, blocks, stats = run(
        (drafter, expert), Strict(), prompt=[0, 1, 2, 3, 4] * 2, block_size=8, max_tokens=30,
        lengths=Reviewing(8), index=NgramIndex(),
    )  # fmt: skip
    assert [len(block.draft.token_ids) for block in blocks[:3]] == [8, 8, 8]
    assert stats.drafter_calls == len(blocks)


@given(length=st.integers(1, 4), seed=st.integers(0, 9))
def test_a_drafter_that_reviewed_further_than_the_draft_holds_nothing_that_was_not_submitted(length, seed):
    class Short(Reviewing):
        def wants_token(self, row: Rows) -> bool:
            self.rows_left -= 1
            return self.rows_left >= 0

    lengths, text, index = Short(LONGEST), [0, 1, 2, 3, 4] * 2, NgramIndex()
    lengths.rows_left = length
    index.begin(text)
    drafter = ToySession(certain(lambda text: (text[-1] + 1) % 5, 7), 7)
    draft = propose(drafter, writing(text, rng=seed), LONGEST, lengths=lengths, index=index)
    assert len(draft.token_ids) == length
    assert drafter.tokens == [*text, *draft.token_ids]


class Guessing(FixedLength):
    """Drafts of a fixed length, and all guesses that there are behind them. Notes what it is told."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.told: list[tuple[int, ...]] = []

    def count_guesses(self, guess: Guess) -> int:
        return len(guess.token_ids)

    def learn(self, tested: int, kept: int, guessed: int, right: int, tokens: int) -> None:
        self.told.append((tested, kept, guessed, right, tokens))


def counting(n_vocab: int = 7) -> tuple[ToySession, ToySession]:
    """Two models that count on, and begin again after 4."""
    return tuple(ToySession(certain(lambda text: (text[-1] + 1) % 5, n_vocab), n_vocab) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("length", [0, 1, 3])
def test_guesses_go_on_behind_the_draft_and_the_length_policy_learns_both(length):
    lengths = Guessing(length)
    more = {"block_size": 4, "max_tokens": 12, "temperature": 0, "index": NgramIndex()}
    text, blocks, stats = run(counting(), Strict(), prompt=[0, 1, 2, 3, 4, 0, 1], lengths=lengths, **more)
    assert text == [2, 3, 4, 0, 1] * 2 + [2, 3]
    (block,) = blocks
    guessed = 11 - length  # of 12 the last one is the expert's own
    assert block.draft.submitted == text[:-1]
    assert len(block.draft.guesses) == stats.guessed == guessed
    assert lengths.told == [(length, length, guessed, guessed, 12)]


@pytest.mark.parametrize(("length", "guessed"), [(0, [2, 3]), (1, [3]), (2, [])])
def test_nothing_is_guessed_behind_an_end_of_text_whether_it_was_drafted_or_guessed(length, guessed):
    text, (block,), _ = run(
        counting(), Strict(), prompt=[0, 1, 2, 3, 4, 0, 1], end=3, temperature=0, lengths=Guessing(length), index=NgramIndex()
    )
    assert text == [2, 3]
    assert block.draft.guesses == guessed
    assert block.draft.submitted == [2, 3]


def test_where_a_drafted_token_takes_the_place_of_the_bonus_nothing_is_guessed_behind_it():
    more = {"bonus": "cascade", "index": NgramIndex(), "lengths": Guessing(2), "temperature": 0}
    text, blocks, stats = run(counting(), Strict(), prompt=[0, 1, 2, 3, 4, 0, 1], block_size=4, **more)
    assert text[:5] == [2, 3, 4, 0, 1]
    assert stats.guessed == 0
    assert all(len(block.verdict.token_ids) <= 2 for block in blocks)


@given(seed=st.integers(0, 20), temperature=st.sampled_from([0.0, 1.0]))
def test_what_the_drafter_reviews_is_penalised_as_what_it_writes(seed, temperature):
    """An index changes nothing in what the drafter drafts at temperature 0."""
    shaper = Shaper(5, [1, 2], Penalties({1: 1.0}, presence=1.5, frequency=0.5, repetition=1.3))
    row, index = random_rows(5, seed), NgramIndex()
    index.begin([1, 2])
    drafts = [
        propose(ToySession(row, 5), writing([1, 2], temperature, seed, shaper=shaper), 6, lengths=Reviewing(6), index=each)
        for each in (None, index)
    ]
    for draft in drafts:
        for j, each in enumerate(draft.rows):
            expected = shaper.shape(np.float32(row([1, 2, *draft.token_ids[:j]])), draft.token_ids[:j])
            np.testing.assert_array_equal(each.shaped[0], expected)
    assert temperature or drafts[0].token_ids == drafts[1].token_ids


class Reviewing(FixedLength):
    def count_reviewed(self, guess: Guess) -> int:
        return len(guess.token_ids)


def test_what_was_written_ahead_is_not_written_again_and_a_seed_repeats_it():
    def texts():
        drafter, expert = always_accepts(n_ctx=300)
        text, blocks, stats = run((drafter, expert), Strict(), temperature=1, block_size=3, max_tokens=100, lengths=Hasty(3), seed=5)
        assert stats.drafter_calls == len(drafter.calls)
        return text, [block.draft.token_ids for block in blocks], drafter.calls

    first = texts()
    assert first == texts()
    _, drafts, evaluated = first
    assert sum(evaluated) < 2 * sum(map(len, drafts)), "what was hoped for came about, and was used"


def test_what_was_written_ahead_and_kept_is_read_once_and_nothing_of_it_is_left_behind_the_end():
    emitted = itertools.count(1)
    at_a_bonus = {"stops": lambda token: next(emitted) == 8}  # the last of the second block of three and one
    for ending in ({}, {"end": 6}, at_a_bonus):
        drafter, expert = always_accepts(n_ctx=300)
        text, *_ = run((drafter, expert), Strict(), prompt=[1, 2], temperature=0, block_size=3, max_tokens=41, lengths=Hasty(3), **ending)
        whole = [1, 2, *text]
        assert len(whole) - 1 <= sum(drafter.calls) <= len(whole) + 2, "but for what nobody waited for at the end"
        for session in (drafter, expert):
            assert session.tokens == whole[: len(session.tokens)]
            assert len(session.tokens) < len(whole)


def test_the_drafter_writes_ahead_in_a_thread_of_its_own_and_never_further_than_the_reply_may_go():
    drafter, expert = always_accepts()
    threads, longest, told = set(), 0, []
    row_of = drafter.row_of

    def noted(text: Sequence[int]) -> np.ndarray:
        nonlocal longest
        threads.add(threading.current_thread().name.split("_")[0])
        longest = max(longest, len(text))
        return row_of(text)

    class Far(Hasty):
        def count_ahead(self, submitted: int) -> int:
            told.append(submitted)
            return 50

    drafter.row_of = noted
    text, blocks, _ = run((drafter, expert), Strict(), prompt=[1, 2], temperature=0, block_size=3, max_tokens=12, lengths=Far(3))
    assert threads == {"MainThread", "drafter"}
    assert longest <= len(text) + 1, "the last token of a reply is read by nobody"
    assert told == [len(block.draft.token_ids) for block in blocks]


class OneAtATime:
    """A grammar that allows everything and takes its time; two threads in it at once would confuse it."""

    def __init__(self) -> None:
        self.busy = threading.Lock()

    def allowed(self, reply: Sequence[int]) -> Mask:
        assert self.busy.acquire(blocking=False), "two threads at once"
        time.sleep(0.001)
        self.busy.release()
        return np.ones(7, dtype=bool)


def test_the_writing_ahead_and_the_loop_never_use_the_grammar_at_once():
    drafter, expert = always_accepts()
    generation = writing([1, 2], shaper=Shaper(7, grammar=OneAtATime()))
    more = {"block_size": 4, "max_tokens": 20, "stops": never_ends, "stats": Stats()}
    blocks = list(BlockLoop(generation, drafter, expert, rule=Strict(), lengths=Hasty(4), **more).decode())
    assert sum(len(block.verdict.token_ids) for block in blocks) == 20


def test_the_drafter_writes_ahead_only_where_the_models_do_not_hinder_each_other():
    for overlap, expected in ((0.0, True), (1.0, False)):
        profile = Profile(FLAT.expert, FLAT.drafter, overlap, {})
        lengths = AutoLength(profile, AcceptanceHistory())
        lengths.begin(5, 10, first=False)
        assert (lengths.count_ahead(3) > 0) is expected


def test_both_models_read_the_prompt_at_once_each_token_once():
    drafter, expert = always_accepts()
    prompt = [0, 1, 2, 3, 0, 1]
    text, blocks, stats = run((drafter, expert), Strict(), prompt=prompt, temperature=0, block_size=3, max_tokens=9, lengths=Together(3))
    assert text == run(always_accepts(), Strict(), prompt=prompt, temperature=0, block_size=3, max_tokens=9)[0]
    assert expert.calls[:2] == [5, 4], "all but the last token of the prompt, then that and the draft"
    assert stats.expert_calls == len(expert.calls) == len(blocks) + 1


def test_whether_both_read_at_once_is_decided_from_what_each_has_not_read_and_never_without_an_expert():
    asked: list[tuple[int, int]] = []

    class Asked(FixedLength):
        def reads_beside(self, expert: int, drafter: int) -> bool:
            asked.append((expert, drafter))
            return True

    drafter, expert = always_accepts()
    drafter.extend([0, 1], keep=1)
    expert.extend([0], keep=1)
    run((drafter, expert), Strict(), prompt=[0, 1, 2, 3, 4], block_size=3, max_tokens=4, lengths=Asked(3))
    assert asked == [(3, 3)], "the expert leaves the last token of the text for the batch with the draft"
    drafter, expert = always_accepts()
    run((drafter, expert), Never(), prompt=[0, 1, 2], block_size=3, max_tokens=4, lengths=Asked(3))
    assert not expert.calls


def test_what_goes_wrong_while_both_read_is_not_lost(monkeypatch):
    drafter, expert = always_accepts(n_ctx=300)

    def fail_once(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError("no room")

    monkeypatch.setattr(expert, "extend", fail_once)
    with pytest.raises(MemoryError, match="no room"):
        run((drafter, expert), Strict(), prompt=[0, 1, 2], block_size=3, max_tokens=9, lengths=Together(3))


def test_both_read_the_prompt_at_once_only_where_that_hides_more_than_a_batch_of_its_own_costs():
    def decided(expert: Speed, overlap: float, unread: int) -> bool:
        return AutoLength(Profile(expert, speed(0.5), overlap, {}), AcceptanceHistory()).reads_beside(500, unread)

    flat = speed(1.0)
    assert decided(flat, 0.0, 500)
    assert not decided(flat, 1.0, 500), "the models hinder each other"
    assert not decided(flat, 0.0, 0), "the drafter has read it"
    dear = Speed(1, 1, (0,), ((100.0,) * 17,), 1.0)
    assert not decided(dear, 0.0, 500), "the draft in a batch of its own takes 83 seconds more, the drafter 15"


def test_behind_a_prompt_a_draft_costs_what_a_prompt_costs():
    dear = Speed(1, 1, (0,), ((1.0,) + (9.0,) * 16,), 0.1)  # batches do not pay, but in a prompt each token takes a tenth
    for first in (False, True):
        lengths = AutoLength(Profile(dear, speed(0.01), 1.0, {}), AcceptanceHistory())
        lengths.begin(5, 60, first=first)
        assert lengths.wants_row(NOTHING) is first


def test_a_reply_whose_first_draft_fails_is_drafted_less_than_another():
    def drafts(*past: int) -> bool:
        seen, row = AcceptanceHistory(), Rows.of(np.array([[2.0, 0.0]], np.float32))
        seen.outcomes.extend((2.0, i % 10 > 0) for i in range(250))  # such tokens are kept 9 times of 10
        seen.fit()
        lengths = AutoLength(Profile(speed(1.0, 1.7), speed(0.01), 1.0, {}), seen)
        for kept in (*past, 1):
            lengths.begin(1, 10, first=False)
            drafted = lengths.wants_row(NOTHING) and lengths.wants_token(row)
            lengths.learn(int(drafted), kept, 0, 0, 1)
        return drafted

    assert drafts()
    assert not drafts(0)
    assert drafts(*[1] * 20, 0), "one that did well so far is not given up"


def test_a_length_policy_sees_what_the_index_would_copy_after_the_draft_and_whether_the_reply_begins():
    told: list[tuple[bool, list[list[int]]]] = []

    class Noting(FixedLength):
        def begin(self, room: int, depth: int, *, first: bool, bonus: bool = True) -> None:
            super().begin(room, depth, first=first)
            told.append((first, []))

        def wants_row(self, guess: Guess) -> bool:
            told[-1][1].append(guess.token_ids[:2])
            return super().wants_row(guess)

    drafter = ToySession(certain(lambda text: (text[-1] + 1) % 7, 7), 7)
    index = NgramIndex()
    index.begin([1, 2, 3, 4, 5, 6, 0, 1, 2])
    for reply in ([], [2]):
        propose(drafter, writing([1, 2, 3, 4, 5, 6, 0, 1, 2], 0, reply=reply), 3, lengths=Noting(3), index=index)
        drafter.roll_back(8)
    copied = [[3, 4], [4, 5], [5, 6]]
    assert told == [(True, copied), (False, copied)]


def test_rows_that_a_review_has_computed_are_not_paid_for_twice():
    profile = Profile(speed(10.0), LINEAR.expert, 1.0, {})  # a batch of n takes the drafter n seconds
    seen = AcceptanceHistory()
    lengths = AutoLength(profile, seen)
    lengths.begin(LONGEST, 10, first=False)
    row = Rows.of(np.array([[0.0, -20.0]], np.float32))
    for i in range(5):
        assert lengths.wants_row(NOTHING)
        if i == 0:
            lengths.learn_review(Guess([0] * 4, 3), 4)
        assert lengths.wants_token(row)
    assert lengths.count_guesses(NOTHING) == 0
    lengths.learn(5, 5, 0, 0, 6)
    assert seen.seconds == pytest.approx(5 + 10), "a batch of five in the drafter, one batch in the expert"


def test_an_account_lets_the_drafter_read_more_and_changes_no_length():
    def lengths(wanted):
        lengths = AutoLength(
            Profile(speed(1.0), speed(0.01, 1.2), 1.0, {}), AcceptanceHistory()
        )  # reading two tokens is dear for the drafter
        _, blocks, _ = run(sometimes_accepts(), Strict(), block_size=LONGEST, max_tokens=50, lengths=lengths, recording=wanted, seed=2)
        return [len(block.draft.token_ids) for block in blocks]

    plain = lengths(None)
    assert lengths(Recording(0, models=True)) == plain
    assert all(plain[:6]), "after a dropped draft there is one token to read, and that is cheap"


def test_leaving_a_stream_half_way_waits_for_the_drafter():
    drafter, expert = always_accepts(n_ctx=300)
    tokens = [1, 2]
    more = {"block_size": 3, "max_tokens": 50, "stops": never_ends, "stats": Stats()}
    blocks = BlockLoop(writing(tokens, 0), drafter, expert, rule=Strict(), lengths=Hasty(3), **more).decode()
    next(blocks)
    next(blocks)
    blocks.close()
    before = list(drafter.tokens)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("drafter")]
    assert drafter.tokens == before


# --------------------------------------------------------------------------- what it decides


def drafted_of(pair, profile, experience=None, max_tokens=60, **settings):
    lengths = AutoLength(profile, experience or AcceptanceHistory())
    return run(pair, Strict(), block_size=LONGEST, max_tokens=max_tokens, lengths=lengths, **settings)


def test_long_drafts_where_batches_are_free_and_all_is_kept():
    _, blocks, stats = drafted_of(always_accepts(n_ctx=200), FLAT, max_tokens=150, temperature=0)
    assert stats.accepted == stats.drafted
    assert max(len(block.draft.token_ids) for block in blocks) == LONGEST


def test_a_hopeless_drafter_is_soon_not_asked_any_more_and_tried_again_now_and_then():
    experience = AcceptanceHistory()
    drafter, expert = never_accepts(n_ctx=5000)
    profile = Profile(speed(1.0, 2.5, 3.0, 3.3, 3.5), speed(0.06), 1.0, {})
    _, blocks, stats = drafted_of((drafter, expert), profile, experience, 4000, temperature=0)
    assert stats.drafter_calls < 100, "not even a look"
    drafts = [at for at, block in enumerate(blocks) if block.draft.token_ids]
    assert len(drafts) < 40
    assert len([at for at in drafts if at > 1000]) >= 3, "it must notice when drafts become good"
    gaps = np.diff(drafts)
    assert gaps.max() >= 256


def test_where_batches_gain_nothing_nothing_is_drafted_in_the_long_run():
    _, blocks, _ = drafted_of(sometimes_accepts(n_ctx=600), LINEAR, max_tokens=500)
    assert sum(len(block.draft.token_ids) for block in blocks[-100:]) <= 10


def test_a_length_is_filled_up_to_the_edge_of_a_step():
    """Batches of 2 to 4 cost the same: where one token pays, three do."""
    steps = Profile(speed(1.0, 1.4, 1.4, 1.4, 9.0), speed(0.01), 1.0, {})
    _, blocks, _ = drafted_of(always_accepts(n_ctx=200), steps, max_tokens=100, temperature=0)
    assert {len(block.draft.token_ids) for block in blocks[5:-1]} == {3}


def test_learning_that_drafts_became_good_again():
    experience = AcceptanceHistory()
    profile = Profile(speed(1.0, 1.5, 1.6, 1.7), speed(0.05), 1.0, {})
    drafted_of(never_accepts(n_ctx=400), profile, experience, 300, temperature=0)
    _, blocks, _ = drafted_of(always_accepts(n_ctx=2000), profile, experience, 1500, temperature=0)
    assert np.mean([len(block.draft.token_ids) for block in blocks[-20:]]) > 2


@given(st.lists(st.tuples(st.floats(-12, 12), st.booleans()), min_size=1, max_size=300))
def test_the_fitted_chance_never_falls_as_the_drafter_becomes_surer(outcomes):
    experience = AcceptanceHistory()
    experience.outcomes.extend(outcomes)
    experience.fit()
    chances = experience.chance(np.linspace(-12, 12, 30))
    assert np.all((chances >= 0) & (chances <= 1))
    assert np.all(np.diff(chances) >= 0)


@given(st.lists(st.tuples(st.sampled_from([-12.0, -3.0, 0.0, 3.0, 5.0, 12.0]), st.booleans()), min_size=1, max_size=60))
@example([(12.0, True)] * 3 + [(5.0, False)])
@example([(3.0, True), (3.0, False)] * 20)
def test_outcomes_that_stay_the_same_give_a_fit_that_stays_the_same(outcomes):
    experience, curves = AcceptanceHistory(), []
    experience.outcomes.extend(outcomes)
    for _ in range(6):
        experience.fit()
        curves.append(experience.curve)
    assert curves[-1] == pytest.approx(curves[-2], abs=0.02)


def test_the_fit_finds_the_odds_that_outcomes_follow():
    rng, experience = np.random.default_rng(0), AcceptanceHistory()
    for _ in range(20):
        x = rng.normal(0, 3, 256)
        experience.outcomes.extend(zip(x, rng.random(256) < 1 / (1 + np.exp(1 - 0.6 * x))))
        experience.fit()
    assert experience.curve == pytest.approx((-1, 0.6), abs=0.35)


# --------------------------------------------------------------------------- what it keeps


def test_what_was_learnt_survives_json_and_goes_on_as_if_nothing_had_happened():
    experience = AcceptanceHistory()
    drafted_of(sometimes_accepts(n_ctx=200), FLAT, experience, 100, index=NgramIndex())
    again = read_histories(json.loads(json.dumps({"strict": experience.as_dict()})))["strict"]
    assert again == experience
    first, second = (drafted_of(sometimes_accepts(n_ctx=200), FLAT, each, 100)[0] for each in (experience, again))
    assert first == second


def test_no_guess_costs_and_brings_nothing():
    lengths = AutoLength(FLAT, AcceptanceHistory(), has_drafter=False)
    lengths.begin(5, 10, first=False)
    assert not lengths.wants_row(NOTHING)
    assert lengths.count_guesses(NOTHING) == 0


def test_under_a_lossy_rule_lengths_decide_which_tokens_are_the_drafters():
    """By the profiles of two machines, at temperature 0, where the rule keeps every draft."""
    texts, shares = [], []
    for profile in (FLAT, HOPELESS):
        lengths = AutoLength(profile, AcceptanceHistory())
        text, blocks, _ = run(sometimes_accepts(n_ctx=400), Chow(1), block_size=LONGEST, max_tokens=300, temperature=0, lengths=lengths)
        texts.append(text)
        shares.append(sum(origin == "accepted" for block in blocks for origin in block.verdict.origins) / len(text))
    assert texts[0] != texts[1]
    assert shares[0] > 0.8
    assert shares[1] < 0.2


# --------------------------------------------------------------------------- without a bonus token

HOPELESS = Profile(speed(1.0, 2.0, 3.0, 4.0, 5.0), speed(5.0), 1.0, {})  # no draft ever pays
DRAFTED = {"accepted", "matched", "corrected"}


def lengths_without_a_bonus() -> dict[str, dict]:
    """As ``ways_to_draft``: automatic lengths where drafts pay, where they never do, and what helps to make them."""
    cheap = Profile(speed(1.0), speed(0.3, 0.31, 0.32), 1.0, {})
    return {
        "free drafts": {"lengths": AutoLength(FLAT, AcceptanceHistory())},
        "dear drafts": {"lengths": AutoLength(HOPELESS, AcceptanceHistory())},
        "an index that guesses": {"lengths": AutoLength(cheap, AcceptanceHistory()), "index": NgramIndex()},
    }


@pytest.mark.parametrize("rule", JUDGED_RULES, ids=str)
@pytest.mark.parametrize("way", lengths_without_a_bonus())
def test_without_a_bonus_a_text_has_exactly_the_product_of_the_rules_targets_under_automatic_lengths(rule, way):
    rows = [session.row_of for session in sometimes_accepts(3)]
    found = Counter()
    prompt = [0, 1, 0]
    for chance, (text, _, _) in courses(
        lambda rng: run(
            sometimes_accepts(3),
            rule,
            prompt=prompt,
            rng=rng,
            block_size=LONGEST,
            max_tokens=2,
            bonus="cascade",
            **lengths_without_a_bonus()[way],
        )
    ):
        found[tuple(text)] += chance
    for path in itertools.product(range(3), repeat=2):
        assert found[path] == pytest.approx(chain(rule, *rows, Sampler(), path, prompt=prompt), abs=1e-9)


@pytest.mark.parametrize("make", [always_accepts, never_accepts, sometimes_accepts])
@given(
    way=st.sampled_from(list(lengths_without_a_bonus())),
    max_tokens=st.integers(1, 30),
    n_ctx=st.integers(2, 24),
    end=st.sampled_from([None, 0, 4]),
    verification=st.sampled_from(["token", "block"]),
    seed=st.integers(0, 9),
)
def test_without_a_bonus_no_token_is_the_experts_own_wherever_the_text_ends(make, way, max_tokens, n_ctx, end, verification, seed):
    settings = lengths_without_a_bonus()[way]
    text, blocks, _ = run(
        make(n_ctx=n_ctx),
        TokenV3(0.4),
        block_size=LONGEST,
        max_tokens=max_tokens,
        end=end,
        seed=seed,
        verification=verification,
        bonus="cascade",
        **settings,
    )
    assert all(block.draft.token_ids for block in blocks)
    assert {origin for block in blocks for origin in block.verdict.origins} <= DRAFTED
    whole = min(max_tokens, n_ctx + 1 - 2)
    assert len(text) == (text.index(end) + 1 if end in text else whole)


def test_without_a_bonus_an_index_in_place_of_a_drafter_drafts_too():
    _, expert = sometimes_accepts()
    _, blocks, _ = run(
        (NgramSession(7, 64), expert), Chow(0.5), block_size=LONGEST, bonus="cascade", lengths=AutoLength(HOPELESS, AcceptanceHistory())
    )
    assert {origin for block in blocks for origin in block.verdict.origins} <= DRAFTED


def test_without_a_bonus_a_hopeless_drafter_writes_one_token_a_block_and_a_good_cheap_one_as_many_as_there_may_be():
    for pair, profile, length in ((sometimes_accepts(n_ctx=600), HOPELESS, 1), (always_accepts(n_ctx=600), FLAT, LONGEST)):
        lengths = AutoLength(profile, AcceptanceHistory())
        _, blocks, _ = run(pair, Strict(), block_size=LONGEST, max_tokens=300, bonus="cascade", lengths=lengths)
        assert {len(block.draft.token_ids) for block in blocks[10:-1]} == {length}


def test_without_a_bonus_a_length_is_filled_up_to_the_edge_of_a_step():
    """Batches of 2 to 4 cost the same, and of a draft the expert reads all but the last token: where two pay, four do."""
    steps = Profile(speed(1.0, 1.4, 1.4, 1.4, 9.0), speed(0.01), 1.0, {})
    lengths = AutoLength(steps, AcceptanceHistory())
    _, blocks, _ = run(
        always_accepts(n_ctx=200), Strict(), temperature=0, block_size=LONGEST, max_tokens=100, bonus="cascade", lengths=lengths
    )
    assert {len(block.draft.token_ids) for block in blocks[5:-1]} == {4}


@given(st.lists(st.floats(0.01, 1), max_size=6), st.integers(0, 6), st.floats(0.01, 1), st.booleans())
def test_what_a_block_is_worth_is_the_tokens_that_it_emits_less_its_cost(drafted, more, usual, bonus):
    """By the definition, place by place, for the one length that there is room for."""
    room = len(drafted) + 1 + more
    batch = np.arange(1.0, 60.0)
    batch[:room] = 1e6  # so that the longest is the best
    block = BlockPlan(batch, 0.25, 0.25, 0.5, room, np.array([usual]), probing=False, bonus=bonus)
    for chance in drafted:
        block.submit(0.0, chance)
    chances = [*drafted, 0.3, *[usual] * more]
    kept = np.cumprod([1.0, *chances])
    emitted = kept[: room + bonus].sum()  # a place emits a token if all before it are kept, and the bonus has a place of its own
    assert block.worth_with(np.array([0.3]))[0] == pytest.approx(emitted - 0.5 * (more * 0.25 + batch[room]))
