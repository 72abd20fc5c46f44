"""Rollback on every kind of architecture: the rows after a rollback are those of a timeline that never read anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import llama_cpp
import numpy as np
import pytest
from gguf_files import textless_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny_architectures import MADE_OF, N_VOCAB, write_architecture

import speccascade_local as sc
from speccascade_local.common.errors import ModelLoadError, SessionError
from speccascade_local.llama.batch import Part, Timeline
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.parameters import SNAPSHOTS
from speccascade_local.llama.rollback_trial import choose_rollback
from speccascade_local.llama.session import LlamaSession
from speccascade_local.machine.dry_run import dry_run_models
from speccascade_local.tokens.sampler import softmax

SNAPSHOTTED = {"lfm2-dense", "qwen35-dense", "nemotron_h-dense"}
COPIED = {"mamba-dense", "mamba2-dense", "falcon-h1-dense", "granitehybrid-dense", "jamba-dense", "qwen3next-moe"}
REFUSED = {"dream-dense", "cogvlm-dense"}
WORKING = sorted(MADE_OF.keys() - REFUSED)
#: One for each way to go back; the slow tests take all.
ONE_OF_EACH_WAY = [
    name if name in ("llama-dense", "lfm2-dense", "mamba2-dense") else pytest.param(name, marks=pytest.mark.slow) for name in WORKING
]
#: In units of a row's spread. Another text before the row makes it differ by about 1.
TOLERANCE = 0.01
#: How far a drafter's weights are from the expert's.
OFF = 0.05


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder, done = tmp_path_factory.mktemp("architectures"), {}

    def write(name: str, off: float = 0.0) -> Path:
        if (name, off) not in done:
            done[name, off] = write_architecture(folder / f"{name}-{off:g}.gguf", name, off=off)
        return done[name, off]

    return write


@pytest.fixture
def opened(written: Callable[..., Path]) -> Iterator[Callable[..., LlamaSession]]:
    models: list[LlamaModel] = []
    contexts: list[LlamaContext] = []

    def open_session(name: str, n_snapshots: int = SNAPSHOTS, n_ctx: int = 2048) -> LlamaSession:
        models.append(LlamaModel(written(name)))
        contexts.append(LlamaContext(models[-1], n_ctx=n_ctx, n_threads=1, n_snapshots=n_snapshots))
        return LlamaSession(contexts[-1])

    yield open_session
    for each in [*contexts, *models]:
        each.close()


def assert_same(row: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(row - expected).max() <= TOLERANCE * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_each_architecture_goes_back_in_the_way_that_it_has(opened: Callable[..., LlamaSession], name: str) -> None:
    way = "snapshots" if name in SNAPSHOTTED else "checkpoints" if name in COPIED else "tail"
    assert opened(name).context.rollback.name == way
    assert opened(name, n_snapshots=0).context.rollback.name == ("checkpoints" if way == "snapshots" else way)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3-dense", "lfm2-dense", "falcon-h1-dense", "mamba2-dense"])
def test_a_dry_run_predicts_the_rollback_of_the_real_load(written: Callable[..., Path], name: str) -> None:
    plans = dry_run_models({"drafter": written(name, OFF), "expert": written(name)}, n_ctx=512)
    with pair_of(written, name) as runtime:
        for role, session in runtime._sessions.items():
            assert plans[role].rollback == session.context.rollback.name
            runtime.generate(PROMPT, rule="strict", temperature=1, block_size=4, max_tokens=200, seed=1)
            state = max((len(each.data) for each in session.timeline.checkpoints if each.flags == 1), default=0)
            assert state <= 1.1 * plans[role].state + 40_000  # the log rounds to 10 kB, and a copy holds a sliding window too


@pytest.mark.parametrize(("name", "reason"), [("dream-dense", "diffusion"), ("cogvlm-dense", "cannot be scored")])
def test_a_model_that_cannot_judge_a_draft_is_refused_with_the_reason(opened: Callable[..., LlamaSession], name: str, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"{name}-0\.gguf: .*{reason}.*; choose "):
        opened(name)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["expert", "drafter"])
@pytest.mark.parametrize("name", WORKING)
def test_150_blocks_with_random_rejections_leave_the_memory_true(opened: Callable[..., LlamaSession], name: str, role: str) -> None:
    session, fresh = opened(name, SNAPSHOTS if role == "expert" else 0), opened(name, 0)
    rng = np.random.default_rng(1)
    text = rng.integers(0, N_VOCAB, 40).tolist()
    for block in range(150):
        session.roll_back(min(len(session.tokens), len(text) - 1))
        draft = rng.integers(0, N_VOCAB, rng.integers(0, 13)).tolist()
        if role == "expert":
            row = session.extend(text[len(session.tokens) :] + draft, len(draft) + 1)[-1].copy()
        else:
            for drafted in range(len(draft) + 1):
                row = session.extend((text + draft[:drafted])[len(session.tokens) :], 1)[0].copy()
        if block % 25 == 24:
            fresh.roll_back(0)
            assert_same(row, fresh.extend(text + draft, 1)[0])
        text += [*draft[: rng.integers(0, len(draft) + 1)], int(rng.integers(0, N_VOCAB))]
    assert session.rollbacks.replayed < 12 * 150, "what is read again does not grow with the text"


steps = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(0, 50)), min_size=2, max_size=10)


@pytest.mark.slow
@pytest.mark.parametrize("n_snapshots", [0, 2, SNAPSHOTS])
@pytest.mark.parametrize("name", ["mamba2-dense", "falcon-h1-dense", "qwen35-dense", "lfm2-dense"])
def test_any_reads_and_rollbacks_give_the_rows_of_a_straight_read(opened: Callable[..., LlamaSession], name: str, n_snapshots: int) -> None:
    session, fresh = opened(name, n_snapshots, 512), opened(name, 0, 512)

    @given(steps)
    @settings(max_examples=20, deadline=None)
    def holds(steps: list[tuple[int, int, int]]) -> None:
        session.roll_back(0)
        for n, (length, keep, back) in enumerate(steps):
            session.extend([(7 * n + 3 * i) % N_VOCAB for i in range(length)], min(keep, length))
            session.roll_back(max(0, len(session.tokens) - back))
            session.roll_back(max(0, len(session.tokens) - back // 3))
        before = list(session.tokens)
        rows = session.extend([5, 6, 7], 3)
        fresh.roll_back(0)
        for row, expected in zip(rows, fresh.extend([*before, 5, 6, 7], 3)):
            assert_same(row, expected)

    holds()


@pytest.mark.parametrize("name", sorted(SNAPSHOTTED))
def test_copies_of_timelines_that_share_a_context_can_be_made_beside_snapshots(written: Callable[..., Path], name: str) -> None:
    """Their states lie in changing pieces. A copy on the device then ended the process: "not enough space in the buffer"."""
    model = LlamaModel(written(name))
    context = LlamaContext(model, n_ctx=512, n_threads=1, n_timelines=2)
    sessions, rng = [LlamaSession(context), LlamaSession(context)], np.random.default_rng(1)
    for _ in range(150):
        session = sessions[rng.integers(2)]
        session.roll_back(max(10, len(session.tokens) - int(rng.integers(20))) if 10 < len(session.tokens) < 480 else 0)
        session.extend(rng.integers(0, N_VOCAB, rng.integers(1, 13)).tolist(), 1)
    assert min(session.rollbacks.saved for session in sessions) > 10
    context.close()
    model.close()


@pytest.mark.parametrize("name", sorted(SNAPSHOTTED))
def test_snapshots_reach_no_further_back_than_the_last_batch(opened: Callable[..., LlamaSession], name: str) -> None:
    session, fresh = opened(name), opened(name, 0)
    session.extend([*range(20)], 1)
    session.extend([20, 21, 22, 23], 4)
    session.extend([24, 25, 26], 3)
    session.roll_back(22)
    assert_same(session.extend([60], 1)[0], fresh.extend([*range(22), 60], 1)[0])
    session.extend([61, 62, 63], 3)
    session.roll_back(25)
    session.roll_back(24)
    fresh.roll_back(0)
    assert_same(session.extend([70], 1)[0], fresh.extend([*range(22), 60, 61, 70], 1)[0])


@pytest.mark.parametrize("name", ["llama-dense", "mamba2-dense", "lfm2-dense", "qwen35-dense", "falcon-h1-dense"])
def test_a_state_that_was_saved_after_a_rollback_can_be_restored(opened: Callable[..., LlamaSession], name: str) -> None:
    session, other, fresh = opened(name), opened(name), opened(name, 0)
    session.extend([*range(30)], 1)
    session.extend([30, 31, 32, 33], 4)
    session.roll_back(32)
    saved = session.save_state()
    assert saved.tokens == tuple(range(len(saved.tokens)))
    assert 30 <= len(saved.tokens) <= 32
    other.extend([9, 9, 9], 1)
    other.restore_state(saved)
    expected = fresh.extend([*range(32), 60, 61], 2).copy()
    for each, missing in ((session, []), (other, [*range(len(saved.tokens), 32)])):
        for row, straight in zip(each.extend([*missing, 60, 61], 2), expected):
            assert_same(row, straight)
    other.restore_state(saved._replace(tokens=(), state=b""))
    assert other.tokens == []


@pytest.mark.parametrize("name", ["llama-dense", "mamba2-dense", "qwen35-dense", "falcon-h1-dense"])
def test_a_failed_evaluation_leaves_the_text_as_it_was(
    opened: Callable[..., LlamaSession], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    session, fresh = opened(name), opened(name)
    session.extend([*range(20)], 1)
    session.roll_back(18)
    for fails_after in (False, True):
        with monkeypatch.context() as patch:
            real = llama_cpp.llama_decode
            patch.setattr(llama_cpp, "llama_decode", lambda *batch, real=real, run=fails_after: (run and real(*batch)) or -3)
            with pytest.raises(SessionError, match="llama_decode returned -3"):
                session.extend([50, 51, 52], 3)
        assert session.tokens == [*range(18)]
    for row, expected in zip(session.extend([60, 61], 2), fresh.extend([*range(18), 60, 61], 2)):
        assert_same(row, expected)


@pytest.mark.parametrize("fails", ["llama_state_seq_get_data_ext", "llama_state_seq_set_data_ext", "llama_memory_seq_rm"])
def test_llama_cpp_refusing_a_copy_is_an_error(opened: Callable[..., LlamaSession], monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    session = opened("mamba2-dense")
    session.extend([*range(20)], 1)
    session.extend([20, 21, 22], 1)
    session.roll_back(21)

    def read_and_roll_back() -> None:
        for _ in range(3):
            session.extend([30] * 12, 1)
            session.roll_back(len(session.tokens) - 1)

    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, fails, lambda *_: 0)
        with pytest.raises(SessionError, match=r"mamba2-dense-0\.gguf: llama\.cpp cannot .*load the pair again"):
            read_and_roll_back()
    fresh = opened("mamba2-dense")
    saved = list(session.tokens)
    assert_same(session.extend([60], 1)[0], fresh.extend([*saved, 60], 1)[0])


class Toy:
    """A context whose rows depend on all that was read; ``honest`` rollbacks forget what is dropped, others only claim it."""

    def __init__(self, knows: Callable[[list[int], int], list[int]] = lambda read, at: read[: at + 1]) -> None:
        self.model = SimpleNamespace(path="toy.gguf", n_vocab=50)
        self.n_ctx, self.rollback, self.read, self.knows = 64, None, [], knows

    def open(self) -> Timeline:
        self.read = []
        return Timeline(0, 50)

    def release(self, timeline: Timeline) -> None:
        pass

    def evaluate(self, parts: list[Part]) -> list[np.ndarray]:
        (_, tokens, keep), start = parts[0], len(self.read)
        self.read = self.read + tokens
        known = [self.knows(self.read, at) for at in range(start, len(self.read))]
        return [np.array([np.random.default_rng(each).normal(size=50) for each in known[-keep:]])]

    def drop(self, timeline: Timeline, length: int) -> None:
        if self.rollback.honest:
            del self.read[length:]


LIAR, HONEST = SimpleNamespace(name="liar", honest=False), SimpleNamespace(name="honest", honest=True)


def test_a_memory_that_only_claims_to_roll_back_is_refused() -> None:
    toy = Toy()
    choose_rollback(toy, [LIAR, HONEST])
    assert toy.rollback is HONEST
    with pytest.raises(ModelLoadError, match=r"^toy\.gguf: its memory cannot roll back .*liar.*; choose another model"):
        choose_rollback(toy, [LIAR])


def test_rows_that_depend_on_later_tokens_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="cannot be scored"):
        choose_rollback(Toy(knows=lambda read, at: read), [HONEST])


def pair_of(written: Callable[..., Path], name: str) -> sc.Runtime:
    return sc.load(drafter=written(name, OFF), expert=written(name), n_threads=1, n_ctx=2048, profile=False)


PROMPT = [*range(1, 60)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH_WAY)
def test_strict_is_the_expert_alone_at_temperature_0(written: Callable[..., Path], name: str) -> None:
    with pair_of(written, name) as runtime:
        alone = runtime.generate(PROMPT, rule="strict", temperature=0, block_size=0, max_tokens=40)
        for block_size in (1, 4, 12):
            strict = runtime.generate(PROMPT, rule="strict", temperature=0, block_size=block_size, max_tokens=40)
            assert strict.token_ids == alone.token_ids
            assert (strict.stats.replayed > 0) == (name in COPIED | SNAPSHOTTED)
    assert len(set(alone.token_ids)) > 1


def through_the_quantiles(targets: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Eight boxes of each target, from its most probable tokens down: how often a token fell into each, and how often it should have."""
    order = np.argsort(-targets, axis=1)
    mass = np.take_along_axis(targets, order, axis=1)
    boxes = np.minimum((8 * (np.cumsum(mass, axis=1) - mass)).astype(int), 7)
    expected = np.array([mass[boxes == box].sum() for box in range(8)])
    ranks = np.argmax(order == np.array(tokens)[:, None], axis=1)
    return np.stack([np.bincount(boxes[np.arange(len(tokens)), ranks], minlength=8), expected])


