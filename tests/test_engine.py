"""Requests in turn: who is answered when, what each gets, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

import speccascade_local as sc
from speccascade_local.errors import CatalogError, EngineBusyError, EngineError, EngineTimeoutError, PromptError, SettingError
from speccascade_local.server.engine import Engine
from speccascade_local.settings import Settings

QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]
SHORT = Settings(max_tokens=12, rule="strict", block_size=3, seed=1)
#: Much longer than any test waits for: broken off, or the test hangs.
PATIENCE_S = 30


@pytest.fixture
def engine(demo: sc.Runtime) -> Iterator[Engine]:
    with Engine({"demo": demo}, queue=8) as engine:
        yield engine


class Gate:
    """A rule that waits at its first block until it is let through, so that a test knows what is being answered."""

    def __init__(self, log: list[str] | None = None, name: str = "gate") -> None:
        self.reached, self.opened, self.blocks = threading.Event(), threading.Event(), 0
        self._log, self._name = [] if log is None else log, name

    def defer(self, evidence):
        if not self.blocks:
            self._log.append(self._name)
        self.blocks += 1
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)
        return evidence.drafter_max < 0.5

    def settings(self, **chosen) -> Settings:
        return Settings(**{"rule": self, "max_tokens": 8, "block_size": 2, "seed": 1, **chosen})


def opened(log: list[str], name: str) -> Settings:
    gate = Gate(log, name)
    gate.opened.set()
    return gate.settings()


def held(engine: Engine, gate: Gate, **chosen) -> sc.server.engine.Job:
    """A job that is being answered until the gate is opened."""
    job = engine.submit("demo", QUESTION, gate.settings(**chosen))
    assert gate.reached.wait(PATIENCE_S)
    return job


def test_a_job_gives_what_the_runtime_gives(engine: Engine, demo: sc.Runtime) -> None:
    job = engine.submit("demo", QUESTION, SHORT)
    chunks = list(job)
    assert list(job) == chunks, "each reading begins with the first"
    assert job.reply().token_ids == demo.chat(QUESTION, **vars(SHORT)).token_ids
    assert chunks[-1].finish_reason is not None
    assert job.wait(PATIENCE_S)
    assert job.done


def test_a_prompt_is_a_text_ids_or_messages(engine: Engine, demo: sc.Runtime) -> None:
    for prompt in ("Once", demo.chat_ids(QUESTION)):
        assert engine.submit("demo", prompt, SHORT).reply().token_ids == demo.generate(prompt, **vars(SHORT)).token_ids


def test_a_seed_is_named_for_every_job(engine: Engine) -> None:
    """Else automatic lengths would look at what other jobs have taught."""
    job = engine.submit("demo", QUESTION, Settings(max_tokens=2))
    assert job.settings.seed == job.reply().seed


@pytest.mark.parametrize(
    ("refused", "error", "says"),
    [
        (lambda engine: engine.submit("other", QUESTION, SHORT), CatalogError, "there are demo"),
        (lambda engine: engine.submit("demo", [], SHORT), PromptError, "empty"),
        (lambda engine: engine.submit("demo", "", SHORT), PromptError, "empty"),
        (lambda engine: engine.submit("demo", [10**9], SHORT), PromptError, "1000000000"),
        (lambda engine: engine.submit("demo", [{"role": 1}], SHORT), PromptError, "message 0"),
        (lambda engine: engine.submit("demo", "a", Settings(rule="never", block_size=0)), SettingError, "neither model"),
        (lambda engine: engine.submit("demo", "a", SHORT, timeout_s=0), SettingError, "timeout_s"),
        (lambda engine: engine.submit("demo", "a", SHORT, timeout_s=float("nan")), SettingError, "timeout_s"),
        (lambda engine: Engine({}), SettingError, "at least one"),
        (lambda engine: Engine(engine.pairs, queue=0), SettingError, "queue"),
    ],
)
def test_bad_input_is_refused_by_the_call_itself(engine: Engine, refused: Callable, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        refused(engine)
    assert engine.counts() == {"demo": (0, 0)}


def test_conversations_take_turns_and_each_keeps_its_order(engine: Engine) -> None:
    gate, log = Gate(), []
    held(engine, gate)
    asked = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), (None, "x"), (None, "y")]
    jobs = [engine.submit("demo", QUESTION, opened(log, name), conversation=who) for who, name in asked]
    assert engine.counts() == {"demo": (1, 7)}
    gate.opened.set()
    for job in jobs:
        assert job.reply().finish_reason
    assert log == ["a1", "b1", "x", "y", "a2", "b2", "a3"]


def test_more_than_may_wait_are_told_when_to_come_back(engine: Engine) -> None:
    gate = Gate()
    held(engine, gate)
    waiting = [engine.submit("demo", QUESTION, SHORT) for _ in range(8)]
    with pytest.raises(EngineBusyError, match="8 requests are waiting") as refused:
        engine.submit("demo", QUESTION, SHORT)
    assert refused.value.retry_after_s >= 1
    waiting[3].cancel()
    replacement = engine.submit("demo", QUESTION, SHORT)
    gate.opened.set()
    assert replacement.reply().finish_reason
    assert [job.wait(PATIENCE_S) for job in waiting] == [True] * 8


def test_a_job_that_waits_is_cancelled_at_once(engine: Engine) -> None:
    gate = Gate()
    running = held(engine, gate)
    waiting = engine.submit("demo", QUESTION, SHORT)
    waiting.cancel()
    assert waiting.done
    assert list(waiting) == []
    with pytest.raises(sc.SessionError, match="cancelled"):
        waiting.reply()
    gate.opened.set()
    assert running.reply().finish_reason


def test_a_running_job_is_cancelled_within_one_block(engine: Engine) -> None:
    gate = Gate()
    running = held(engine, gate, max_tokens=400)
    running.cancel()
    assert list(running) == [], "who reads does not wait for the block"
    assert not running.done
    gate.opened.set()
    assert running.wait(PATIENCE_S)
    assert running.error is None
    assert gate.blocks <= 2  # as many as are asked about the two tokens of one draft
    assert engine.submit("demo", QUESTION, SHORT).reply().finish_reason


@pytest.mark.parametrize("waits", [True, False])
def test_time_is_up_for_a_job(engine: Engine, waits: bool) -> None:
    gate, other = Gate(), Gate()
    if waits:
        held(engine, other)
    job = engine.submit("demo", QUESTION, gate.settings(), timeout_s=0.05)
    with pytest.raises(EngineTimeoutError, match=r"0\.05 s"):
        list(job)
    assert job.done or not waits
    for each in (gate, other):
        each.opened.set()
    assert job.wait(PATIENCE_S)
    with pytest.raises(EngineTimeoutError):
        job.reply()


def test_a_job_that_fails_says_why_and_hurts_nobody(engine: Engine) -> None:
    class Broken:
        def defer(self, evidence):
            raise RuntimeError("on purpose")

    failing = engine.submit("demo", QUESTION, Settings(rule=Broken(), block_size=2, seed=1))
    after = engine.submit("demo", QUESTION, SHORT)
    with pytest.raises(SettingError, match="on purpose"):
        failing.reply()
    assert after.reply().finish_reason


def test_closing_finishes_what_it_can_and_ends_the_rest(demo: sc.Runtime) -> None:
    engine, gate = Engine({"demo": demo}), Gate()
    running, waiting = held(engine, gate, max_tokens=400), engine.submit("demo", QUESTION, SHORT)
    closing = threading.Thread(target=engine.close, args=(0.01,))
    closing.start()
    with pytest.raises(EngineError, match="still waiting"):
        waiting.reply()
    with pytest.raises(EngineError, match="was not finished"):
        running.reply()
    gate.opened.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("answers of")]
    with pytest.raises(EngineError, match="closing"):
        engine.submit("demo", QUESTION, SHORT)
    engine.close()


def test_closing_lets_an_answer_finish(demo: sc.Runtime) -> None:
    engine, gate = Engine({"demo": demo}), Gate()
    running = held(engine, gate)
    gate.opened.set()
    engine.close(PATIENCE_S)
    assert running.reply().finish_reason


def test_an_event_loop_reads_jobs_and_cancels_those_it_leaves(engine: Engine, demo: sc.Runtime) -> None:
    async def all_of() -> list[sc.Chunk]:
        return [chunk async for chunk in engine.submit("demo", QUESTION, SHORT)]

    async def first_of(job) -> None:
        async for _ in job:
            break

    gate = Gate()
    gate.opened.set()
    asked = demo.chat(QUESTION, **vars(SHORT))
    assert sc.Reply.of(asyncio.run(all_of())).token_ids == asked.token_ids
    left = engine.submit("demo", QUESTION, gate.settings(max_tokens=400))
    asyncio.run(first_of(left))
    assert left.wait(PATIENCE_S)
    assert left.cancelled or left.reply().finish_reason  # the engine may have been done before the reader went
