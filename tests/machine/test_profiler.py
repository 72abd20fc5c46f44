"""Measuring and keeping profiles. What was measured is never judged: only that it is there, and what it leaves behind."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_files import textless_model

import speccascade_local as sc
from speccascade_local.decoding.profile import SIZES, Profile
from speccascade_local.llama import model as model_module
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.machine import profile_cache, profiler
from speccascade_local.machine.profile_cache import profile_key, profile_of, read_profile
from speccascade_local.machine.profiler import LESS_DEEP, depths_in, extrapolate, fewest_threads, measure, scale


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("gguf")
    pair = [LlamaModel(textless_model(folder / f"{name}.gguf", seed=seed)) for seed, name in enumerate(("drafter", "expert"))]
    yield SimpleNamespace(drafter=pair[0], expert=pair[1])
    for model in pair:
        model.close()


@pytest.fixture
def open_pair(models: SimpleNamespace, request: pytest.FixtureRequest):
    def opened(n_ctx: int = 96, n_threads: int | None = None) -> tuple[LlamaSession, LlamaSession]:
        sessions = tuple(LlamaSession(LlamaContext(model, n_ctx=n_ctx, n_threads=n_threads)) for model in (models.drafter, models.expert))
        for session in sessions:
            request.addfinalizer(session.close)
        return sessions

    return opened


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "speccascade" / "profiles"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a pair is measured."""
    calls: list[int] = []
    real = profile_cache.measure

    def counted(*arguments, **named) -> Profile:
        calls.append(1)
        return real(*arguments, budget_s=0.01, **named)

    monkeypatch.setattr(profile_cache, "measure", counted)
    return calls


# --------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 16, 17, 22, 40, 96, 159, 160, 161, 600])
def test_every_context_has_a_profile_and_both_sessions_are_as_new_afterwards(open_pair, n_ctx):
    sessions = open_pair(n_ctx)
    tokens = list(range(1, n_ctx + 1))[:12]
    before = [session.extend(tokens, len(tokens)).copy() for session in sessions]
    steps: list[float] = []
    profile = measure(*sessions, budget_s=0.01, on_step=steps.append)
    assert [session.tokens for session in sessions] == [[], []]
    for session, rows in zip(sessions, before):
        np.testing.assert_array_equal(session.extend(tokens, len(tokens)), rows)
    for speed in (profile.drafter, profile.expert):
        usual, *deep = depths_in(n_ctx)
        assert speed.depths[0] == usual
        assert {*speed.depths[1:]} <= {*deep, LESS_DEEP}, "on a busy machine less deep, or not at all"
    assert steps == sorted(steps)
    assert steps[-1] == 1
    assert read_profile(profile.as_dict()) == profile


@pytest.mark.parametrize("n_ctx", [1, 16, 48, 49, 159, 191, 192, 544, 4096])
def test_depths_leave_room_for_what_is_measured(n_ctx):
    depths = depths_in(n_ctx)
    assert len(depths) == (2 if n_ctx >= 192 else 1)
    assert depths[0] < n_ctx
    assert depths[-1] <= 512
    assert len(depths) == 1 or depths[-1] + SIZES[-1] <= n_ctx


def test_threads_named_by_the_user_are_kept(open_pair):
    sessions = open_pair(n_threads=3)
    profile = measure(*sessions, threads=3, budget_s=0.01)
    assert [(speed.threads, speed.batch_threads) for speed in (profile.drafter, profile.expert)] == [(3, 3)] * 2
    assert [(session.context.threads, session.context.batch_threads) for session in sessions] == [(3, 3)] * 2


def test_a_tiny_model_keeps_one_thread(open_pair):
    profile = measure(*open_pair(), budget_s=0.01)
    assert (profile.expert.threads, profile.expert.batch_threads) == (1, 1)


