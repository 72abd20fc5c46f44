"""The engine: the order of requests, their replies, and how they end."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_architectures import write_architecture
from toy_contexts import toy_profile, toy_runtime

import speccascade_local as sc
from speccascade_local.common.errors import CatalogError, EngineBusyError, EngineError, EngineTimeoutError, PromptError, SettingError
from speccascade_local.models import catalog
from speccascade_local.runtime.settings import Settings
from speccascade_local.server.engine import Engine, Job
from speccascade_local.tokens import grammar

QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]
SHORT = Settings(max_tokens=12, rule="strict", block_size=3, seed=1)
#: Much longer than any test waits, unless it hangs.
PATIENCE_S = 30


@pytest.fixture(scope="module")
def pair() -> Iterator[sc.Runtime]:
    with sc.load(n_threads=1, timelines=4) as runtime:
        yield runtime


@pytest.fixture
def engine(pair: sc.Runtime) -> Iterator[Engine]:
    """One job at a time, so that the order is clear."""
    with Engine({"demo": pair}, queue=8) as engine:
        yield engine


class Gate:
    """A rule that waits in its first block until it is opened, so that a test knows which job runs."""

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


def submit_held(engine: Engine, gate: Gate, **chosen) -> Job:
    """Submit a job that runs until its gate is opened."""
    job = engine.submit("demo", QUESTION, gate.settings(**chosen))
    assert gate.reached.wait(PATIENCE_S)
    return job


def test_a_job_gives_the_same_reply_as_the_runtime(engine: Engine, demo: sc.Runtime) -> None:
    for question in (QUESTION, "Once", demo.chat_ids(QUESTION)):
        job = engine.submit("demo", question, SHORT)
        chunks = list(job)
        assert list(job) == chunks, "every iteration begins with the first chunk"
        asked = demo.chat(question, SHORT) if question is QUESTION else demo.generate(question, SHORT)
        assert job.reply().token_ids == asked.token_ids
        assert chunks[-1].finish_reason is not None
        assert job.wait(PATIENCE_S)
        assert job.done


def test_every_job_has_a_seed(engine: Engine) -> None:
    """Otherwise automatic lengths would depend on other jobs."""
    job = engine.submit("demo", QUESTION, Settings(max_tokens=2))
    assert job.settings.seed == job.reply().seed


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda engine: engine.submit("other", QUESTION, SHORT), CatalogError, "pairs here are demo"),
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
def test_submit_refuses_bad_input(engine: Engine, call: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call(engine)
    assert engine.counts() == {"demo": (0, 0)}


def test_conversations_take_turns_and_each_keeps_its_order(engine: Engine) -> None:
    gate, log = Gate(), []
    submit_held(engine, gate)
    asked = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), (None, "x"), (None, "y")]
    jobs = [engine.submit("demo", QUESTION, opened(log, name), conversation=who) for who, name in asked]
    assert engine.counts() == {"demo": (1, 7)}
    gate.opened.set()
    for job in jobs:
        assert job.reply().finish_reason
    assert log == ["a1", "b1", "x", "y", "a2", "b2", "a3"]


def test_a_full_queue_says_when_to_retry(engine: Engine) -> None:
    gate = Gate()
    submit_held(engine, gate)
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
    running = submit_held(engine, gate)
    waiting = engine.submit("demo", QUESTION, SHORT)
    waiting.cancel()
    assert waiting.done
    assert list(waiting) == []
    assert waiting.queued_s > 0
    with pytest.raises(sc.SessionError, match="cancelled"):
        waiting.reply()
    gate.opened.set()
    waited = running.queued_s
    assert running.reply().finish_reason
    assert running.queued_s == waited, "it no longer waits"


def test_a_running_job_is_cancelled_within_one_block(engine: Engine) -> None:
    gate = Gate()
    running = submit_held(engine, gate, max_tokens=400)
    running.cancel()
    assert list(running) == [], "a reader does not wait for the block"
    assert not running.done
    gate.opened.set()
    assert running.wait(PATIENCE_S)
    assert running.error is None
    assert gate.blocks <= 2  # one for each of the two tokens of a draft
    assert engine.submit("demo", QUESTION, SHORT).reply().finish_reason


@pytest.mark.parametrize("waits", [True, False])
def test_a_job_times_out(engine: Engine, waits: bool) -> None:
    gate, other = Gate(), Gate()
    if waits:
        submit_held(engine, other)
    job = engine.submit("demo", QUESTION, gate.settings(), timeout_s=0.05)
    with pytest.raises(EngineTimeoutError, match=r"0\.05 s"):
        list(job)
    assert job.done or not waits
    for each in (gate, other):
        each.opened.set()
    assert job.wait(PATIENCE_S)
    with pytest.raises(EngineTimeoutError):
        job.reply()


def test_a_failing_job_reports_why_and_affects_no_other(engine: Engine) -> None:
    class Broken:
        def defer(self, evidence):
            raise RuntimeError("on purpose")

    failing = engine.submit("demo", QUESTION, Settings(rule=Broken(), block_size=2, seed=1))
    after = engine.submit("demo", QUESTION, SHORT)
    with pytest.raises(SettingError, match="on purpose"):
        failing.reply()
    assert after.reply().finish_reason


def test_closing_finishes_what_it_can_and_ends_the_rest(pair: sc.Runtime) -> None:
    engine, gate = Engine({"demo": pair}), Gate()
    running, waiting = submit_held(engine, gate, max_tokens=400), engine.submit("demo", QUESTION, SHORT)
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
    assert pair.chat(QUESTION, SHORT).finish_reason, "the pair works alone again"


#: Multiples of four primes: far more grammar states than can be computed.
ENDLESS = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967, 9949, 9941)]}
COLOUR = {"enum": ["red", "blue"]}


def constrained(schema: object, **chosen) -> Settings:
    return Settings(json_schema=schema, max_tokens=12, seed=1, **chosen)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let grammars take longer than any test waits."""
    monkeypatch.setattr(grammar, "COMPILE_S", 600.0)


