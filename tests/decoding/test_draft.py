from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from toys import ToySession, certain, random_rows, writing

from speccascade_local.decoding.draft import propose
from speccascade_local.decoding.lengths import FixedLength
from speccascade_local.decoding.ngram import Guess, NgramIndex
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler
from speccascade_local.tokens.shaping import Penalties, Shaper


@given(st.integers(0, 6), st.integers(0, 4))
def test_the_drafter_reads_each_token_once_and_never_its_last_own(block_size, already_read):
    drafter = ToySession(random_rows(5, 1), 5)
    text = [1, 2, 3, 4, 0]
    if already_read:
        drafter.extend(text[:already_read], keep=1)
        drafter.calls.clear()
    draft = propose(drafter, writing(text), block_size)
    assert len(draft.token_ids) == block_size
    assert drafter.calls == ([5 - already_read] + [1] * (block_size - 1) if block_size else [])
    if block_size:
        assert drafter.tokens == text + draft.token_ids[:-1]


def test_the_rows_are_those_that_the_tokens_were_drawn_from_and_outlive_the_buffer():
    row = random_rows(5, 2)
    drafter = ToySession(row, 5)
    draft = propose(drafter, writing([3]), 4)
    expected = [row([3, *draft.token_ids[:i]]) for i in range(4)]
    np.testing.assert_allclose([row.logits[0] for row in draft.rows], expected, rtol=1e-6)


def test_a_draft_ends_at_an_end_of_text_token():
    drafter = ToySession(certain(lambda text: (text[-1] + 1) % 5, 5), 5)
    draft = propose(drafter, writing([0], 0, is_end=lambda token: token == 3), 10)
    assert draft.token_ids == [1, 2, 3]


def test_no_draft_leaves_the_drafter_untouched_and_has_no_rows():
    drafter = ToySession(random_rows(5, 2), 5)
    draft = propose(drafter, writing([1, 2]), 0)
    assert not draft.rows
    assert drafter.tokens == []


def test_drafted_tokens_follow_the_filtered_distribution():
    row, sampler = random_rows(6, 4), Sampler(temperature=0.8, top_k=4)
    rng = np.random.default_rng(3)
    counts = np.bincount([propose(ToySession(row, 6), writing([2], sampler, rng), 1).token_ids[0] for _ in range(4_000)], minlength=6)
    expected = 4_000 * sampler.probs(row([2]))
    assert not counts[expected == 0].any()
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-4


@given(st.integers(0, 6))
def test_looking_ahead_adds_the_row_that_follows_the_draft_and_changes_no_drafted_token(length):
    row = random_rows(5, 2)
    plain = propose(ToySession(row, 5), writing([3]), length)
    drafter = ToySession(row, 5)
    draft = propose(drafter, writing([3]), length, look_ahead=True)
    assert draft.token_ids == plain.token_ids
    assert drafter.tokens == [3, *draft.token_ids]
    assert drafter.calls == [1] * (length + 1)
    expected = [row([3, *draft.token_ids[:i]]) for i in range(length + 1)]
    np.testing.assert_allclose([row.logits[0] for row in draft.rows], expected, rtol=1e-6)


def test_what_was_read_for_a_draft_that_ended_before_it_began_is_forgotten():
    class Unsure(FixedLength):
        def count_reviewed(self, guess: Guess) -> int:
            return len(guess.token_ids)

        def wants_token(self, row: Rows) -> bool:
            return False

    text = [1, 2, 3, 1, 2]
    drafter = ToySession(certain(lambda seen: seen[-1] % 3 + 1, 5), 5)
    index = NgramIndex()
    index.begin(text)
    draft = propose(drafter, writing(text, 0), 4, lengths=Unsure(4), index=index)
    assert (draft.token_ids, len(draft.rows), draft.calls) == ([], 1, 1)
    assert drafter.calls[0] > len(text), "a guess was read with the text"
    assert drafter.tokens == text


def test_nothing_is_looked_for_behind_an_end_of_text():
    drafter = ToySession(certain(lambda text: (text[-1] + 1) % 5, 5), 5)
    draft = propose(drafter, writing([0], 0, is_end=lambda token: token == 3), 10, look_ahead=True)
    assert draft.token_ids == [1, 2, 3]
    assert len(draft.rows) == 3
    assert drafter.tokens == [0, 1, 2]


@given(st.integers(0, 5), st.booleans(), st.lists(st.integers(0, 4), max_size=3))
def test_each_row_is_shaped_by_the_reply_and_the_draft_before_it(length, look_ahead, reply):
    """And the raw row travels along, untouched."""
    row, shaper = random_rows(5, 2), Shaper(5, [0], Penalties({1: 2.0}, presence=1.0, frequency=0.5, repetition=1.5))
    generation = writing([0, *reply], 0, shaper=shaper, reply=reply)
    draft = propose(ToySession(row, 5), generation, length, look_ahead=look_ahead)
    raw = [row([0, *reply, *draft.token_ids[:i]]) for i in range(length + look_ahead)]
    shaped = [shaper.shape(np.float32(each), [*reply, *draft.token_ids[:i]]) for i, each in enumerate(raw)]
    assert len(draft.rows) == length + look_ahead
    for i in range(length + look_ahead):
        np.testing.assert_allclose(draft.rows[i].logits[0], raw[i], rtol=1e-6)
        np.testing.assert_array_equal(draft.rows[i].shaped[0], shaped[i])
    assert draft.token_ids == [int(np.argmax(each)) for each in shaped[:length]]
