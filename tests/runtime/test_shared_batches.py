"""Replies that read together: the rows are whose they are, a failure is its owner's alone, and what is cheaper apart stays apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_contexts import ToyContext
from toys import random_rows

from speccascade_local.common.errors import PromptError, SessionError
from speccascade_local.runtime.shared_batches import MOST_PASSED, PIECE, Participant, SharedBatches, SharedSession, group_parts

N_VOCAB = 12
PATIENCE_S = 30


def flat(_n: int) -> float:
    return 1.0


def steep(n: int) -> float:
    return float(n * n)


def context_of(seed: int = 0, timelines: int = 4) -> ToyContext:
    return ToyContext(random_rows(N_VOCAB, seed), None, n_vocab=N_VOCAB, timelines=timelines)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def read_at_once(context: ToyContext, texts: list[list[int]], seconds: Callable[[int], float] = flat) -> list:
    """Rows, or what was raised, of sessions which all come while the context is busy with another one."""
    gathering = SharedBatches({context: seconds})
    sessions = [SharedSession(context, gathering, Participant()) for _ in range(len(texts) + 1)]
    context.leave.clear()
    with ThreadPoolExecutor(len(sessions)) as pool:
        first = pool.submit(sessions[0].extend, [1], 1)
        assert context.entered.wait(PATIENCE_S)
        reading = []
        for n, (session, text) in enumerate(zip(sessions[1:], texts), start=1):
            reading.append(pool.submit(session.extend, text, 1))
            until(lambda n=n: len(gathering._waiting()) == n)
        context.leave.set()
        first.result()
        return [each.exception() or each.result() for each in reading]


def test_who_waits_is_read_in_one_batch_and_each_gets_their_own_rows() -> None:
    context, texts = context_of(), [[1, 2], [3], [4, 5, 6]]
    found = read_at_once(context, texts)
    assert context.batches == [[1], [2, 1, 3]]
    for rows, text in zip(found, texts):
        np.testing.assert_array_equal(rows, np.float32([context.row_of(text)]))


def test_what_is_cheaper_apart_is_read_apart_in_the_order_it_came() -> None:
    context = context_of()
    read_at_once(context, [[1, 2], [3], [4, 5, 6]], steep)
    assert context.batches == [[1], [2], [1], [3]]


def test_a_part_that_is_refused_hurts_no_other() -> None:
    context, texts = context_of(), [[1, 2], [N_VOCAB], [4]]
    one, refused, other = read_at_once(context, texts)
    assert isinstance(refused, PromptError)
    for rows, text in ((one, texts[0]), (other, texts[2])):
        np.testing.assert_array_equal(rows, np.float32([context.row_of(text)]))


def test_an_interruption_is_its_own_threads_and_the_others_get_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    context, texts = context_of(), [[1, 2], [3], [4, 5, 6]]
    real, waiting = context.evaluate, iter([True])

    def interrupted(parts: list) -> list:
        rows = real(parts)
        if len(parts) == 3 and next(waiting, False):
            raise KeyboardInterrupt  # the texts have grown, and nobody has the rows
        return rows

    monkeypatch.setattr(context, "evaluate", interrupted)
    found = read_at_once(context, texts)
    assert sum(isinstance(rows, KeyboardInterrupt) for rows in found) == 1
    for rows, text in zip(found, texts):
        if not isinstance(rows, KeyboardInterrupt):
            np.testing.assert_array_equal(rows, np.float32([context.row_of(text)]))


@pytest.mark.slow
def test_the_cheaper_model_goes_first_but_not_for_ever() -> None:
    drafter, expert = context_of(1), context_of(2)
    gathering = SharedBatches({drafter: flat, expert: flat})
    seats = [Participant(), Participant()]
    drafting, judging = SharedSession(drafter, gathering, seats[0]), SharedSession(expert, gathering, seats[1])
    drafter.leave.clear()
    with ThreadPoolExecutor(2) as pool, gathering.join_as(seats[0]), gathering.join_as(seats[1]):
        writing = pool.submit(lambda: [drafting.extend([1], 1) for _ in range(4 * MOST_PASSED)])
        until(lambda: bool(gathering._requests))
        done_after = pool.submit(lambda: (judging.extend([1], 1), len(drafter.batches))[1])
        drafter.leave.set()
        assert done_after.result(PATIENCE_S) <= MOST_PASSED + 2
        writing.result(PATIENCE_S)


def test_a_long_text_is_read_in_pieces_and_can_be_ended_between_them() -> None:
    context, seat = context_of(), Participant()
    session = SharedSession(context, SharedBatches({context: flat}), seat)
    text = [n % N_VOCAB for n in range(3 * PIECE + 7)]
    rows = session.extend(text, 4)
    np.testing.assert_array_equal(rows, np.float32([context.row_of(text[: len(text) - 3 + n]) for n in range(4)]))
    assert max(size for batch in context.batches for size in batch) == PIECE
    session.roll_back(5)
    seat.stopped = lambda: True
    with pytest.raises(SessionError, match="caller has given up"):
        session.extend(text[5:], 1)
    assert session.tokens == text[:5]


steps = st.lists(st.floats(0.01, 5), min_size=40, max_size=40)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), steps)
def test_groups_cost_no_more_than_all_together_or_one_by_one(sizes: list[int], costs: list[float]) -> None:
    def seconds(n: int) -> float:
        return costs[n]

    groups = group_parts(sizes, seconds)
    assert sorted(at for group in groups for at in group) == list(range(len(sizes)))
    assert groups[0][0] == 0, "who came first is not left for later"
    spent = sum(seconds(sum(sizes[at] for at in group)) for group in groups)
    assert spent <= min(seconds(sum(sizes)), sum(map(seconds, sizes))) * (1 + 1e-9)


def test_a_staircase_joins_what_is_long_and_leaves_single_tokens_alone() -> None:
    """As measured on a CPU whose batches of two are four times as dear as single tokens."""

    def seconds(n: int) -> float:
        return 13.0 if n == 1 else 50.0 + 3.5 * n

    assert group_parts([1, 1, 1, 1], seconds) == [[0], [1], [2], [3]]
    assert group_parts([5, 5, 5, 5], seconds) == [[0, 1, 2, 3]]
    assert group_parts([1, 1], seconds) == [[0], [1]]
