"""Replies for an event loop and for threads: nothing is decoded where the loop runs, and everything can be cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from toy_contexts import ToyContext, toy_runtime

import speccascade_local as sc
from speccascade_local.common.errors import EngineTimeoutError
from speccascade_local.runtime.async_runtime import AsyncRuntime
from speccascade_local.runtime.runtime import Runtime

QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]
SETTINGS = {"rule": "strict", "block_size": 3, "seed": 1, "max_tokens": 12}
PATIENCE_S = 30


@pytest.fixture
def runtime(demo: sc.Runtime) -> Runtime:
    return toy_runtime(demo)


@pytest.fixture
def asked(runtime: Runtime) -> Iterator[AsyncRuntime]:
    with AsyncRuntime(runtime) as asked:
        yield asked


def expert(runtime: Runtime) -> ToyContext:
    return runtime._expert.context


@pytest.mark.parametrize("question", [QUESTION, "Once", [5, 6, 7]])
def test_chunks_are_those_of_the_runtime(runtime: Runtime, question: object) -> None:
    async def all_of() -> tuple[list[sc.Chunk], sc.Reply]:
        async with AsyncRuntime(runtime) as asked:
            return [chunk async for chunk in asked.stream(question, **SETTINGS)], await asked.generate(question, **SETTINGS)

    chunks, reply = asyncio.run(all_of())
    expected = (runtime.chat if question is QUESTION else runtime.generate)(question, **SETTINGS).token_ids
    assert sc.Reply.of(chunks).token_ids == reply.token_ids == expected


def test_the_loop_goes_on_while_a_model_computes(runtime: Runtime, asked: AsyncRuntime) -> None:
    """The model does not finish its batch before the loop has ticked: if anything waited for it in the loop, this would never end."""
    context, ticks = expert(runtime), 0

    async def both() -> sc.Reply:
        nonlocal ticks
        answering = asyncio.ensure_future(asked.generate("Once", **SETTINGS))
        await asyncio.to_thread(context.entered.wait, PATIENCE_S)
        for _ in range(20):
            await asyncio.sleep(0)
            ticks += 1
        assert not answering.done()
        context.leave.set()
        return await answering

    context.leave.clear()
    assert asyncio.run(both()).finish_reason
    assert ticks == 20
    assert context.decoders
    assert threading.get_ident() not in context.decoders, "nothing is evaluated in the loop's own thread"


def test_several_tasks_wait_for_one_another(asked: AsyncRuntime) -> None:
    async def both() -> list[sc.Reply]:
        return await asyncio.gather(*(asked.generate([n, n], **SETTINGS) for n in (3, 4, 3)))

    one, other, again = asyncio.run(both())
    assert one.token_ids == again.token_ids != other.token_ids


def test_a_task_that_is_cancelled_ends_the_decoding(runtime: Runtime, asked: AsyncRuntime) -> None:
    context = expert(runtime)

    async def left() -> None:
        answering = asyncio.ensure_future(asked.generate("Once", **SETTINGS))
        await asyncio.to_thread(context.entered.wait, PATIENCE_S)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        context.leave.set()

    context.leave.clear()
    asyncio.run(left())
    asked.close()
    assert len(context.batches) == 1, "the block that was being made is the last one"
    assert runtime.generate("Once", **SETTINGS).finish_reason


def test_a_thread_gets_chunks_by_callback_and_cancels(asked: AsyncRuntime) -> None:
    heard: list[sc.Chunk] = []

    def listen(chunk: sc.Chunk) -> None:
        heard.append(chunk)
        if len(heard) == 2:
            pending.cancel()

    ready = threading.Event()
    pending = asked.start("Once", on_chunk=lambda chunk: (ready.wait(PATIENCE_S), listen(chunk))[1], **SETTINGS)
    ready.set()
    assert pending.wait(PATIENCE_S)
    assert len(heard) == 2
    assert pending.reply().finish_reason is None
    assert pending.reply().token_ids == sc.Reply.of(heard).token_ids


def test_a_callback_that_fails_ends_the_reply_and_not_the_thread(asked: AsyncRuntime) -> None:
    def fail(_chunk: sc.Chunk) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        asked.start("Once", on_chunk=fail, **SETTINGS).reply()
    assert asked.start("Once", **SETTINGS).reply().finish_reason


def test_what_is_wrong_is_told(asked: AsyncRuntime, runtime: Runtime) -> None:
    with pytest.raises(sc.SettingError, match="temperature"):
        asked.start("Once", temperature=-1)
    with pytest.raises(sc.PromptError, match="empty"):
        asyncio.run(asked.generate(""))
    expert(runtime).leave.clear()
    with pytest.raises(EngineTimeoutError, match=r"0\.01 s"):
        asyncio.run(asked.generate("Once", timeout_s=0.01, **SETTINGS))
    expert(runtime).leave.set()


def test_closing_cancels_what_waits(runtime: Runtime) -> None:
    expert(runtime).leave.clear()
    asked = AsyncRuntime(runtime)
    first, second = (asked.start("Once", **SETTINGS) for _ in range(2))
    assert expert(runtime).entered.wait(PATIENCE_S)
    closing = threading.Thread(target=asked.close)
    closing.start()
    assert list(first) == list(second) == []
    expert(runtime).leave.set()
    closing.join(PATIENCE_S)
    assert first.done
    assert second.done
    assert len(expert(runtime).batches) == 1
    with pytest.raises(sc.SessionError, match="closed"):
        asked.start("Once")
    asked.close()