def test_thread_counts_are_chosen_for_single_tokens_and_batches_apart(open_pair, monkeypatch, models):
    monkeypatch.setattr(model_module, "ONE_THREAD_BYTES", 0)
    for model in vars(models).values():
        monkeypatch.setattr(model, "default_threads", 3)
    monkeypatch.setattr(profiler, "physical_cores", lambda: 3)
    tried: list[set[int]] = []

    def third(seconds):
        tried.append(set(seconds))
        return 1 + len(tried) % 2

    monkeypatch.setattr(profiler, "fewest_threads", third)
    sessions = open_pair()
    profile = measure(*sessions, budget_s=0.01)
    assert len(tried) == 4
    assert all(candidates <= {1, 2, 3} for candidates in tried)
    assert (
        (profile.expert.threads, profile.expert.batch_threads) == (2, 1) == (sessions[1].context.threads, sessions[1].context.batch_threads)
    )


def test_the_fewest_threads_that_are_nearly_the_fastest():
    assert fewest_threads({1: 2.0, 2: 1.04, 4: 1.0, 8: 1.0}) == 2
    assert fewest_threads({1: 2.0, 2: 1.06, 4: 1.0}) == 4


def test_an_interruption_leaves_empty_sessions_with_their_own_threads(open_pair):
    sessions = open_pair(n_threads=2)
    count = iter(range(1000))

    def interrupt(_fraction: float) -> None:
        if next(count) == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(*sessions, budget_s=0.01, on_step=interrupt)
    assert [(len(session.tokens), session.context.threads, session.context.batch_threads) for session in sessions] == [(0, 2, 2)] * 2