@pytest.mark.usefixtures("patient")
def test_others_are_answered_while_grammars_are_compiled(engine: Engine) -> None:
    slow = [engine.submit("demo", QUESTION, constrained(ENDLESS)) for _ in range(3)]
    assert engine.submit("demo", QUESTION, SHORT).reply().finish_reason
    assert not any(job.done for job in slow)
    for job in slow:
        job.cancel()
    assert [job.wait(PATIENCE_S) for job in slow] == [True] * 3
    assert engine.submit("demo", QUESTION, constrained(COLOUR)).reply().text in ('"red"', '"blue"')
    assert engine.counts() == {"demo": (0, 0)}


@pytest.mark.usefixtures("patient")
def test_compiling_a_grammar_ends_with_the_timeout_of_its_request(engine: Engine) -> None:
    job = engine.submit("demo", QUESTION, constrained(ENDLESS), timeout_s=0.2)
    with pytest.raises(EngineTimeoutError):
        job.reply()
    assert job.wait(PATIENCE_S)


@pytest.mark.usefixtures("patient")
def test_closing_does_not_wait_for_grammars(pair: sc.Runtime) -> None:
    engine = Engine({"demo": pair})
    job = engine.submit("demo", QUESTION, constrained(ENDLESS))
    engine.close(0.01)
    with pytest.raises(EngineError, match="closing"):
        job.reply()


@pytest.mark.slow
def test_a_grammar_that_cannot_be_used_fails_its_job_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "COMPILE_S", 3.0)
    jobs = [engine.submit("demo", QUESTION, constrained(schema)) for schema in (ENDLESS, {"type": "text"}, COLOUR)]
    with pytest.raises(SettingError, match=r"within 3 seconds"):
        jobs[0].reply()
    with pytest.raises(SettingError, match="Invalid type: text"):
        jobs[1].reply()
    assert jobs[2].reply().text in ('"red"', '"blue"')


def test_an_idle_slot_holds_no_request_and_no_grammar(engine: Engine, pair: sc.Runtime) -> None:
    job = engine.submit("demo", QUESTION, constrained(COLOUR))
    gone, pool = weakref.ref(job), pair.models["expert"].tokenizer.for_grammars
    assert job.reply().text in ('"red"', '"blue"')
    assert job.wait(PATIENCE_S)
    del job
    for _ in range(500):
        if gone() is None and pool._idle:
            return
        time.sleep(0.02)
    raise AssertionError("still held")


