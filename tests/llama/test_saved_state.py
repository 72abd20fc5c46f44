"""A KV cache is saved and restored: the next token's logits are bit for bit those of the session that was saved."""

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


def test_a_restored_session_continues_with_the_same_logits(session: LlamaSession) -> None:
    session.extend(TOKENS, 1)
    saved = session.save_state()
    assert saved.tokens == tuple(TOKENS)
    after = session.extend([11], 1).copy()
    session.roll_back(0)
    session.extend([1, 1, 1, 1], 1)  # something else, which must leave no trace
    session.restore_state(saved)
    assert session.tokens == TOKENS
    assert np.array_equal(session.extend([11], 1), after)


def test_a_state_can_be_restored_into_another_session(session: LlamaSession) -> None:
    session.extend(TOKENS, 1)
    saved = session.save_state()
    other = LlamaSession(session.context)
    other.extend([3, 4], 1)
    other.restore_state(saved)
    assert np.array_equal(other.extend([11], 1).copy(), session.extend([11], 1))


def test_tokens_that_were_rolled_back_are_not_saved(session: LlamaSession) -> None:
    session.extend(TOKENS, 1)
    session.roll_back(3)
    saved = session.save_state()
    assert saved.tokens == tuple(TOKENS[:3])
    after = session.extend([11], 1).copy()
    session.restore_state(saved)
    assert np.array_equal(session.extend([11], 1), after)


def test_an_empty_session_is_saved_and_restored_as_empty(session: LlamaSession) -> None:
    saved = session.save_state()
    assert saved.tokens == ()
    session.extend(TOKENS, 1)
    session.restore_state(saved)
    assert session.tokens == []


def test_bytes_that_do_not_fit_leave_the_session_empty_and_usable(session: LlamaSession) -> None:
    session.extend(TOKENS, 1)
    saved = session.save_state()
    broken = [
        SavedState(saved.tokens, saved.state[:-9]),
        SavedState(saved.tokens, b""),
        SavedState(saved.tokens, bytes(len(saved.state))),
        SavedState((1,), saved.state),
    ]
    for damaged in broken:
        with pytest.raises(SessionError, match="does not take"):
            session.restore_state(damaged)
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