def test_an_interruption_restores_the_padding(open_pair):
    sessions = open_pair(n_threads=1)
    sessions[1].context.pad_batches({3: 4})

    def interrupt(_fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(*sessions, budget_s=0.01, on_step=interrupt)
    assert [session.context.padding for session in sessions] == [{}, {3: 4}]


def test_what_did_not_fit_is_a_straight_line():
    assert extrapolate({1: 1.0, 2: 3.0})[:4] == (1, 3, 5, 7)
    assert extrapolate({1: 2.0})[:3] == (2, 4, 6)
    assert extrapolate({1: 2.0, 2: 1.0})[2:] == (1,) * 15


def test_a_deeper_cache_is_scaled_from_a_lower_one_and_never_cheaper():
    assert scale([2.0] * 17, {1: 4.0, 8: 2.0, 16: 1.0})[:2] == (4, pytest.approx(2 * (2 - 1 / 7)))
    assert scale([2.0] * 17, {1: 4.0, 8: 2.0, 16: 1.0})[7:] == (2,) * 10


# --------------------------------------------------------------------------- keeping


def test_a_pair_is_measured_once(open_pair, cache, measured):
    first = profile_of(*open_pair())
    assert profile_of(*open_pair()) == first
    assert len(measured) == 1
    (file,) = cache.iterdir()  # and no temporary one beside it
    assert read_profile(json.loads(file.read_text())) == first


def test_refresh_measures_again(open_pair, cache, measured):
    profile_of(*open_pair())
    profile_of(*open_pair(), refresh=True)
    assert len(measured) == 2
    assert len(list(cache.iterdir())) == 1


def test_other_threads_contexts_and_files_have_profiles_of_their_own(open_pair, cache, measured):
    drafter, expert = open_pair()
    for arguments in ((drafter, expert, None), (drafter, expert, 2), (expert, drafter, None), (*open_pair(64), None)):
        profile_of(*arguments[:2], threads=arguments[2])
    assert len(measured) == len(list(cache.iterdir())) == 4


def test_a_context_larger_than_what_is_measured_makes_no_difference(open_pair):
    assert profile_key(*open_pair(600), None) == profile_key(*open_pair(2000), None)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", '{"expert": 1}', "[" * 100_000, "\udcff", "other key"],
    ids=["empty", "half", "null", "foreign", "deep", "bytes", "key"],
)
def test_a_file_that_is_not_this_profile_is_replaced(open_pair, cache, measured, text):
    sessions = open_pair()
    profile = profile_of(*sessions)
    (file,) = cache.iterdir()
    if text == "other key":
        text = json.dumps({**profile.as_dict(), "key": {"cpu": "another"}})
    file.write_bytes(text.encode(errors="surrogateescape"))
    again = profile_of(*sessions)
    assert len(measured) == 2
    assert read_profile(json.loads(file.read_text())) == again


def test_a_folder_in_place_of_the_file_is_no_error(open_pair, cache, measured, caplog):
    sessions = open_pair()
    profile_of(*sessions)
    (file,) = cache.iterdir()
    file.unlink()
    file.mkdir()
    with caplog.at_level(logging.WARNING):
        profile_of(*sessions)
    assert "cannot be written" in caplog.text
    assert list(cache.iterdir()) == [file]


def test_an_unwritable_place_is_no_error(open_pair, cache, measured, caplog):
    cache.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert isinstance(profile_of(*open_pair()), Profile)
    assert "cannot be written" in caplog.text


def test_models_whose_files_are_gone_are_measured_and_not_kept(tmp_path, cache, measured):
    models = [LlamaModel(textless_model(tmp_path / f"{i}.gguf", seed=i)) for i in range(2)]
    sessions = [LlamaSession(LlamaContext(model, n_ctx=32)) for model in models]
    for model in models:
        os.unlink(model.path)
    profile_of(*sessions)
    assert not cache.exists()
    for closable in (*sessions, *models):
        closable.close()


def test_what_was_found_is_applied_to_both_sessions(open_pair, cache):
    sessions = open_pair()
    row = [1.0, 9.0, 9.0, 2.0] + [9.0] * 13
    speed = {"threads": 2, "batch_threads": 3, "depths": [24], "seconds": [row], "prompt_s": 1.0}
    key = profile_key(*sessions, None)
    written = read_profile({"expert": speed, "drafter": speed, "overlap": 0, "key": key, "block_s": 0, "draft_s": 0.5})
    profile_cache._write_file(profile_cache._cache_file(key), written)
    assert profile_of(*sessions) == written
    for session in sessions:
        assert (session.context.threads, session.context.batch_threads) == (2, 3)
        assert session.context._padding == {2: 4, 3: 4}


@pytest.mark.slow
def test_a_runtime_is_profiled_and_answers_as_before(cache, measured):
    with sc.load(n_threads=1) as runtime:
        before = runtime.generate("Who is", max_tokens=12, temperature=0).text
        stream = runtime.stream("Who is", max_tokens=12)
        next(stream)
        profile = runtime.profile()
        assert profile.key["threads"] == 1
        with pytest.raises(sc.SessionError, match="ended by a later call"):
            next(stream)
        assert runtime.generate("Who is", max_tokens=12, temperature=0).text == before
    with pytest.raises(sc.SessionError, match="closed"):
        runtime.profile()


class Beside:
    """Stands for a SessionProfiler: its work alone moves the clock."""

    sizes = range(1, 18)

    def __init__(self, now: list[float], step: float, *, hidden: bool = False, slowed: bool = False) -> None:
        self.now, self.step, self.hidden, self.slowed = now, step, hidden, slowed
        self.shared = False  # whether there has been a second thread

    def typical_s(self, n: int) -> float:
        return 10 * self.step if n > 1 else self.step

    def batch_s(self, n: int) -> float:
        self.now[0] += 10
        return 10.0

    def steps_s(self, n: int) -> float:
        in_pool = threading.current_thread() is not threading.main_thread()
        self.shared |= in_pool
        taken = n * self.step * (2 if self.slowed and self.shared else 1)
        self.now[0] += 0 if in_pool and self.hidden else taken
        return taken


@pytest.mark.parametrize(
    ("drafter", "expected"),
    [({"hidden": True}, 0.0), ({"hidden": False}, 1.0), ({"hidden": True, "slowed": True}, 1.0)],
    ids=["hidden", "one after the other", "hidden, but from then on the first thread is slower too"],
)
def test_overlap_counts_what_a_second_thread_costs_the_first(monkeypatch, drafter, expected):
    now = [0.0]
    monkeypatch.setattr(profiler, "perf_counter", lambda: now[0])
    budget = profiler.Budget(1e9, lambda _: None)
    assert profiler._overlap(budget, Beside(now, 1.0, **drafter), Beside(now, 1.0)) == pytest.approx(expected)
