"""What a model's memory held is put back: the next token's logits are bit for bit those that they would have been."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from speccascade_local.common.errors import SessionError
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession, SavedState

TOKENS = [5, 9, 2, 70, 33, 5, 8]


@pytest.fixture
def session(ids_model: LlamaModel) -> Iterator[LlamaSession]:
    context = LlamaContext(ids_model, n_ctx=64, n_threads=1, n_timelines=2)
    yield LlamaSession(context)
    context.close()


def test_what_was_saved_goes_on_as_if_nothing_had_been(session: LlamaSession) -> None:
    session.extend(TOKENS, 1)
    kept = session.save_state()
    assert kept.tokens == tuple(TOKENS)
    after = session.extend([11], 1).copy()
    session.roll_back(0)
    session.extend([1, 1, 1, 1], 1)  # something else, which must leave no trace
    session.restore_state(kept)
    assert session.tokens == TOKENS
    assert np.array_equal(session.extend([11], 1), after)


def test_what_was_saved_of_one_text_is_put_into_another(session: LlamaSession) -> None:
    session.extend(TOKENS, 1)
    kept = session.save_state()
    other = LlamaSession(session.context)
    other.extend([3, 4], 1)
    other.restore_state(kept)
    assert np.array_equal(other.extend([11], 1).copy(), session.extend([11], 1))


def test_what_was_rewound_is_not_saved(session: LlamaSession) -> None:
    session.extend(TOKENS, 1)
    session.roll_back(3)
    kept = session.save_state()
    assert kept.tokens == tuple(TOKENS[:3])
    after = session.extend([11], 1).copy()
    session.restore_state(kept)
    assert np.array_equal(session.extend([11], 1), after)


def test_nothing_is_saved_of_nothing_and_restored_as_nothing(session: LlamaSession) -> None:
    kept = session.save_state()
    assert kept.tokens == ()
    session.extend(TOKENS, 1)
    session.restore_state(kept)
    assert session.tokens == []


def test_bytes_that_do_not_fit_leave_the_session_empty_and_usable(session: LlamaSession) -> None:
    session.extend(TOKENS, 1)
    kept = session.save_state()
    broken = [
        SavedState(kept.tokens, kept.state[:-9]),
        SavedState(kept.tokens, b""),
        SavedState(kept.tokens, bytes(len(kept.state))),
        SavedState((1,), kept.state),
    ]
    for spoilt in broken:
        with pytest.raises(SessionError, match="does not take"):
            session.restore_state(spoilt)
        assert session.tokens == []
    after = session.extend(TOKENS, 1).copy()
    session.roll_back(0)
    assert np.array_equal(session.extend(TOKENS, 1), after)


def test_more_than_the_context_holds_is_refused(session: LlamaSession) -> None:
    with pytest.raises(SessionError, match="65 tokens were saved and the context holds 64"):
        session.restore_state(SavedState((1,) * 65, b"x"))


def test_a_closed_session_saves_nothing(session: LlamaSession) -> None:
    session.context.close()
    with pytest.raises(SessionError, match="closed"):
        session.save_state()