def straight_rows(path: Path, tokens: list[int]) -> np.ndarray:
    """The row before each of the tokens, which follow the prompt. [len(tokens), N_VOCAB]"""
    model = LlamaModel(path)
    session = LlamaSession(LlamaContext(model, n_ctx=2048, n_threads=1))
    pieces = [session.extend(PROMPT, 1).copy()]
    pieces += [session.extend(tokens[at : at + 50], len(tokens[at : at + 50])).copy() for at in range(0, len(tokens), 50)]
    session.context.close()
    model.close()
    return np.concatenate(pieces)[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["strict", "token_v3:0.3"])
@pytest.mark.parametrize("name", WORKING)
def test_every_token_is_drawn_from_the_target_on_every_architecture(written: Callable[..., Path], name: str, rule: str) -> None:
    """One long text at temperature 1, and what both models make of it when they read it straight through."""
    with pair_of(written, name) as runtime:
        reply = runtime.generate(PROMPT, rule=rule, temperature=1, block_size=4, max_tokens=600, seed=3)
    rows = [straight_rows(written(name, off), list(reply.token_ids)) for off in (OFF, 0.0)]
    targets = sc.target_probs(rule, *rows)
    bonus = np.array([token.origin == "bonus" for token in reply.tokens])
    targets[bonus] = softmax(rows[1][bonus].astype(float))
    observed, expected = through_the_quantiles(targets, list(reply.token_ids))
    assert reply.stats.rejected > 20
    assert reply.stats.bonus > 5
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4 / len(WORKING)


