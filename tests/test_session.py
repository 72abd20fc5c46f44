"""A timeline over real weights: what it computes, what it refuses, and what it leaves behind when something goes wrong."""

from __future__ import annotations

import errno
import gc
import itertools
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf_files import (
    CHATML,
    CONTROLS,
    ENDOFTEXT,
    IM_END,
    IM_START,
    byte_id,
    embedding_model,
    recurrent_model,
    text_model,
    textless_model,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local import backend
from speccascade_local import model as model_module
from speccascade_local.backend import extra_buffers_are_safe, physical_cores
from speccascade_local.batch import BATCH_TOKENS
from speccascade_local.context import MAX_ROWS, LlamaContext, LlamaSession
from speccascade_local.errors import ContextOverflowError, ModelLoadError, PromptError, SessionError, SettingError
from speccascade_local.model import LlamaModel

DEMO = Path(model_module.__file__).parent / "demo"
# The largest difference between two rows that should be equal, in units of their spread: batches of different sizes sum in different
# orders, the cache rounds keys and values to 16 bits, and a Q8_0 matrix rounds its input.
TOLERANCE = {"float32": 0.005, "quantized": 0.05}


def assert_same_rows(rows: np.ndarray, expected: np.ndarray, kind: str = "float32") -> None:
    assert rows.shape == expected.shape
    assert float(np.abs(rows - expected).max()) <= TOLERANCE[kind] * float(expected.std())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("gguf")
    return SimpleNamespace(text=text_model(folder / "text.gguf", chat_template=CHATML), ids=textless_model(folder / "ids.gguf"))


@pytest.fixture(scope="module")
def model(files: SimpleNamespace) -> Iterator[LlamaModel]:
    model = LlamaModel(files.text)
    yield model
    model.close()


@pytest.fixture(scope="module")
def ids_model(files: SimpleNamespace) -> Iterator[LlamaModel]:
    model = LlamaModel(files.ids)
    yield model
    model.close()


@pytest.fixture(scope="module", params=["float32", "quantized"])
def both(request: pytest.FixtureRequest, model: LlamaModel) -> Iterator[SimpleNamespace]:
    """One session and one fresh partner each over a float32 and over a quantized model, for properties that rewind them."""
    quantized = LlamaModel(DEMO / "drafter.gguf") if request.param == "quantized" else None
    chosen = quantized or model
    sessions = [LlamaContext(chosen, n_ctx=128, n_threads=1).session() for _ in range(2)]
    yield SimpleNamespace(session=sessions[0], fresh=sessions[1], kind=request.param)
    for session in sessions:
        session.context.close()
    if quantized:
        quantized.close()


@pytest.fixture
def session(model: LlamaModel) -> Iterator[LlamaSession]:
    session = LlamaContext(model, n_ctx=96, n_threads=1).session()
    yield session
    session.context.close()


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is freed from here on, in order, as (kind, address)."""
    record: list[tuple[str, int]] = []
    for kind in ("llama_free", "llama_model_free"):
        real = getattr(llama_cpp, kind)

        def free(handle: object, kind: str = kind, real: Callable[[object], None] = real) -> None:
            record.append((kind, handle if isinstance(handle, int) else 0))
            real(handle)

        monkeypatch.setattr(llama_cpp, kind, free)
    return record


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is made from here on, as the entries that ``freed`` should have for it."""
    record: list[tuple[str, int]] = []
    for maker, kind in (("llama_model_load_from_file", "llama_model_free"), ("llama_init_from_model", "llama_free")):
        real = getattr(llama_cpp, maker)

        def make(*arguments: object, kind: str = kind, real: Callable[..., int | None] = real) -> int | None:
            handle = real(*arguments)
            if handle:
                record.append((kind, handle))
            return handle

        monkeypatch.setattr(llama_cpp, maker, make)
    return record


def fresh_rows(session: LlamaSession, tokens: list[int], keep: int) -> np.ndarray:
    """The rows that a timeline with nothing else in it gives."""
    session.rewind(0)
    return session.extend(tokens, keep).copy()


token_lists = st.lists(st.integers(0, 262), min_size=1, max_size=60)


# --------------------------------------------------------------------------- what is computed


@given(tokens=token_lists, cuts=st.lists(st.integers(1, 59), max_size=6))
@example(tokens=list(range(20, 60)), cuts=list(range(1, 40)))
@settings(max_examples=15, deadline=None)
def test_rows_are_the_same_however_the_tokens_are_batched(both: SimpleNamespace, tokens: list[int], cuts: list[int]) -> None:
    whole = fresh_rows(both.fresh, tokens, len(tokens))
    both.session.rewind(0)
    places = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    chunks = [tokens[a:b] for a, b in itertools.pairwise(places)]
    rows = np.concatenate([both.session.extend(chunk, len(chunk)).copy() for chunk in chunks])
    assert_same_rows(rows, whole, both.kind)


@given(tokens=token_lists, dropped=token_lists, kept=st.integers(0, 60))
@settings(max_examples=15, deadline=None)
def test_rewind_then_extend_gives_the_logits_of_a_fresh_session(
    both: SimpleNamespace, tokens: list[int], dropped: list[int], kept: int
) -> None:
    kept = min(kept, len(tokens) - 1)
    both.session.rewind(0)
    both.session.extend(tokens[:kept] + dropped, 1)
    both.session.rewind(kept)
    rows = both.session.extend(tokens[kept:], len(tokens) - kept)
    assert_same_rows(rows, fresh_rows(both.fresh, tokens, len(tokens) - kept), both.kind)


def test_rows_differ_where_the_text_before_them_differs(session: LlamaSession) -> None:
    """Guards the two properties above: rows that ignored the past would satisfy both."""
    one = session.extend([10, 20, 30], 1).copy()
    session.rewind(0)
    other = session.extend([11, 20, 30], 1)
    assert np.abs(one - other).max() > 0.1


steps = st.lists(
    st.tuples(st.just("extend"), token_lists, st.integers(-1, 66)) | st.tuples(st.just("rewind"), st.integers(-1, 130), st.none()),
    min_size=1,
    max_size=8,
)


@given(steps)
@settings(max_examples=30, deadline=None)
def test_any_mixture_of_steps_and_refused_steps_leaves_one_true_timeline(both: SimpleNamespace, steps: list[tuple]) -> None:
    session, expected = both.session, []
    session.rewind(0)
    for verb, argument, keep in steps:
        before = list(session.tokens)
        try:
            if verb == "extend":
                assert session.extend(argument, keep).shape == (keep, session.n_vocab)
                expected = expected + argument
            else:
                session.rewind(argument)
                expected = expected[:argument]
        except (SettingError, ContextOverflowError):
            assert session.tokens == before
        assert session.tokens == expected
        assert len(session) == len(expected) <= session.n_ctx
    session.rewind(min(len(session), session.n_ctx - 1))
    rows = session.extend([7], 1)
    assert_same_rows(rows, fresh_rows(both.fresh, session.tokens, 1), both.kind)


@pytest.fixture(scope="module")
def long(ids_model: LlamaModel) -> Iterator[SimpleNamespace]:
    """1025 tokens with all their rows, read in small pieces, and a session to read them in other ways."""
    tokens = np.random.default_rng(5).integers(0, ids_model.n_vocab, 1025).tolist()
    session = LlamaContext(ids_model, n_ctx=1025, n_threads=1).session()
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
    session = LlamaContext(ids_model, n_ctx=1025, n_threads=n_threads).session()
    draft = long.tokens[held : held + 6]
    session.extend(long.tokens[:held], 1)
    batch = session.extend(draft, 6).copy()
    session.rewind(held)
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
        LlamaContext(model, n_ctx=64, n_threads=1).session(),
        LlamaContext(model, n_ctx=64, n_threads=1).session(n_vocab=n_vocab),
    )
    try:
        np.testing.assert_array_equal(cropped.extend(tokens, len(tokens)), whole.extend(tokens, len(tokens))[:, :n_vocab])
        assert cropped.n_vocab == n_vocab
    finally:
        whole.context.close()
        cropped.context.close()


