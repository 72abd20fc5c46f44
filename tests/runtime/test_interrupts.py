"""A KeyboardInterrupt at any line of what changes caches: the next answer is right, whatever kind of memory the models have."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import llama_cpp
import numpy as np
import pytest
from interrupting import Point, Tracer
from tiny_architectures import N_VOCAB, write_architecture
from toy_contexts import toy_profile, toy_runtime
from toys import ToySession, random_rows

import speccascade_local as sc
from speccascade_local.decoding.ngram import NgramIndex
from speccascade_local.decoding.overlap import reading_beside
from speccascade_local.llama.batch import Part
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.runtime.answer import roll_back_to_prefix
from speccascade_local.runtime.shared_batches import Participant, SharedBatches, SharedSession

#: A generator that is dropped is closed, and what is raised there is only reported.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CACHES = ("llama/rollback", "llama/context", "llama/batch", "llama/session")
DECODING = ("decoding/loop", "decoding/draft", "decoding/generation", "decoding/overlap", "decoding/ngram", "decoding/verify")
CALLS = (*CACHES, *DECODING, "runtime/runtime", "runtime/turns", "runtime/answer")
THREADED = ("decoding/overlap", "decoding/loop", "decoding/generation", "runtime/runtime", "runtime/turns")
SHARED = (*CACHES, "runtime/shared_batches")
#: A model for each way back.
KINDS = {"tail": "llama-dense", "snapshots": "lfm2-dense", "checkpoints": "granitehybrid-dense"}
BY_BYTECODE = pytest.param(True, marks=[pytest.mark.slow, pytest.mark.skipif(sys.version_info < (3, 11), reason="no exception table")])
TEXT = [(7 * n + 3) % N_VOCAB for n in range(60)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float], Path]:
    folder = tmp_path_factory.mktemp("interrupted")

    def write(name: str, off: float = 0.0) -> Path:
        path = folder / f"{name}-{off:g}.gguf"
        return path if path.exists() else write_architecture(path, name, off=off)

    return write


class Subject(Protocol):
    def use(self) -> None: ...
    def assert_true(self) -> None: ...
    def renew(self) -> None: ...


class Sessions:
    """Two timelines of one context, and a third in a context of its own, which nothing interrupts."""

    def __init__(self, path: Path, kind: str) -> None:
        self.model, self._kind = LlamaModel(path), kind
        self._open()

    def _open(self) -> None:
        self.contexts = [LlamaContext(self.model, n_ctx=256, n_threads=1, n_timelines=n) for n in (2, 1)]
        context, _ = self.contexts
        assert context.rollback.name == self._kind
        self.one, self.other = LlamaSession(context), LlamaSession(context)
        self.cold = LlamaSession(self.contexts[1])
        context.pad_batches({3: 8})

    def close(self) -> None:
        for each in [*self.contexts, self.model]:
            each.close()

    def renew(self) -> None:
        for each in self.contexts:
            each.close()
        self._open()

    def use(self) -> None:
        """All that changes a memory: long and short texts, drafts, going back by few and by many tokens, bytes put back, common batches."""
        one, other = self.one, self.other
        one.roll_back(0)
        one.extend(TEXT[:50], 1)
        one.roll_back(48)
        for _ in range(2):
            one.extend([1, 2, 3, 4, 5], 4)
            one.roll_back(len(one.tokens) - 2)
        one.extend([9, 8, 7], 1)
        kept = one.save_state()
        one.roll_back(20)
        one.extend([3, 4, 5], 3)
        one.restore_state(kept)
        one.roll_back(len(one.tokens) - 1)
        other.roll_back(min(len(other.tokens), 7))
        one.context.evaluate([Part(one.timeline, [5, 6], 2), Part(other.timeline, [7, 8, 9], 1)])
        other.roll_back(len(other.tokens) - 2)
        other.extend([2], 1)
        fresh, self.other = other, LlamaSession(one.context, timeline=other.timeline)
        fresh.roll_back(1)

    def assert_true(self) -> None:
        """What each session reads next is what a context reads that never held anything else."""
        for session in (self.one, self.other):
            text = [*session.tokens, 5, 6, 7]
            rows = session.extend([5, 6, 7], 3).copy()
            session.roll_back(len(text) - 3)
            self.cold.roll_back(0)
            expected = self.cold.extend(text, 3)
            assert np.abs(rows - expected).max() <= 0.01 * expected.std()


def broken_by(subject: Subject, modules: tuple[str, ...], *, by_bytecode: bool = False, once: bool = False) -> list[tuple[Point, str]]:
    """Where an interruption of ``use`` leaves something that is wrong or raises, of all places that ``use`` reaches.

    once: only the first time that each is reached.
    """
    with suppress(KeyboardInterrupt):
        subject.use()
    with Tracer(modules, by_bytecode=by_bytecode).tracing() as tracer, suppress(KeyboardInterrupt):
        subject.use()
    broken = []
    for point in tracer.points():
        if once and point.nth > 1:
            continue
        with suppress(KeyboardInterrupt), Tracer(modules, point, by_bytecode=by_bytecode).tracing():
            subject.use()
        try:
            subject.assert_true()
        except Exception as error:
            broken.append((point, repr(error)))
            subject.renew()
    assert len(tracer.points()) > 20
    return broken


@pytest.mark.slow
@pytest.mark.parametrize("by_bytecode", [False, BY_BYTECODE])
@pytest.mark.parametrize("kind", KINDS)
def test_sessions_are_true_wherever_they_were_interrupted(
    written: Callable[..., Path], caplog: pytest.LogCaptureFixture, kind: str, by_bytecode: bool
) -> None:
    with closing(Sessions(written(KINDS[kind]), kind)) as sessions:
        assert broken_by(sessions, CACHES, by_bytecode=by_bytecode) == []
    assert "read once more" not in caplog.text


class Interrupted:
    """The same, where llama_decode itself is interrupted at one of its calls: what is reached then is the handling of it."""

    def __init__(self, subject: Subject, at_call: int) -> None:
        self._use, self._at_call, self.assert_true, self.renew = subject.use, at_call, subject.assert_true, subject.renew

    def use(self) -> None:
        real, calls = llama_cpp.llama_decode, []

        def decode(*arguments: object) -> int:
            calls.append(real(*arguments))
            if len(calls) == self._at_call:
                raise KeyboardInterrupt
            return calls[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llama_cpp, "llama_decode", decode)
            self._use()


@pytest.mark.slow
@pytest.mark.parametrize("at_call", [2, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_interruption_while_the_first_is_handled_changes_nothing(written: Callable[..., Path], kind: str, at_call: int) -> None:
    with closing(Sessions(written(KINDS[kind]), kind)) as sessions:
        assert broken_by(Interrupted(sessions, at_call), ("llama/context", "llama/rollback"), once=True) == []


class Calls:
    """A pair, and what it answers: to a prompt, to one that begins alike, and after its caches were saved and restored."""

    def __init__(self, load: Callable[[], sc.Runtime], prompt: list[int], overlap: float) -> None:
        self._load, self.prompts, self._overlap = load, [prompt, [*prompt[:-3], *prompt[:4]]], overlap
        self.runtime = load()
        self.runtime._loaded.profile = replace(toy_profile(), overlap=overlap)
        self.expected = [self._answer(prompt, 0) for prompt in self.prompts]

    def close(self) -> None:
        self.runtime.close()

    def renew(self) -> None:
        self.close()
        self.runtime = self._load()
        self.runtime._loaded.profile = replace(toy_profile(), overlap=self._overlap)

    def _answer(self, prompt: list[int], block_size: int | str = 4) -> list[int]:
        reply = self.runtime.generate(prompt, rule="strict", temperature=0, block_size=block_size, max_tokens=10, seed=1)
        return list(reply.token_ids)

    def use(self) -> None:
        self._answer(self.prompts[0])
        self._answer(self.prompts[1], "auto")
        for role, kept in self.runtime.saved_caches().items():
            self.runtime.restore_cache(role, kept)
        self._answer(self.prompts[0], "auto")

    def assert_true(self) -> None:
        """The same answers, also to another thread: nothing stays locked."""
        for prompt, expected in zip(self.prompts, self.expected):
            assert self._answer(prompt) == expected
        assert self._answer(self.prompts[0], "auto") == self.expected[0]
        thread = threading.Thread(target=self._answer, args=(self.prompts[0],), daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(("overlap", "modules"), [(1.0, CALLS), (0.0, THREADED)])
def test_a_pair_answers_as_before_wherever_it_was_interrupted(overlap: float, modules: tuple[str, ...]) -> None:
    """overlap 0: both models work at the same time, in threads."""

    def load() -> sc.Runtime:
        return sc.load(n_threads=1, n_ctx=256, profile=False)

    with load() as runtime:
        prompt = runtime.prompt_ids("Who is Buzz Aldrin and where does he live?")
    with closing(Calls(load, prompt, overlap)) as calls:
        assert broken_by(calls, modules, once=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("by_bytecode", [False, BY_BYTECODE])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_of_any_kind_answers_as_before_wherever_it_was_interrupted(
    written: Callable[..., Path], kind: str, by_bytecode: bool
) -> None:
    def load() -> sc.Runtime:
        return sc.load(drafter=written(KINDS[kind], 0.05), expert=written(KINDS[kind]), n_threads=1, n_ctx=256, profile=False)

    with closing(Calls(load, TEXT[:20], 1.0)) as calls:
        assert broken_by(calls, CALLS, by_bytecode=by_bytecode, once=True) == []


class Readers:
    """Two threads that read in common batches, of which the one that calls ``use`` is interrupted."""

    def __init__(self, path: Path) -> None:
        self.model = LlamaModel(path)
        self.contexts = [LlamaContext(self.model, n_ctx=256, n_threads=1, n_timelines=n) for n in (2, 1)]
        self.cold = LlamaSession(self.contexts[1])
        self.renew()

    def renew(self) -> None:
        self.gathering = SharedBatches({self.contexts[0]: lambda _n: 1.0})
        self.seats = [Participant(), Participant()]
        self.sessions = [SharedSession(self.contexts[0], self.gathering, seat) for seat in self.seats]

    def close(self) -> None:
        for each in [*self.contexts, self.model]:
            each.close()

    def use(self) -> None:
        self.other: list[tuple[list[int], np.ndarray]] = []
        thread = threading.Thread(target=lambda: self.other.append(self._read(1)), daemon=True)
        thread.start()
        try:
            self._read(0)
        finally:
            thread.join(30)

    def _read(self, n: int) -> tuple[list[int], np.ndarray]:
        """What was read, and the rows behind its last three tokens."""
        session = self.sessions[n]
        with self.gathering.join_as(self.seats[n]):
            session.roll_back(min(len(session.tokens), 3))
            session.extend([*TEXT, *TEXT, *TEXT][: 140 if n == 0 else 20], 1)
            for _ in range(2):
                session.roll_back(len(session.tokens) - 2)
                rows = session.extend([n, 3, 4], 3)
        return list(session.tokens), rows

    def assert_true(self) -> None:
        """What both have read is what one reads alone; also what the other read while this one was interrupted."""
        found = list(self.other)
        assert len(found) == 1, "the other thread waits for ever, or failed"
        with ThreadPoolExecutor(2) as pool:
            found += pool.map(self._read, (0, 1))
        for text, rows in found:
            self.cold.roll_back(0)
            expected = self.cold.extend(text, 3)
            assert np.abs(rows - expected).max() <= 0.01 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("by_bytecode", [False, BY_BYTECODE])
def test_an_interrupted_reader_of_common_batches_hurts_no_other(written: Callable[..., Path], by_bytecode: bool) -> None:
    with closing(Readers(written(KINDS["tail"]))) as readers:
        assert broken_by(readers, SHARED, by_bytecode=by_bytecode) == []


class Copies:
    """An index of a text that grows, is cut and is replaced."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.index = NgramIndex(3)

    def use(self) -> None:
        self.index.begin([1, 2, 3, 1, 2, 3])
        self.index.append([1, 2, 4, 1])
        self.index.roll_back(7)
        self.index.begin([1, 2, 3, 4])

    def assert_true(self) -> None:
        for text in ([1, 2, 3, 1, 2, 4, 1, 2], [1, 2, 3, 1, 5]):
            fresh = NgramIndex(3)
            fresh.begin(text)
            self.index.begin(text)
            assert vars(self.index) == vars(fresh)