def counted(patch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches from now on."""
    sizes: list[int] = []
    real = llama_cpp.llama_decode
    patch.setattr(llama_cpp, "llama_decode", lambda context, batch: sizes.append(batch.n_tokens) or real(context, batch))
    return sizes


@pytest.mark.slow
def test_what_is_read_again_is_counted_and_nothing_else_is(written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llama-dense", "falcon-h1-dense"):
        with pair_of(written, name) as runtime:
            with monkeypatch.context() as patch:
                sizes = counted(patch)
                reply = runtime.generate(PROMPT, rule="strict", temperature=1, block_size=4, max_tokens=80, seed=1)
            both_models_read = 2 * (len(PROMPT) - 1) + reply.stats.drafted + 2 * reply.stats.tokens
            assert abs(sum(sizes) - reply.stats.replayed - both_models_read) <= 2 * reply.stats.drafted
            assert (reply.stats.checkpoints > 0) == (reply.stats.replayed > 0) == (name != "llama-dense")


def test_a_prompt_that_begins_alike_is_read_again_only_from_the_last_copy(written: Callable[..., Path]) -> None:
    with pair_of(written, "falcon-h1-dense") as runtime:
        first = runtime.generate(PROMPT, rule="strict", temperature=0, block_size=4, max_tokens=30)
        longer = [*PROMPT, *first.token_ids, 7, 8]
        follows = runtime.generate(longer, rule="strict", temperature=0, block_size=4, max_tokens=10)
        assert len(PROMPT) <= follows.stats.cached_tokens < len(longer)
        again = runtime.generate(PROMPT, rule="strict", temperature=0, block_size=4, max_tokens=30)
        assert again.stats.cached_tokens >= len(PROMPT) - 5
        assert again.token_ids == first.token_ids
        other = runtime.generate([9, *PROMPT], rule="strict", temperature=0, block_size=4, max_tokens=5)
        assert other.stats.cached_tokens == 0


def test_batches_are_not_padded_where_padding_cannot_be_dropped(opened: Callable[..., LlamaSession], tmp_path: Path) -> None:
    recurrent = opened("mamba2-dense")
    recurrent.context.pad_batches({3: 8})
    assert recurrent.context.padding == {}
    model = LlamaModel(textless_model(tmp_path / "plain.gguf"))
    context = LlamaContext(model, n_ctx=64, n_threads=1)
    context.pad_batches({3: 8})
    assert context.padding == {3: 8}
    context.close()
    model.close()