def test_a_context_holds_exactly_what_was_asked_for(model: LlamaModel) -> None:
    session = LlamaContext(model, n_ctx=7, n_threads=1).session()
    assert session.n_ctx == 7
    session.extend([5] * 7, 1)
    with pytest.raises(ContextOverflowError, match=r"7 tokens held and 1 more do not fit a context of 7"):
        session.extend([5], 1)
    session.context.close()


def test_two_sessions_over_one_model_do_not_touch_each_other(model: LlamaModel) -> None:
    one, other = LlamaContext(model, n_ctx=32, n_threads=1).session(), LlamaContext(model, n_ctx=32, n_threads=1).session()
    alone = one.extend([5, 6, 7], 1).copy()
    one.rewind(2)
    other.extend([100, 101, 102, 103], 1)
    assert_same_rows(one.extend([7], 1), alone)
    other.context.close()
    assert_same_rows(fresh_rows(one, [5, 6, 7], 1), alone)
    one.context.close()


# --------------------------------------------------------------------------- what is refused


REFUSED = {
    "no tokens": (lambda s: s.extend([], 1), SettingError, r"keep is 1.*= 0"),
    "keep of 0": (lambda s: s.extend([5], 0), SettingError, r"keep is 0.*= 1"),
    "negative keep": (lambda s: s.extend([5, 6], -1), SettingError, r"keep is -1.*= 2"),
    "keep above the number of tokens": (lambda s: s.extend([5, 6], 3), SettingError, r"keep is 3.*= 2"),
    "keep above 65": (lambda s: s.extend([5] * 70, 66), SettingError, r"keep is 66.*= 65"),
    "negative id": (lambda s: s.extend([5, -1], 1), PromptError, r"from -1 to 5.*0 to 262"),
    "id beyond the vocabulary": (lambda s: s.extend([5, 263], 1), PromptError, r"from 5 to 263.*0 to 262"),
    "overflow": (lambda s: s.extend([5] * 93, 1), ContextOverflowError, r"4 tokens held and 93 more.*context of 96"),
    "rewind below 0": (lambda s: s.rewind(-1), SettingError, r"rewind to -1.*holds 4"),
    "rewind beyond the end": (lambda s: s.rewind(5), SettingError, r"rewind to 5.*holds 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_step_names_what_it_saw_and_leaves_the_session_as_it_was(session: LlamaSession, name: str) -> None:
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
    session = LlamaContext(model, n_ctx=32, n_threads=1).session()
    session.extend([5, 6], 1)
    session.context.close()
    session.context.close()
    assert [kind for kind, _ in freed] == ["llama_free"]
    for step in (lambda: session.extend([7], 1), lambda: session.rewind(1)):
        with pytest.raises(SessionError, match=r"text\.gguf: this session is closed"):
            step()


def test_a_closed_model_says_so_and_may_be_closed_again(files: SimpleNamespace, freed: list[tuple[str, int]]) -> None:
    model = LlamaModel(files.text)
    assert model.has_text
    assert not model.closed
    model.close()
    model.close()
    assert model.closed
    assert [kind for kind, _ in freed] == ["llama_model_free"]
    for use in (
        lambda: model.tokenize("a", add_special=False, parse_special=False),
        lambda: model.is_end(0),
        lambda: LlamaContext(model, n_ctx=8).session(),
    ):
        with pytest.raises(SessionError, match=r"text\.gguf: this model is closed"):
            use()


def test_what_nobody_holds_any_more_is_freed_context_before_model(files: SimpleNamespace, freed: list[tuple[str, int]]) -> None:
    session = LlamaContext(LlamaModel(files.ids), n_ctx=32, n_threads=1).session()
    del session
    gc.collect()
    kinds = [kind for kind, _ in freed]
    assert kinds == ["llama_free", "llama_model_free"]


# --------------------------------------------------------------------------- what fails half-way


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
@pytest.mark.parametrize(("code", "meaning"), [(1, "no room"), (2, "aborted"), (-1, "invalid batch"), (-3, "failed")])
def test_a_failed_evaluation_names_its_code_and_loses_nothing(
    ids_model: LlamaModel, monkeypatch: pytest.MonkeyPatch, code: int, meaning: str, at_call: int
) -> None:
    session = LlamaContext(ids_model, n_ctx=600, n_threads=1).session()
    session.extend([5, 60, 70], 1)
    decode_that_fails(monkeypatch, at_call, lambda _: code)
    with pytest.raises(SessionError, match=rf"ids\.gguf: llama_decode returned {code} .*{meaning}"):
        session.extend(list(range(90)) * 6, 1)
    assert_untouched(session, [5, 60, 70], monkeypatch)
    session.context.close()


def test_a_failure_is_not_blamed_on_what_llama_cpp_said_of_an_older_one(
    session: LlamaSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\xff" * 40)
    with pytest.raises(ModelLoadError):
        LlamaModel(damaged)
    decode_that_fails(monkeypatch, 1, lambda _: -3)
    with pytest.raises(SessionError, match=r"no reason given$"):
        session.extend([5], 1)


@pytest.mark.parametrize("at_call", [1, 2])
def test_ctrl_c_right_after_an_evaluation_loses_nothing(ids_model: LlamaModel, monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    def interrupt(_code: int) -> int:
        raise KeyboardInterrupt

    session = LlamaContext(ids_model, n_ctx=600, n_threads=1).session()
    session.extend([5, 60, 70], 1)
    decode_that_fails(monkeypatch, at_call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.extend(list(range(90)) * 6, 1)
    assert_untouched(session, [5, 60, 70], monkeypatch)
    session.context.close()


def test_a_rewind_that_llama_cpp_refuses_is_an_error_and_forgets_nothing(session: LlamaSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session.extend([5, 60, 70], 1)
    monkeypatch.setattr(llama_cpp, "llama_memory_seq_rm", lambda *_: False)
    with pytest.raises(SessionError, match=r"from 3 to 1 tokens"):
        session.rewind(1)
    assert_untouched(session, [5, 60, 70], monkeypatch)


def test_a_session_that_fails_half_way_frees_its_context_once(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, int]], freed: list[tuple[str, int]]
) -> None:
    def fail(*_: int) -> None:
        raise MemoryError

    monkeypatch.setattr(llama_cpp, "llama_get_memory", fail)
    with pytest.raises(MemoryError):
        LlamaContext(model, n_ctx=32, n_threads=1).session()
    gc.collect()
    assert [kind for kind, _ in made] == ["llama_free"]
    assert freed == made


def test_a_context_that_cannot_be_made_is_a_session_error_with_its_size(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda *_: None)
    with pytest.raises(SessionError, match=r"text\.gguf: .*context of 32 tokens.*--ctx"):
        LlamaContext(model, n_ctx=32, n_threads=1).session()


@pytest.mark.parametrize("fails", ["llama_model_get_vocab", "llama_vocab_n_tokens", "llama_model_n_ctx_train"])
def test_a_model_that_fails_half_way_frees_its_weights_once(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, int]], freed: list[tuple[str, int]], fails: str
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_cpp, fails, fail)
    with pytest.raises(KeyboardInterrupt):
        LlamaModel(files.ids)
    gc.collect()
    assert [kind for kind, _ in made] == ["llama_model_free"]
    assert freed == made


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


# --------------------------------------------------------------------------- files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"absent\.gguf: no such file"):
        LlamaModel(tmp_path / "absent.gguf")


@pytest.mark.parametrize("name", ["x" * 300 + ".gguf", "~no-such-user-here/model.gguf", "nul\0.gguf", "file.gguf/model.gguf"])
def test_a_path_that_no_file_can_have_is_a_load_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError):
        LlamaModel(name if name.startswith("~") else tmp_path / name)


def test_an_empty_file_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"empty\.gguf: an empty file"):
        LlamaModel(tmp_path / "empty.gguf")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"a folder; name the \.gguf file itself"):
        LlamaModel(tmp_path)