@pytest.mark.parametrize("by_bytecode", [False, BY_BYTECODE])
def test_an_index_that_was_interrupted_is_that_of_the_next_text(by_bytecode: bool) -> None:
    assert broken_by(Copies(), ("decoding/ngram",), by_bytecode=by_bytecode) == []


def test_the_next_call_waits_for_a_thread_that_an_interrupted_one_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when Ctrl-C is pressed again while the first one waits for that thread."""
    entered, leave = threading.Event(), threading.Event()

    class Slow(ToySession):
        def extend(self, tokens: list[int], keep: int) -> np.ndarray:
            entered.set()
            assert leave.wait(30)
            return super().extend(tokens, keep)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    session = Slow(random_rows(12, 0), 12)
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
        with reading_beside(session, [1, 2, 3]):
            assert entered.wait(30)
            raise KeyboardInterrupt
    with ThreadPoolExecutor(1) as pool:
        shared = pool.submit(roll_back_to_prefix, session, [1, 2, 9])
        assert not wait([shared], 0.2).done
        leave.set()
        assert shared.result(30) == 2
    assert session.tokens == [1, 2]


def test_a_runtime_whose_sharing_was_left_by_an_interruption_answers_again(demo: sc.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = toy_runtime(demo)

    def interrupted() -> None:
        raise KeyboardInterrupt

    def leave() -> None:
        with monkeypatch.context() as patch, runtime.shared(1):
            patch.setattr(runtime._turns, "exclusive", interrupted)

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert runtime.generate([1, 2, 3], max_tokens=3, block_size=2).token_ids
