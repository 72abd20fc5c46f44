"""Timelines over real weights: what they compute, what they refuse, and that failures leave no trace."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import llama_cpp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local.common.errors import ContextOverflowError, ModelLoadError, PromptError, SessionError, SettingError
from speccascade_local.llama import model as model_module
from speccascade_local.llama.backend import physical_cores
from speccascade_local.llama.batch import BATCH_TOKENS, Part
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.tokens.rows import MAX_ROWS

DEMO = Path(sc.__file__).parent / "demo"
# The largest difference between two rows that should be equal, in units of their spread: batches of different sizes sum in different
# orders, the cache rounds keys and values to 16 bits, and a Q8_0 matrix rounds its input.
TOLERANCE = {"float32": 0.005, "quantized": 0.05}


def assert_same_rows(rows: np.ndarray, expected: np.ndarray, kind: str = "float32") -> None:
    assert rows.shape == expected.shape
    assert float(np.abs(rows - expected).max()) <= TOLERANCE[kind] * float(expected.std())


@pytest.fixture(scope="module", params=["float32", "quantized"])
def both(request: pytest.FixtureRequest, model: LlamaModel) -> Iterator[SimpleNamespace]:
    """One session and one fresh partner each over a float32 and over a quantized model, for properties that roll them back."""
    quantized = LlamaModel(DEMO / "drafter.gguf") if request.param == "quantized" else None
    chosen = quantized or model
    sessions = [LlamaSession(LlamaContext(chosen, n_ctx=128, n_threads=1)) for _ in range(2)]
    yield SimpleNamespace(session=sessions[0], fresh=sessions[1], kind=request.param)
    for session in sessions:
        session.context.close()
    if quantized:
        quantized.close()


@pytest.fixture
def session(model: LlamaModel) -> Iterator[LlamaSession]:
    session = LlamaSession(LlamaContext(model, n_ctx=96, n_threads=1))
    yield session
    session.context.close()


def fresh_rows(session: LlamaSession, tokens: list[int], keep: int) -> np.ndarray:
    """The rows of an otherwise empty timeline."""
    session.roll_back(0)
    return session.extend(tokens, keep).copy()


token_lists = st.lists(st.integers(0, 262), min_size=1, max_size=60)


@given(tokens=token_lists, cuts=st.lists(st.integers(1, 59), max_size=6))
@example(tokens=list(range(20, 60)), cuts=list(range(1, 40)))
@settings(max_examples=15, deadline=None)
def test_rows_are_the_same_however_the_tokens_are_batched(both: SimpleNamespace, tokens: list[int], cuts: list[int]) -> None:
    whole = fresh_rows(both.fresh, tokens, len(tokens))
    both.session.roll_back(0)
    places = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    chunks = [tokens[a:b] for a, b in itertools.pairwise(places)]
    rows = np.concatenate([both.session.extend(chunk, len(chunk)).copy() for chunk in chunks])
    assert_same_rows(rows, whole, both.kind)


@given(tokens=token_lists, dropped=token_lists, length=st.integers(0, 60))
@settings(max_examples=15, deadline=None)
def test_rolling_back_and_extending_gives_the_logits_of_a_fresh_session(
    both: SimpleNamespace, tokens: list[int], dropped: list[int], length: int
) -> None:
    length = min(length, len(tokens) - 1)
    both.session.roll_back(0)
    both.session.extend(tokens[:length] + dropped, 1)
    both.session.roll_back(length)
    rows = both.session.extend(tokens[length:], len(tokens) - length)
    assert_same_rows(rows, fresh_rows(both.fresh, tokens, len(tokens) - length), both.kind)


def test_rows_differ_where_the_text_before_them_differs(session: LlamaSession) -> None:
    """Guards the two properties above: rows that ignored the past would satisfy both."""
    one = session.extend([10, 20, 30], 1).copy()
    session.roll_back(0)
    other = session.extend([11, 20, 30], 1)
    assert np.abs(one - other).max() > 0.1


steps = st.lists(
    st.tuples(st.just("extend"), token_lists, st.integers(-1, 66)) | st.tuples(st.just("roll_back"), st.integers(-1, 130), st.none()),
    min_size=1,
    max_size=8,
)


@given(steps)
@settings(max_examples=30, deadline=None)
def test_any_mixture_of_steps_and_refused_steps_leaves_one_true_timeline(both: SimpleNamespace, steps: list[tuple]) -> None:
    session, expected = both.session, []
    session.roll_back(0)
    for verb, argument, keep in steps:
        before = list(session.tokens)
        try:
            if verb == "extend":
                assert session.extend(argument, keep).shape == (keep, session.n_vocab)
                expected = expected + argument
            else:
                session.roll_back(argument)
                expected = expected[:argument]
        except (SettingError, ContextOverflowError):
            assert session.tokens == before
        assert session.tokens == expected
        assert len(session.tokens) == len(expected) <= session.n_ctx
    session.roll_back(min(len(session.tokens), session.n_ctx - 1))
    rows = session.extend([7], 1)
    assert_same_rows(rows, fresh_rows(both.fresh, session.tokens, 1), both.kind)


@pytest.fixture(scope="module")
def long(ids_model: LlamaModel) -> Iterator[SimpleNamespace]:
    """1025 tokens with all their rows, read in small pieces, and a session to read them in other ways."""
    tokens = np.random.default_rng(5).integers(0, ids_model.n_vocab, 1025).tolist()
    session = LlamaSession(LlamaContext(ids_model, n_ctx=1025, n_threads=1))
    pieces = [tokens[i : i + 41] for i in range(0, 1025, 41)]
    rows = np.concatenate([session.extend(piece, len(piece)).copy() for piece in pieces])
    yield SimpleNamespace(tokens=tokens, rows=rows, session=session)
    session.context.close()


@pytest.mark.parametrize("keep", [1, 2, 64, MAX_ROWS])
@pytest.mark.parametrize("length", [65, 511, 512, 513, 576, 577, 1024, 1025])
def test_long_texts_go_in_batches_of_512_with_every_kept_row_in_the_last(
    long: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, length: int, keep: int
) -> None:
    batches = []
    real = llama_cpp.llama_decode

    def decode(ctx: object, batch: llama_cpp.llama_batch) -> int:
        batches.append((batch.n_tokens, sum(batch.logits[i] for i in range(batch.n_tokens))))
        return real(ctx, batch)

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)
    rows = fresh_rows(long.session, long.tokens[:length], keep)
    # Far into a context the rows of large and of small batches differ by more, see the test of drafts below; strangers by far more.
    assert float(np.abs(rows - long.rows[length - keep : length]).max()) < 0.1 * float(long.rows.std())
    assert sum(size for size, _ in batches) == length
    assert max(size for size, _ in batches) <= BATCH_TOKENS
    assert [wanted for _, wanted in batches] == [0] * (len(batches) - 1) + [keep]
    assert len(batches) == -(-length // BATCH_TOKENS)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("held", [50, 1000])
def test_a_draft_read_as_one_batch_scores_like_token_by_token(
    ids_model: LlamaModel, long: SimpleNamespace, held: int, n_threads: int
) -> None:
    """Otherwise verified and plain greedy decoding would part, the sooner the longer the text."""
    session = LlamaSession(LlamaContext(ids_model, n_ctx=1025, n_threads=n_threads))
    draft = long.tokens[held : held + 6]
    session.extend(long.tokens[:held], 1)
    batch = session.extend(draft, 6).copy()
    session.roll_back(held)
    singly = np.concatenate([session.extend([token], 1).copy() for token in draft])
    session.context.close()
    assert_same_rows(singly, batch)


def test_rows_are_a_float32_view_into_the_buffer_of_llama_cpp(session: LlamaSession) -> None:
    rows = session.extend([5, 6, 7, 8], 3)
    buffer = np.ctypeslib.as_array(llama_cpp.llama_get_logits(session.context._ctx), (3, session.n_vocab))
    assert rows.dtype == np.float32
    assert rows.shape == (3, session.model.n_vocab)
    assert np.shares_memory(rows, buffer)
    np.testing.assert_array_equal(rows, buffer)


@given(tokens=token_lists, n_vocab=st.integers(1, 263))
@settings(max_examples=10, deadline=None)
def test_a_smaller_n_vocab_crops_the_rows_and_nothing_else(model: LlamaModel, tokens: list[int], n_vocab: int) -> None:
    whole, cropped = (
        LlamaSession(LlamaContext(model, n_ctx=64, n_threads=1)),
        LlamaSession(LlamaContext(model, n_ctx=64, n_threads=1), n_vocab=n_vocab),
    )
    try:
        np.testing.assert_array_equal(cropped.extend(tokens, len(tokens)), whole.extend(tokens, len(tokens))[:, :n_vocab])
        assert cropped.n_vocab == n_vocab
    finally:
        whole.context.close()
        cropped.context.close()


def test_a_context_holds_exactly_what_was_asked_for(model: LlamaModel) -> None:
    session = LlamaSession(LlamaContext(model, n_ctx=7, n_threads=1))
    assert session.n_ctx == 7
    session.extend([5] * 7, 1)
    with pytest.raises(ContextOverflowError, match=r"7 tokens held and 1 more do not fit a context of 7"):
        session.extend([5], 1)
    session.context.close()


def test_two_sessions_over_one_model_do_not_touch_each_other(model: LlamaModel) -> None:
    one, other = LlamaSession(LlamaContext(model, n_ctx=32, n_threads=1)), LlamaSession(LlamaContext(model, n_ctx=32, n_threads=1))
    alone = one.extend([5, 6, 7], 1).copy()
    one.roll_back(2)
    other.extend([100, 101, 102, 103], 1)
    assert_same_rows(one.extend([7], 1), alone)
    other.context.close()
    assert_same_rows(fresh_rows(one, [5, 6, 7], 1), alone)
    one.context.close()


def test_a_step_that_keeps_nothing_only_reads(session: LlamaSession) -> None:
    assert session.extend([5, 60], 0).shape == (0, session.n_vocab)
    assert session.tokens == [5, 60]
    np.testing.assert_array_equal(session.extend([70], 1), fresh_last_row(session, [5, 60], [70]))


def fresh_last_row(session: LlamaSession, text: list[int], tokens: list[int]) -> np.ndarray:
    """The last row of tokens after a text whose last row was read too."""
    other = LlamaSession(LlamaContext(session.model, n_ctx=96, n_threads=1))
    other.extend(text, 1)
    row = other.extend(tokens, 1).copy()
    other.context.close()
    return row


REFUSED = {
    "no tokens": (lambda s: s.extend([], 1), SettingError, r"keep is 1.*= 0"),
    "negative keep": (lambda s: s.extend([5, 6], -1), SettingError, r"keep is -1.*= 2"),
    "keep above the number of tokens": (lambda s: s.extend([5, 6], 3), SettingError, r"keep is 3.*= 2"),
    "keep above 65": (lambda s: s.extend([5] * 70, 66), SettingError, r"keep is 66.*= 65"),
    "negative id": (lambda s: s.extend([5, -1], 1), PromptError, r"from -1 to 5.*0 to 262"),
    "id beyond the vocabulary": (lambda s: s.extend([5, 263], 1), PromptError, r"from 5 to 263.*0 to 262"),
    "overflow": (lambda s: s.extend([5] * 93, 1), ContextOverflowError, r"4 tokens held and 93 more.*context of 96"),
    "roll back below 0": (lambda s: s.roll_back(-1), SettingError, r"roll back to -1.*holds 4"),
    "roll back beyond the end": (lambda s: s.roll_back(5), SettingError, r"roll back to 5.*holds 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_step_names_the_values_and_leaves_the_session_as_it_was(session: LlamaSession, name: str) -> None:
    step, kind, message = REFUSED[name]
    tokens = [5, 60, 70, 80]
    rows = session.extend(tokens, 2)
    seen = rows.copy()
    with pytest.raises(kind, match=message):
        step(session)
    assert session.tokens == tokens
    np.testing.assert_array_equal(rows, seen)
    continued = session.extend([9, 10], 2).copy()
    assert_same_rows(continued, fresh_rows(session, [*tokens, 9, 10], 2))


def test_a_closed_session_refuses_to_work_and_may_be_closed_again(model: LlamaModel, freed: list[tuple[str, int]]) -> None:
    session = LlamaSession(LlamaContext(model, n_ctx=32, n_threads=1))
    session.extend([5, 6], 1)
    session.context.close()
    session.context.close()
    assert [kind for kind, _ in freed] == ["llama_free"]
    for step in (lambda: session.extend([7], 1), lambda: session.roll_back(1)):
        with pytest.raises(SessionError, match=r"text\.gguf: this session is closed"):
            step()


@pytest.mark.slow
def test_an_unreachable_session_is_freed_context_before_model(files: SimpleNamespace, freed: list[tuple[str, int]]) -> None:
    session = LlamaSession(LlamaContext(LlamaModel(files.ids), n_ctx=32, n_threads=1))
    del session
    gc.collect()
    kinds = [kind for kind, _ in freed]
    assert kinds == ["llama_free", "llama_model_free"]


def decode_that_fails(monkeypatch: pytest.MonkeyPatch, at_call: int, outcome: Callable[[int], int]) -> None:
    """Let the given call of llama_decode run, and then turn its return code into ``outcome`` of it."""
    real, calls = llama_cpp.llama_decode, []

    def decode(ctx: object, batch: object) -> int:
        calls.append(1)
        code = real(ctx, batch)
        return outcome(code) if len(calls) == at_call else code

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)


def assert_untouched(session: LlamaSession, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert session.tokens == tokens
    continued = session.extend([9, 10], 2).copy()
    assert_same_rows(continued, fresh_rows(session, [*tokens, 9, 10], 2))


@pytest.mark.parametrize("at_call", [1, 2])
@pytest.mark.parametrize(("code", "meaning"), [(1, "no room"), (2, "aborted"), (-3, "failed")])
def test_a_failed_evaluation_names_its_code_and_loses_nothing(
    ids_model: LlamaModel, monkeypatch: pytest.MonkeyPatch, code: int, meaning: str, at_call: int
) -> None:
    session = LlamaSession(LlamaContext(ids_model, n_ctx=600, n_threads=1))
    session.extend([5, 60, 70], 1)
    decode_that_fails(monkeypatch, at_call, lambda _: code)
    with pytest.raises(SessionError, match=rf"ids\.gguf: llama_decode returned {code} .*{meaning}"):
        session.extend(list(range(90)) * 6, 1)
    assert_untouched(session, [5, 60, 70], monkeypatch)
    session.context.close()


def test_a_memory_that_differs_from_its_timeline_is_read_again_once(session: LlamaSession) -> None:
    session.extend([5, 60, 70], 1)
    session.roll_back(2)
    expected = session.extend([70, 8], 1).copy()
    session.roll_back(3)
    llama_cpp.llama_memory_seq_rm(session.context._memory, session.timeline.sequence, 1, -1)
    assert_same_rows(session.extend([8], 1), expected)
    assert session.tokens == [5, 60, 70, 8]


def test_a_memory_that_stays_inconsistent_is_an_error_that_does_not_blame_its_size(
    session: LlamaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.extend([5, 60, 70], 1)
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *_: -1)
    with pytest.raises(SessionError, match="invalid batch") as caught:
        session.extend([8], 1)
    assert "memory is short" not in str(caught.value)
    assert_untouched(session, [5, 60, 70], monkeypatch)


def test_a_timeline_that_was_collected_unclosed_makes_room(ids_model: LlamaModel) -> None:
    """As by an interruption between opening and storing it."""
    context = LlamaContext(ids_model, n_ctx=64, n_threads=1)
    LlamaSession(context).extend([5, 60, 70], 1)
    gc.collect()
    session = LlamaSession(context)
    rows = session.extend([8], 1).copy()
    session.roll_back(0)
    assert_same_rows(session.extend([8], 1), rows)
    context.close()


def test_an_error_does_not_quote_the_warnings_of_an_older_one(
    session: LlamaSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\xff" * 40)
    with pytest.raises(ModelLoadError):
        LlamaModel(damaged)
    decode_that_fails(monkeypatch, 1, lambda _: -3)
    with pytest.raises(SessionError, match=r"no reason given\."):
        session.extend([5], 1)


@pytest.mark.parametrize("at_call", [1, 2])
def test_ctrl_c_right_after_an_evaluation_loses_nothing(ids_model: LlamaModel, monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    def interrupt(_code: int) -> int:
        raise KeyboardInterrupt

    session = LlamaSession(LlamaContext(ids_model, n_ctx=600, n_threads=1))
    session.extend([5, 60, 70], 1)
    decode_that_fails(monkeypatch, at_call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.extend(list(range(90)) * 6, 1)
    assert_untouched(session, [5, 60, 70], monkeypatch)
    session.context.close()


def test_a_rollback_that_llama_cpp_refuses_is_an_error_and_forgets_nothing(session: LlamaSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session.extend([5, 60, 70], 1)
    monkeypatch.setattr(llama_cpp, "llama_memory_seq_rm", lambda *_: False)
    with pytest.raises(SessionError, match=r"from 3 to 1 tokens"):
        session.roll_back(1)
    assert_untouched(session, [5, 60, 70], monkeypatch)


@pytest.mark.slow
def test_a_session_that_fails_half_way_frees_its_context_once(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, int]], freed: list[tuple[str, int]]
) -> None:
    def fail(*_: int) -> None:
        raise MemoryError

    monkeypatch.setattr(llama_cpp, "llama_get_memory", fail)
    with pytest.raises(MemoryError):
        LlamaSession(LlamaContext(model, n_ctx=32, n_threads=1))
    gc.collect()
    assert [kind for kind, _ in made] == ["llama_free"]
    assert freed == made


def test_a_context_that_cannot_be_made_is_a_session_error_with_its_size(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda *_: None)
    with pytest.raises(SessionError, match=r"text\.gguf: .*context of 32 tokens.*--ctx"):
        LlamaSession(LlamaContext(model, n_ctx=32, n_threads=1))


@pytest.mark.slow
@pytest.mark.parametrize("at_call", [1, 2])
def test_loading_a_pair_that_fails_half_way_frees_contexts_before_their_models(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, int]], freed: list[tuple[str, int]], at_call: int
) -> None:
    real, calls = llama_cpp.llama_get_memory, []

    def fail(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == at_call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(llama_cpp, "llama_get_memory", fail)
    with pytest.raises(KeyboardInterrupt):
        sc.load(drafter=files.text, expert=files.text, n_ctx=32, n_threads=1)
    gc.collect()
    assert sorted(freed) == sorted(made)
    kinds = [kind for kind, _ in freed]
    assert kinds == ["llama_free"] * at_call + ["llama_model_free"] * 2


def test_ctrl_c_while_a_context_is_made_frees_it_and_is_raised(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, int]], freed: list[tuple[str, int]]
) -> None:
    """It arrives while llama.cpp logs: in that callback an exception would be lost."""
    real = llama_cpp.llama_init_from_model

    def interrupted(*arguments: object) -> int | None:
        handle = real(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return handle

    monkeypatch.setattr(llama_cpp, "llama_init_from_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LlamaSession(LlamaContext(model, n_ctx=32, n_threads=1))
    assert freed == made
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("asked", "one_thread_bytes"), [(None, 0), (None, 10**9), (1, 0), (3, 10**9)])
def test_single_tokens_and_batches_use_the_same_threads_by_default_the_physical_cores_or_one_for_a_tiny_model(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, asked: int | None, one_thread_bytes: int
) -> None:
    monkeypatch.setattr(model_module, "ONE_THREAD_BYTES", one_thread_bytes)
    model = LlamaModel(files.text)
    session = LlamaSession(LlamaContext(model, n_ctx=32, n_threads=asked))
    used = llama_cpp.llama_n_threads(session.context._ctx), llama_cpp.llama_n_threads_batch(session.context._ctx)
    session.context.close()
    model.close()
    assert used == (asked or (1 if one_thread_bytes else physical_cores()),) * 2


@given(tokens=token_lists, cuts=st.lists(st.integers(1, 59), max_size=6), more=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_padded_batches_give_the_rows_of_unpadded_ones(both: SimpleNamespace, tokens: list[int], cuts: list[int], more: int) -> None:
    whole = fresh_rows(both.fresh, tokens, len(tokens))
    both.session.roll_back(0)
    both.session.context.pad_batches({n: n + more for n in range(1, 60)})
    try:
        places = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
        pieces = []
        for a, b in itertools.pairwise(places):
            pieces.append(both.session.extend(tokens[a:b], b - a).copy())
            assert both.session.tokens == tokens[:b]
        both.session.roll_back(len(tokens) - 1)
        again = both.session.extend(tokens[-1:], 1).copy()
    finally:
        both.session.context.pad_batches({})
    assert_same_rows(np.concatenate(pieces), whole, both.kind)
    assert_same_rows(again, whole[-1:], both.kind)


def test_padding_stays_within_the_context(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    session = LlamaSession(LlamaContext(model, n_ctx=20, n_threads=1))
    sizes, real = [], llama_cpp.llama_decode
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda ctx, batch: sizes.append(batch.n_tokens) or real(ctx, batch))
    session.context.pad_batches({5: 8, 2: 4})
    for piece in ([1] * 5, [2] * 5, [3] * 5, [4, 5], [6, 7], [8]):
        session.extend(piece, 1)
    assert sizes == [8, 8, 8, 4, 2, 1]
    assert len(session.tokens) == 20
    with pytest.raises(ContextOverflowError):
        session.extend([9], 1)
    row = fresh_rows(session, [9], 1).copy()
    session.context.close()
    fresh = LlamaSession(LlamaContext(model, n_ctx=20, n_threads=1))
    assert_same_rows(fresh.extend([9], 1), row)
    fresh.context.close()


@pytest.mark.parametrize("when", ["decode", "drop"])
def test_an_interrupted_padded_batch_leaves_the_text_as_it_was(session: LlamaSession, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    session.extend([5, 6, 7], 1)
    session.context.pad_batches({2: 8})
    with monkeypatch.context() as patch:
        name = {"decode": "llama_decode", "drop": "llama_memory_seq_rm"}[when]
        real, first = getattr(llama_cpp, name), iter([True])

        def interrupted(*arguments: object) -> object:
            result = real(*arguments)
            if next(first, False):
                raise KeyboardInterrupt
            return result

        patch.setattr(llama_cpp, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.extend([8, 9], 2)
    assert session.tokens == [5, 6, 7]
    rows = session.extend([8, 9], 2).copy()
    session.context.pad_batches({})
    assert_same_rows(rows, fresh_rows(session, [5, 6, 7, 8, 9], 2))


@pytest.mark.parametrize("sizes", [{5: 4}, {0: 4}, {5: BATCH_TOKENS + 1}])
def test_impossible_padding_is_refused(session: LlamaSession, sizes: dict[int, int]) -> None:
    with pytest.raises(SettingError, match="cannot be padded"):
        session.context.pad_batches(sizes)


def test_thread_counts_can_be_changed_and_read(session: LlamaSession) -> None:
    rows = session.extend([5, 6, 7], 3).copy()
    session.context.set_threads(1, 2)
    assert (session.context.threads, session.context.batch_threads) == (1, 2)
    assert_same_rows(fresh_rows(session, [5, 6, 7], 3), rows)
    with pytest.raises(SettingError, match="at least 1"):
        session.context.set_threads(0, 1)


# --------------------------------------------------------------------------- several timelines in one context


@pytest.fixture(scope="module")
def shared(ids_model: LlamaModel) -> Iterator[SimpleNamespace]:
    """Three timelines of one context, and as many that are alone in theirs."""
    context = LlamaContext(ids_model, n_ctx=48, n_threads=1, n_timelines=3)
    alone = [LlamaSession(LlamaContext(ids_model, n_ctx=48, n_threads=1)) for _ in range(3)]
    yield SimpleNamespace(context=context, sessions=[LlamaSession(context) for _ in range(3)], alone=alone)
    for session in alone:
        session.context.close()
    context.close()


turns = st.lists(
    st.dictionaries(
        st.integers(0, 2),  # who
        st.tuples(st.integers(0, 9), st.lists(st.integers(0, 95), min_size=1, max_size=7), st.integers(1, 7)),  # back, on, rows
        min_size=1,
    ),
    min_size=1,
    max_size=8,
)


@given(turns)
@settings(max_examples=40, deadline=None)
def test_interleaved_timelines_do_not_change_each_other(shared: SimpleNamespace, turns: list[dict]) -> None:
    for session in (*shared.sessions, *shared.alone):
        session.roll_back(0)
    for turn in turns:
        parts = []
        for who, (back, tokens, keep) in turn.items():
            session = shared.sessions[who]
            room = len(session.tokens) + len(tokens) <= session.n_ctx
            for each in (session, shared.alone[who]):
                each.roll_back(max(len(each.tokens) - back, 0) if room else 0)
            parts.append(Part(session.timeline, tokens, min(keep, len(tokens))))
        for rows, (who, (_, tokens, _)), part in zip(shared.context.evaluate(parts), turn.items(), parts):
            assert_same_rows(rows, shared.alone[who].extend(tokens, part.keep))
            assert part.timeline.tokens == shared.alone[who].tokens


def test_several_timelines_are_evaluated_in_one_batch(shared: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], llama_cpp.llama_decode
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda ctx, batch: sizes.append(batch.n_tokens) or real(ctx, batch))
    for session in shared.sessions:
        session.roll_back(0)
    rows = shared.context.evaluate([Part(shared.sessions[0].timeline, [1, 2, 3], 2), Part(shared.sessions[2].timeline, [4, 5], 1)])
    assert sizes == [5]
    assert [each.shape for each in rows] == [(2, 96), (1, 96)]


def test_long_texts_of_several_timelines_keep_their_rows_in_the_last_batch(ids_model: LlamaModel) -> None:
    context = LlamaContext(ids_model, n_ctx=700, n_threads=1, n_timelines=2)
    texts = [[i % 90 for i in range(600)], [i % 70 for i in range(400)]]
    parts = [Part(LlamaSession(context).timeline, text, 60) for text in texts]
    rows = [each.copy() for each in context.evaluate(parts)]
    for text, found in zip(texts, rows):
        session = LlamaSession(LlamaContext(ids_model, n_ctx=700, n_threads=1))
        assert_same_rows(found, session.extend(text, 60))
        session.context.close()
    context.close()


def test_when_one_part_fails_no_timeline_has_moved(shared: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, _ = shared.sessions
    for session in shared.sessions:
        session.roll_back(0)
        session.extend([5, 6], 1)
    with pytest.raises(ContextOverflowError):
        shared.context.evaluate([Part(one.timeline, [7], 1), Part(other.timeline, [8] * 47, 1)])
    decode_that_fails(monkeypatch, 1, lambda _: 2)
    with pytest.raises(SessionError):
        shared.context.evaluate([Part(one.timeline, [7], 1), Part(other.timeline, [8], 1)])
    for session in (one, other):
        assert_untouched(session, [5, 6], monkeypatch)


def test_an_interruption_while_rows_are_returned_leaves_the_text_as_it_was(ids_model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    session = LlamaSession(LlamaContext(ids_model, n_ctx=16, n_threads=1))
    expected = session.extend([1, 2, 3], 1).copy()
    session.roll_back(2)

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(session.context, "_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.extend([4, 5], 1)
    assert session.tokens == [1, 2]
    np.testing.assert_allclose(session.extend([3], 1), expected, rtol=1e-4, atol=1e-4)
    assert session.context.evaluate([]) == []


def test_a_context_has_n_timelines_and_no_more(ids_model: LlamaModel) -> None:
    context = LlamaContext(ids_model, n_ctx=16, n_threads=1, n_timelines=2)
    first, second = LlamaSession(context), LlamaSession(context)
    second.extend([1, 2], 1)
    with pytest.raises(SessionError, match="all timelines of this context are in use"):
        LlamaSession(context)
    second.close()
    second.close()
    with pytest.raises(SessionError, match="this session is closed"):
        second.extend([3], 1)
    third = LlamaSession(context)
    assert third.tokens == []
    row = third.extend([7, 8], 1).copy()
    assert_same_rows(row, first.extend([7, 8], 1))
    context.close()
    third.close()
    with pytest.raises(SettingError, match="n_timelines is 8; it must be between 1 and 7"):
        LlamaContext(ids_model, n_ctx=16, n_timelines=8)