def test_jobs_of_a_conversation_keep_their_order_while_one_is_prepared(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, log, prepare = threading.Event(), [], Job.prepare
    monkeypatch.setattr(Job, "prepare", lambda job, runtime: (gate.wait(PATIENCE_S), prepare(job, runtime))[1])
    first = engine.submit("demo", QUESTION, constrained(COLOUR), conversation="a")
    second = engine.submit("demo", QUESTION, opened(log, "second"), conversation="a")
    assert engine.submit("demo", QUESTION, opened(log, "other"), conversation="b").reply().finish_reason
    assert log == ["other"]
    gate.set()
    assert first.reply().text in ('"red"', '"blue"')
    assert second.reply().finish_reason
    assert log == ["other", "second"]


def test_a_pair_in_an_engine_answers_no_other_caller(engine: Engine, pair: sc.Runtime) -> None:
    for call in (lambda: pair.chat(QUESTION), pair.reset, pair.saved_caches, pair.profile, lambda: Engine({"again": pair})):
        with pytest.raises(sc.SessionError, match="answer for an engine"):
            call()
    assert engine.submit("demo", QUESTION, SHORT).reply().finish_reason


def test_closing_lets_a_reply_finish(pair: sc.Runtime) -> None:
    engine, gate = Engine({"demo": pair}), Gate()
    running = submit_held(engine, gate)
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
    asked = demo.chat(QUESTION, SHORT)
    assert sc.Reply.of(asyncio.run(all_of())).token_ids == asked.token_ids
    left = engine.submit("demo", QUESTION, gate.settings(max_tokens=400))
    asyncio.run(first_of(left))
    assert left.wait(PATIENCE_S)
    assert left.cancelled or left.reply().finish_reason  # the engine may be done before the reader leaves


# --------------------------------------------------------------------------- several slots

RULES = ["strict", "token_v3:0.3", "chow:0.4", "never", "token_cascade:0.6", "chow_average:-3"]
PROMPTS = [[5, 9, 2], [5, 9, 2, 7], [11] * 40, [3]]


def ids_alone(runtime: sc.Runtime, asked: list[tuple[list[int], Settings]]) -> list[list[int]]:
    return [runtime.generate(prompt, settings).token_ids for prompt, settings in asked]


def ids_together(runtime: sc.Runtime, asked: list[tuple[list[int], Settings]]) -> list[list[int]]:
    with Engine({"toy": runtime}, slots=4) as engine:
        jobs = [engine.submit("toy", prompt, settings) for prompt, settings in asked]
        return [job.reply().token_ids for job in jobs]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("block_size", [4, "auto"])
def test_each_text_is_what_the_request_gets_alone(demo: sc.Runtime, temperature: float, block_size: int | str) -> None:
    """With exact models only the order could make a difference."""
    runtime = toy_runtime(demo, timelines=4)
    chosen = {"temperature": temperature, "block_size": block_size, "max_tokens": 24}
    asked = [(prompt, Settings(rule=rule, seed=seed, **chosen)) for seed, (rule, prompt) in enumerate(itertools.product(RULES, PROMPTS))]
    asked += [(PROMPTS[0], Settings(rule=rule, seed=3, grammar='root ::= ("ab" | "cd")+ "e"', **chosen)) for rule in RULES]
    alone = ids_alone(runtime, asked)
    before = len(runtime._expert.context.batches)
    assert ids_together(runtime, asked) == alone
    assert ids_together(runtime, asked[::-1]) == alone[::-1]
    assert any(len(batch) > 1 for batch in runtime._expert.context.batches[before:]), "they shared batches"
    assert ids_alone(runtime, asked[:3]) == alone[:3]


def is_equal_up_to_ties(alone: sc.Reply, together: sc.Reply, noise: float) -> bool:
    """Return whether the texts are equal, or first differ where the best two tokens are nearly tied."""
    for one, other in zip(alone.tokens, together.tokens):
        if one.id != other.id:
            assert one.logprobs is not None
            best, second = one.logprobs.top
            return best.logprob - second.logprob < noise
    return len(alone.tokens) == len(together.tokens)


def test_a_real_pair_gives_the_same_texts_too(pair: sc.Runtime) -> None:
    """Up to near ties, which batches of other sizes round differently."""
    settings = Settings(rule="strict", max_tokens=30, block_size=3, seed=0, logprobs=2)
    messages = [[{"role": "user", "content": f"Who is {name}?"}] for name in ("Ada Lovelace", "Mozart", "Voltaire", "Nikola Tesla")]
    alone = [pair.chat(each, settings) for each in messages]
    with Engine({"demo": pair}, slots=4) as engine:
        jobs = [engine.submit("demo", each, settings) for each in messages]
        assert all(is_equal_up_to_ties(one, job.reply(), 0.3) for one, job in zip(alone, jobs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba2-dense", "falcon-h1-dense"])
def test_a_recurrent_pair_answers_several_at_once(tmp_path: Path, name: str) -> None:
    """Their states roll back in another way, timeline by timeline."""
    files = {role: write_architecture(tmp_path / f"{role}.gguf", name, off=off) for role, off in (("drafter", 0.1), ("expert", 0.0))}
    settings = Settings(rule="strict", max_tokens=20, block_size=3, seed=0, logprobs=2)
    prompts = [[n, 7, 3 * n, 5] for n in range(1, 7)]
    with sc.load(**files, n_ctx=256, n_threads=1, timelines=3, profile=False) as runtime:
        runtime._loaded.profile = toy_profile()
        alone = [runtime.generate(prompt, settings) for prompt in prompts]
        with Engine({"tiny": runtime}, slots=3) as engine:
            jobs = [engine.submit("tiny", prompt, settings) for prompt in prompts]
            together = [job.reply() for job in jobs]
    assert sum(reply.stats.rejected for reply in together) > 0, "there was something to roll back"
    assert all(is_equal_up_to_ties(*each, 0.1) for each in zip(alone, together))


def test_a_conversation_continues_in_the_slot_with_its_cache(demo: sc.Runtime) -> None:
    """Also after other requests, and with the generated ids."""
    runtime = toy_runtime(demo, timelines=2)
    settings = Settings(rule="strict", max_tokens=6, block_size=2, seed=1)
    with Engine({"toy": runtime}, slots=2) as engine:
        first = engine.submit("toy", QUESTION, settings, conversation="a")
        answer = first.reply()
        engine.submit("toy", [7] * 9, settings, conversation="b").reply()
        more = [*QUESTION, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "And then?"}]
        second = engine.submit("toy", more, settings, conversation="a")
        assert second.reply().stats.cached_tokens == len(first.prompt.ids) + len(answer.token_ids) - 1
        assert second.prompt.ids[: len(first.prompt.ids) + len(answer.token_ids)] == [*first.prompt.ids, *answer.token_ids]


def test_a_job_takes_the_slot_with_the_longest_shared_prefix_or_the_least_recently_used(demo: sc.Runtime) -> None:
    runtime = toy_runtime(demo, timelines=2)
    settings = Settings(rule="strict", max_tokens=2, block_size=0, seed=1)
    with Engine({"toy": runtime}, slots=2) as engine:
        asked = [engine.submit("toy", [first] * 5, settings, conversation="x") for first in (1, 2, 2, 3, 2, 1)]
        assert [job.reply().stats.cached_tokens for job in asked] == [0, 0, 4, 0, 4, 0]


def test_owners_share_neither_caches_nor_conversations(demo: sc.Runtime) -> None:
    runtime = toy_runtime(demo, timelines=2)
    settings = Settings(rule="strict", max_tokens=4, block_size=2, seed=1)
    with Engine({"toy": runtime}, slots=2) as engine:

        def ask(question, owner, conversation=None) -> tuple[Job, int]:
            job = engine.submit("toy", question, settings, owner=owner, conversation=conversation)
            return job, job.reply().stats.cached_tokens

        assert [ask([5] * 9, owner)[1] for owner in ("a", "b", "a", "b", None)] == [0, 0, 8, 8, 0]
        assert [ask([5] * 9, owner)[1] for owner in ("a", "b", "b")] == [0, 0, 8], "another owner took one of the two slots"
        first, _ = ask(QUESTION, "a", "c")
        said = [*QUESTION, {"role": "assistant", "content": first.reply().text}, {"role": "user", "content": "And then?"}]
        spoken = [*first.prompt.ids, *first.reply().token_ids]
        prompts = {owner: ask(said, owner, "c")[0].prompt.ids[: len(spoken)] for owner in ("b", "a")}
        assert prompts["a"] == spoken
        assert prompts["b"] == runtime.chat_ids(said)[: len(spoken)]


@pytest.mark.slow
def test_owners_do_not_wait_for_each_other_s_conversations(pair: sc.Runtime) -> None:
    gate = Gate()
    with Engine({"demo": pair}, slots=2) as engine:
        running = engine.submit("demo", QUESTION, gate.settings(), conversation="c", owner="a")
        assert gate.reached.wait(PATIENCE_S)
        assert engine.submit("demo", QUESTION, SHORT, conversation="c", owner="b").reply().finish_reason
        gate.opened.set()
        assert running.reply().finish_reason


@pytest.mark.slow
def test_a_slow_rule_blocks_no_other_slot(pair: sc.Runtime) -> None:
    gate = Gate()
    with Engine({"demo": pair}, slots=2) as engine:
        running = submit_held(engine, gate)
        assert engine.submit("demo", QUESTION, SHORT).reply().finish_reason
        gate.opened.set()
        assert running.reply().finish_reason


@pytest.mark.slow
def test_a_client_that_asks_a_lot_leaves_a_slot_and_a_place_to_others(pair: sc.Runtime) -> None:
    with Engine({"demo": pair}, slots=2, queue=4) as engine:
        gate = Gate()
        jobs = [engine.submit("demo", QUESTION, gate.settings(), client="busy")]
        assert gate.reached.wait(PATIENCE_S)
        jobs += [engine.submit("demo", QUESTION, gate.settings(), client="busy") for _ in range(2)]
        with pytest.raises(EngineBusyError, match="2 requests of one client are waiting"):
            engine.submit("demo", QUESTION, SHORT, client="busy")
        assert engine.submit("demo", QUESTION, SHORT, client="other").reply().finish_reason
        gate.opened.set()
        assert all(job.reply().finish_reason for job in jobs)


def test_an_empty_name_is_no_conversation(demo: sc.Runtime) -> None:
    runtime = toy_runtime(demo, timelines=1)
    with Engine({"toy": runtime}) as engine:
        job = engine.submit("toy", QUESTION, Settings(rule="strict", max_tokens=4, block_size=2, seed=1), conversation="")
        assert job.reply().finish_reason
        assert job.conversation is None
        assert not engine._lanes["toy"]._transcripts


def test_a_seed_repeats_an_answer_whatever_was_asked_in_between(demo: sc.Runtime) -> None:
    runtime = toy_runtime(demo, timelines=4)
    seeded = Settings(rule="token_v3:0.3", max_tokens=24, seed=7, temperature=1.0)
    expected = runtime.generate([5, 6], seeded).token_ids
    with Engine({"toy": runtime}, slots=4) as engine:
        others = [engine.submit("toy", [n, 3], Settings(rule="token_v3:0.3", max_tokens=24, temperature=1.0)) for n in range(1, 7)]
        assert engine.submit("toy", [5, 6], seeded).reply().token_ids == expected
        texts = [job.reply() for job in others]
        again = engine.submit("toy", [1, 3], Settings(rule="token_v3:0.3", max_tokens=24, temperature=1.0, seed=texts[0].seed))
        assert again.reply().token_ids == texts[0].token_ids, "also with a seed that the engine chose"


def test_more_slots_than_the_pair_was_loaded_for_are_refused(demo: sc.Runtime) -> None:
    with pytest.raises(sc.SessionError, match="timelines"):
        Engine({"demo": demo}, slots=2)
    with pytest.raises(SettingError, match="slots is 0"):
        Engine({"demo": demo}, slots=0)
    assert demo.chat(QUESTION, SHORT).finish_reason


@pytest.mark.parametrize("small", [False, True])
def test_other_kinds_of_drafters_work_in_slots_too(small: bool) -> None:
    """N-gram copies, with an index for each slot, and a third model."""
    bundled = catalog.bundled_pair()
    settings = Settings(rule="strict", max_tokens=16, block_size=3, seed=0, logprobs=2)
    with sc.load(drafter="ngram", expert=bundled.expert, n_threads=1, timelines=2, profile=False) as runtime:
        runtime._loaded.profile = toy_profile()
        prompts = [runtime.chat_ids([{"role": "user", "content": question}]) for question in ("Who is Mozart?", "What is 3 + 4?")]
        alone = [runtime.generate(prompt, settings) for prompt in prompts]
        with Engine({"pair": runtime}, slots=2) as engine:
            jobs = [engine.submit("pair", prompt, settings) for prompt in prompts]
            assert all(is_equal_up_to_ties(one, job.reply(), 0.3) for one, job in zip(alone, jobs))


def test_cancelled_jobs_do_not_change_the_replies_of_others(demo: sc.Runtime) -> None:
    runtime, chosen = toy_runtime(demo, timelines=4), {"rule": "token_v3:0.3", "block_size": 3, "max_tokens": 10}
    asked = [([n % 7, 3], Settings(seed=n, temperature=1.0, **chosen)) for n in range(48)]
    alone = ids_alone(runtime, asked)
    threads = threading.active_count()
    with Engine({"toy": runtime}, slots=4, queue=48) as engine:
        jobs = [engine.submit("toy", *each, conversation=str(n % 5)) for n, each in enumerate(asked)]
        for job in jobs[::3]:
            next(iter(job))
            job.cancel()
        for n, job in enumerate(jobs):
            assert job.wait(PATIENCE_S)
            if n % 3 or not job.cancelled:
                assert job.reply().token_ids == alone[n]
        assert engine.counts() == {"toy": (0, 0)}
    assert threading.active_count() == threads
