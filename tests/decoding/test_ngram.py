from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.decoding.ngram import NgramIndex, NgramSession

texts = st.lists(st.integers(0, 3), max_size=40) | st.lists(st.integers(0, 3), max_size=20).map(lambda text: [*text, 1, *text])


def naive(text: list[int], length: int, longest: int, drafted: list[int]) -> tuple[list[int], int]:
    """The longest end of text and draft that is followed by something in the text, its latest place, copied on; how far both agree."""
    whole = text + drafted
    for n in range(min(longest, len(whole)), 0, -1):
        for place in range(len(text) - 1, n - 1, -1):
            if text[place - n : place] == whole[len(whole) - n :]:
                copied = list(whole)
                for i in range(length):
                    copied.append(copied[place + i])
                match = max(m for m in range(min(12, place) + 1) if text[place - m : place] == whole[len(whole) - m :])
                return copied[len(whole) :], match
    return [], 0


@given(text=texts, drafted=st.lists(st.integers(0, 3), max_size=5), length=st.integers(1, 12), longest=st.integers(1, 5))
def test_a_guess_is_what_a_search_through_the_whole_text_finds(text, drafted, length, longest):
    index = NgramIndex(longest)
    index.begin(text)
    assert index.guess(length, drafted) == naive(text, length, longest, drafted)


@given(texts, st.lists(st.tuples(st.integers(0, 40), texts), max_size=5))
def test_going_back_and_on_leaves_what_a_fresh_index_of_the_text_has(text, changes):
    index = NgramIndex(3)
    index.begin(text)
    for length, more in changes:
        text = text[:length] + more
        index.roll_back(length)
        index.append(more)
        fresh = NgramIndex(3)
        fresh.begin(text)
        assert len(index) == len(text)
        assert vars(index) == vars(fresh)


@given(texts, texts)
def test_another_text_takes_the_place_of_the_one_before(text, other):
    index, fresh = NgramIndex(3), NgramIndex(3)
    index.begin(text)
    index.begin(other)
    fresh.begin(other)
    assert vars(index) == vars(fresh)


def test_the_part_that_two_texts_share_is_not_entered_again(monkeypatch):
    index, entered = NgramIndex(), []
    index.begin([1, 2, 3, 4])
    monkeypatch.setattr(index, "append", entered.extend)
    index.begin([1, 2, 3, 5, 6])
    assert entered == [5, 6]


@given(texts.filter(bool), st.integers(1, 3))
def test_as_a_session_it_says_its_guess_and_nothing_else(text, keep):
    keep = min(keep, len(text))
    session = NgramSession(4, n_ctx=100)
    session.extend([0, 1, 2], keep=1)
    session.roll_back(0)
    rows = session.extend(text, keep)
    assert session.tokens == text
    for j in range(keep):
        guess, _ = naive(text[: len(text) - keep + 1 + j], 1, 6, [])
        expected = np.zeros(4) if not guess else np.where(np.arange(4) == guess[0], 0, -np.inf)
        np.testing.assert_array_equal(rows[j], expected)