def test_a_file_that_may_not_be_read_is_a_load_error(files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answer is given here, because a test that runs as root may read everything."""

    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelLoadError, match=r"ids\.gguf: cannot be read \(Permission denied\); check its name and permissions"):
        LlamaModel(files.ids)


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
        LlamaContext(model, n_ctx=32, n_threads=1).session()
    assert freed == made
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("content", [b"GG", b"PK\x03\x04weights", b"# text\n", b"\0" * 100])
def test_a_file_that_does_not_begin_as_gguf_says_how_it_begins(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as error:
        LlamaModel(path)
    assert f"{path}: not a GGUF file: it begins with {content[:4]!r}" in str(error.value)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_cut_off_anywhere_is_a_load_error_that_names_it(
    files: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = files.text.read_bytes()
    length = data.draw(st.integers(4, 200) | st.integers(200, len(whole) - 1) | st.just(len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(whole[:length])
    with pytest.raises(ModelLoadError) as error:
        LlamaModel(path)
    assert str(error.value).startswith(f"{path}: llama.cpp cannot load this file: ")
    assert "no reason given" not in str(error.value)


@pytest.mark.parametrize(("write", "reason"), [(recurrent_model, "recurrent"), (embedding_model, "")])
def test_an_architecture_that_cannot_reject_drafts_is_refused(
    tmp_path: Path, made: list[tuple[str, int]], freed: list[tuple[str, int]], write: Callable[[Path], Path], reason: str
) -> None:
    path = write(tmp_path / "unusable.gguf")
    with pytest.raises((ModelLoadError, SessionError), match=rf"unusable\.gguf: .*{reason}"):
        LlamaContext(LlamaModel(path), n_ctx=32, n_threads=1).session().extend([5, 6], 1)
    gc.collect()
    assert made
    assert sorted(freed) == sorted(made)


def test_a_path_may_be_text_and_begin_at_home(files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(files.ids.parent))
    model = LlamaModel("~/ids.gguf")
    assert model.path == files.ids
    model.close()


# --------------------------------------------------------------------------- loading that is watched or interrupted


def test_progress_runs_from_0_to_1_and_never_back(files: SimpleNamespace) -> None:
    seen: list[float] = []
    LlamaModel(files.text, on_progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[0] >= 0
    assert seen[-1] == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
@pytest.mark.parametrize("when", ["first", "last"])
def test_an_exception_while_loading_reaches_the_caller_and_leaves_nothing_loaded(
    files: SimpleNamespace, made: list[tuple[str, int]], freed: list[tuple[str, int]], error: BaseException, when: str
) -> None:
    def stop(fraction: float) -> None:
        if when == "first" or fraction == 1:
            raise error

    with pytest.raises(type(error)) as seen:
        LlamaModel(files.text, on_progress=stop)
    assert seen.value is error
    assert freed == made


def test_on_progress_is_not_asked_again_after_it_raised(files: SimpleNamespace) -> None:
    calls: list[float] = []

    def stop(fraction: float) -> None:
        calls.append(fraction)
        raise KeyError(fraction)

    with pytest.raises(KeyError):
        LlamaModel(files.text, on_progress=stop)
    assert len(calls) == 1


@pytest.mark.parametrize("when", ["first", "last"])
def test_ctrl_c_while_loading_interrupts_and_leaves_nothing_loaded(
    files: SimpleNamespace, made: list[tuple[str, int]], freed: list[tuple[str, int]], when: str
) -> None:
    def press(fraction: float) -> None:
        if when == "first" or fraction == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        LlamaModel(files.text, on_progress=press)
    assert freed == made
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_inside_llama_cpp_interrupts_and_frees_the_finished_model(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, int]], freed: list[tuple[str, int]]
) -> None:
    real = llama_cpp.llama_model_load_from_file

    def load(path: bytes, params: object) -> int | None:
        handle = real(path, params)
        os.kill(os.getpid(), signal.SIGINT)
        return handle

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    with pytest.raises(KeyboardInterrupt):
        LlamaModel(files.text)
    assert [kind for kind, _ in made] == ["llama_model_free"]
    assert freed == made


def test_a_thread_may_load_a_model(files: SimpleNamespace) -> None:
    """Signal handlers belong to the main thread."""
    loaded: list[LlamaModel] = []
    thread = threading.Thread(target=lambda: loaded.append(LlamaModel(files.ids)))
    thread.start()
    thread.join()
    assert loaded[0].n_vocab == 96
    loaded[0].close()


# --------------------------------------------------------------------------- the processor

AVX512 = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | "
AMX = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | "


@pytest.mark.parametrize(
    ("info", "safe"),
    [
        (AVX512, True),
        (AMX, False),
        (AMX.replace("AMX_INT8 = 1", "AMX_INT8 = 0"), True),
        ("CPU : NEON = 1 | ARM_FMA = 1 | ", True),
        ("", True),
    ],
)
def test_repacking_is_unsafe_exactly_where_the_build_has_amx(info: str, safe: bool) -> None:
    assert extra_buffers_are_safe(info) is safe


def test_the_build_tells_its_instruction_sets() -> None:
    info = backend.system_info()
    assert " = 1" in info
    assert info == info.strip()


@pytest.mark.parametrize(
    ("info", "repacked", "said"), [(AVX512, True, "repacking is on"), (AMX, False, "repacking is off, because .* AMX")]
)
def test_weights_are_repacked_unless_the_build_has_amx_and_the_log_says_which(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, info: str, repacked: bool, said: str
) -> None:
    real, given_params = llama_cpp.llama_model_load_from_file, []

    def load(path: bytes, params: llama_cpp.llama_model_params) -> int | None:
        given_params.append(bool(params.use_extra_bufts))
        return real(path, params)

    monkeypatch.setattr(model_module, "system_info", lambda: info)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    with caplog.at_level(logging.INFO, logger="speccascade_local"):
        LlamaModel(files.text).close()
    assert given_params == [repacked]
    assert re.search(said, caplog.text)


@pytest.mark.parametrize(("asked", "one_thread_bytes"), [(None, 0), (None, 10**9), (1, 0), (3, 10**9)])
def test_single_tokens_and_batches_use_the_same_threads_by_default_the_physical_cores_or_one_for_a_tiny_model(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, asked: int | None, one_thread_bytes: int
) -> None:
    monkeypatch.setattr(model_module, "ONE_THREAD_BYTES", one_thread_bytes)
    model = LlamaModel(files.text)
    session = LlamaContext(model, n_ctx=32, n_threads=asked).session()
    used = llama_cpp.llama_n_threads(session.context._ctx), llama_cpp.llama_n_threads_batch(session.context._ctx)
    session.context.close()
    model.close()
    assert used == (asked or (1 if one_thread_bytes else physical_cores()),) * 2


@pytest.mark.parametrize(
    ("physical", "logical", "allowed", "expected"), [(8, 16, 16, 8), (8, 16, 3, 3), (None, 4, 4, 4), (None, None, 1, 1), (2, 4, 1, 1)]
)
def test_threads_stay_within_physical_cores_and_within_what_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, logical: int | None, allowed: int, expected: int
) -> None:
    monkeypatch.setattr(backend.psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(os, "cpu_count", lambda: logical)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(allowed)), raising=False)
    assert physical_cores() == expected


# --------------------------------------------------------------------------- vocabulary


@pytest.fixture(scope="module")
def demo_model() -> Iterator[LlamaModel]:
    model = LlamaModel(DEMO / "expert.gguf")
    yield model
    model.close()


plain_text = st.text(max_size=30) | st.lists(st.sampled_from([*CONTROLS, " the then", "\n\n", "12345", "é", "😀", "\0", "\r\n"])).map(
    "".join
)


@given(plain_text)
@settings(max_examples=100, deadline=None)
def test_the_pieces_of_a_tokenized_text_are_its_bytes(model: LlamaModel, demo_model: LlamaModel, text: str) -> None:
    for vocabulary in (model, demo_model):
        ids = vocabulary.tokenize(text, add_special=False, parse_special=False)
        assert b"".join(map(vocabulary.piece, ids)) == text.encode()
        assert all(0 <= token < vocabulary.n_vocab for token in ids)


def test_merged_and_single_bytes_stand_for_their_own_bytes(model: LlamaModel) -> None:
    assert [model.piece(byte_id(byte)) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert [model.piece(token) for token in model.tokenize("the then", add_special=False, parse_special=False)] == [b"the", b" the", b"n"]


def test_control_tokens_are_read_only_where_asked_and_show_nothing(model: LlamaModel) -> None:
    text = "a<|im_end|>"
    assert model.tokenize(text, add_special=False, parse_special=True) == [byte_id(ord("a")), IM_END]
    assert not {ENDOFTEXT, IM_START, IM_END} & set(model.tokenize(text, add_special=False, parse_special=False))
    assert [model.piece(token) for token in range(3)] == [b""] * 3


def test_the_unknown_token_counts_as_a_control_token(tmp_path: Path) -> None:
    model = LlamaModel(text_model(tmp_path / "unknown.gguf", texts={200: "<unk>"}, types={200: gguf.TokenType.UNKNOWN}))
    assert model.control_texts == {*CONTROLS, "<unk>"}
    assert model.tokenize("<unk>", add_special=False, parse_special=True) == [200]
    assert 200 not in model.tokenize("<unk>", add_special=False, parse_special=False)
    model.close()


def test_text_that_utf8_cannot_hold_is_a_prompt_error(model: LlamaModel) -> None:
    """Such as a command line argument that was not UTF-8: Python stands in lone surrogates for its bytes."""
    with pytest.raises(PromptError):
        model.tokenize("caf\udce9", add_special=True, parse_special=True)


def test_a_piece_longer_than_any_buffer_comes_whole(tmp_path: Path) -> None:
    model = LlamaModel(text_model(tmp_path / "long.gguf", texts={200: "y" * 500}))
    assert model.piece(200) == b"y" * 500
    model.close()


def test_exactly_end_of_text_and_end_of_turn_end_a_text(model: LlamaModel) -> None:
    assert [token for token in range(model.n_vocab) if model.is_end(token)] == [ENDOFTEXT, IM_END]


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("add_eos", [False, True])
def test_the_frame_of_a_text_is_what_the_file_asks_for(tmp_path: Path, add_bos: bool, add_eos: bool) -> None:
    model = LlamaModel(text_model(tmp_path / "frame.gguf", add_bos=add_bos, add_eos=add_eos, bos_id=IM_START, eos_id=ENDOFTEXT))
    assert model.bos_id == (IM_START if add_bos else None)
    assert model.eos_id == (ENDOFTEXT if add_eos else None)
    assert model.special_texts == {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
    framed = model.tokenize("a", add_special=True, parse_special=False)
    assert framed == [IM_START] * add_bos + [byte_id(ord("a"))] + [ENDOFTEXT] * add_eos
    model.close()


def test_a_model_tells_what_its_file_says(model: LlamaModel, ids_model: LlamaModel, files: SimpleNamespace) -> None:
    assert (model.path, model.n_vocab, model.n_ctx_train) == (files.text, 263, 2048)
    assert model.control_texts == frozenset(CONTROLS)
    assert model.chat_template == CHATML
    assert ids_model.chat_template is None
    assert "llama" in model.description
    assert "F32" in model.description


def test_a_model_without_text_works_on_ids_alone(ids_model: LlamaModel) -> None:
    assert not ids_model.has_text
    with pytest.raises(PromptError, match=r"ids\.gguf has token ids but no text"):
        ids_model.tokenize("a", add_special=True, parse_special=True)
    assert [ids_model.piece(token) for token in range(ids_model.n_vocab)] == [b""] * 96
    assert not any(ids_model.is_end(token) for token in range(ids_model.n_vocab))
    assert ids_model.control_texts == frozenset()
    assert ids_model.special_texts == {"bos_token": "", "eos_token": ""}
    session = LlamaContext(ids_model, n_ctx=32, n_threads=1).session()
    assert session.extend([5, 95], 2).shape == (2, 96)
    session.context.close()


def test_the_log_of_llama_cpp_goes_to_the_debug_log(files: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="speccascade_local"):
        LlamaModel(files.text).close()
    assert any(record.getMessage().startswith("llama.cpp: ") for record in caplog.records)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG, logging.INFO}


# --------------------------------------------------------------------------- padded batches


@given(tokens=token_lists, cuts=st.lists(st.integers(1, 59), max_size=6), more=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_padded_batches_give_the_rows_of_unpadded_ones(both: SimpleNamespace, tokens: list[int], cuts: list[int], more: int) -> None:
    whole = fresh_rows(both.fresh, tokens, len(tokens))
    both.session.rewind(0)
    both.session.context.pad_batches({n: n + more for n in range(1, 60)})
    try:
        places = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
        pieces = []
        for a, b in itertools.pairwise(places):
            pieces.append(both.session.extend(tokens[a:b], b - a).copy())
            assert both.session.tokens == tokens[:b]
        both.session.rewind(len(tokens) - 1)
        again = both.session.extend(tokens[-1:], 1).copy()
    finally:
        both.session.context.pad_batches({})
    assert_same_rows(np.concatenate(pieces), whole, both.kind)
    assert_same_rows(again, whole[-1:], both.kind)


def test_padding_stays_within_the_context(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], llama_cpp.llama_decode
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda ctx, batch: sizes.append(batch.n_tokens) or real(ctx, batch))
    session = LlamaContext(model, n_ctx=20, n_threads=1).session()
    session.context.pad_batches({5: 8, 2: 4})
    for piece in ([1] * 5, [2] * 5, [3] * 5, [4, 5], [6, 7], [8]):
        session.extend(piece, 1)
    assert sizes == [8, 8, 8, 4, 2, 1]
    assert len(session) == 20
    with pytest.raises(ContextOverflowError):
        session.extend([9], 1)
    row = fresh_rows(session, [9], 1).copy()
    session.context.close()
    fresh = LlamaContext(model, n_ctx=20, n_threads=1).session()
    assert_same_rows(fresh.extend([9], 1), row)
    fresh.context.close()


@pytest.mark.parametrize("when", ["decode", "drop"])
def test_an_interrupted_padded_batch_leaves_what_was_there(session: LlamaSession, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
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
def test_padding_that_cannot_be_is_refused(session: LlamaSession, sizes: dict[int, int]) -> None:
    with pytest.raises(SettingError, match="cannot be padded"):
        session.context.pad_batches(sizes)


def test_thread_counts_can_be_changed_and_read(session: LlamaSession) -> None:
    rows = session.extend([5, 6, 7], 3).copy()
    session.context.set_threads(1, 2)
    assert (session.context.threads, session.context.batch_threads) == (1, 2)
    assert_same_rows(fresh_rows(session, [5, 6, 7], 3), rows)
    with pytest.raises(SettingError, match="at least 1"):
        session.context.set_threads(0, 1)
