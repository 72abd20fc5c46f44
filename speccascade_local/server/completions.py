"""A request for text, from its body to the answer: checked, put into the engine's queue, read block by block, counted.

Until the first block is there nothing is sent, so whatever is refused has a status of its own. Knows nothing of who may ask, and of models
only what the engine gives.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..common.errors import ContextOverflowError
from ..runtime.reply import Chunk, Reply
from ..runtime.runtime import Question, Runtime
from ..runtime.settings import Settings
from .engine import Engine, Job
from .errors import RefusedError, refusal_of
from .http.large_requests import LARGE, LargeRequests
from .metrics import Metrics
from .openai.fields import Route
from .openai.messages import ChatMessage
from .openai.requests import ChatRequest, CompletionRequest, SamplingFields
from .openai.responses import ResponseForm
from .openai.tool_calls import CallReader
from .openai.translation import translate
from .request_settings import ServedPairs, nth, settings_of
from .streams import EventStream, run_while_connected

#: A text of more characters than this for each token of the context is refused without being read.
CHARACTERS_PER_TOKEN = 64
#: Objects and lists in a body; a bracket within a text counts too.
MAX_VALUES = 200_000
Model = TypeVar("Model", bound=BaseModel)
Read = TypeVar("Read")
_ROUTES: dict[type[BaseModel], Route] = {ChatRequest: "chat", CompletionRequest: "completions"}


async def read_request(request: Request, model: type[Model], read: Callable[[Model], Read], large: LargeRequests) -> Read:
    """What ``read``, in a thread, makes of the checked body. Raises RefusedError, pydantic's ValidationError, and what ``read`` raises."""
    body = await request.body()
    if len(body) < LARGE:
        return await asyncio.to_thread(read, _check(body, model))
    return await large.run(lambda: read(_check(body, model)))


def _check(body: bytes, model: type[Model]) -> Model:
    """Of a name that stands twice in an object the last one counts."""
    values = body.count(b"{") + body.count(b"[")  # before they take memory, and time of the garbage collector's
    if values > MAX_VALUES:
        raise RefusedError(400, f"the body has {values:,} objects and lists; {MAX_VALUES:,} are read", code="invalid_value")
    try:
        given = pydantic_core.from_json(body.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(given, dict):
        raise RefusedError(400, f"the body is a JSON {type(given).__name__}; it must be an object", code="invalid_json")
    if model not in _ROUTES:
        return model.model_validate(given)
    known = translate(given, _ROUTES[model])
    try:
        return model.model_validate(known.fields)
    except ValidationError as error:
        raise known.refusal(refusal_of(error)) from None


@dataclass(frozen=True)
class QueuedRequest:
    """A checked request, ready for the queue."""

    pair: str
    question: Question
    settings: Settings
    form: ResponseForm
    choices: int
    conversation: str | None
    streams: bool
    tells_usage: bool
    cache_salt: str | None
    owner: Hashable = None
    client: Hashable = None


class Completions:
    """The routes that answer with text. timeout_s: for each request, waiting included."""

    def __init__(self, engine: Engine, offer: ServedPairs, metrics: Metrics, timeout_s: float | None, large: LargeRequests) -> None:
        self._engine, self._offer, self._metrics, self._timeout_s, self._large = engine, offer, metrics, timeout_s, large

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        return await self._answer(request, await read_request(request, ChatRequest, self._asked_chat, self._large))

    async def complete(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        return await self._answer(request, await read_request(request, CompletionRequest, self._asked_completion, self._large))

    # ------------------------------------------------------------------ what is asked

    def _asked_chat(self, wanted: ChatRequest) -> QueuedRequest:
        name, runtime, rule = self._offer.asked(wanted.model)
        question: Question = messages_of(wanted.messages)
        tools = [tool.model_dump(exclude_none=True) for tool in wanted.tools or () if wanted.tool_choice != "none"]
        require_room(wanted.characters, runtime)
        settings = settings_of(wanted, runtime, self._offer, rule)
        if tools and not runtime.takes_tools:
            raise RefusedError(400, f"the chat template of {name} has no place for tools; leave them out", param="tools")
        if tools or wanted.continues is False:
            question = runtime.chat_ids(messages_of(wanted.messages), tools, continues=wanted.continues is not False)
        top = (wanted.top_logprobs or 0) if wanted.logprobs else None
        asked = self._asked(wanted, name, question, settings, "chat", top)
        return replace(asked, form=replace(asked.form, tools=frozenset(tool["function"]["name"] for tool in tools)))

    def _asked_completion(self, wanted: CompletionRequest) -> QueuedRequest:
        name, runtime, rule = self._offer.asked(wanted.model)
        require_room(len(wanted.prompt) if isinstance(wanted.prompt, str) else 0, runtime)
        return self._asked(wanted, name, wanted.prompt, settings_of(wanted, runtime, self._offer, rule), "text", wanted.logprobs)

    def _asked(
        self, wanted: SamplingFields, name: str, question: Question, settings: Settings, kind: Any, top: int | None
    ) -> QueuedRequest:
        piece = self._offer.pairs[name].models["expert"].tokenizer.piece
        return QueuedRequest(
            name,
            question,
            settings,
            ResponseForm(kind, wanted.model or name, wanted.cascade, settings.block_size, lambda token: piece(token, special=True), top),
            wanted.n or 1,
            wanted.prompt_cache_key or None,
            bool(wanted.stream),
            bool(wanted.stream_options and wanted.stream_options.include_usage),
            wanted.cache_salt,
        )

    # ------------------------------------------------------------------ what is answered

    async def _answer(self, request: Request, asked: QueuedRequest) -> Response:
        asked = replace(asked, owner=request.state.owner(asked.cache_salt, asked.conversation), client=request.state.client)
        if not asked.streams:
            replies = await run_while_connected(request.receive, self._replies(asked))
            return await asyncio.to_thread(lambda: JSONResponse(asked.form.whole(replies)))
        events = self._events(asked)
        try:
            first = await run_while_connected(request.receive, anext(events))
        except BaseException:
            await events.aclose()
            raise
        return EventStream(first, events)

    async def _replies(self, asked: QueuedRequest) -> list[Reply]:
        begun, replies = time.monotonic(), []
        for index in range(asked.choices):
            async with self._blocks(asked, index, begun) as blocks:
                replies.append(await asyncio.to_thread(Reply.of, [chunk async for chunk in blocks]))
        return replies

    async def _events(self, asked: QueuedRequest) -> AsyncGenerator[Mapping[str, Any], None]:
        """The first of them comes with the first block. What takes longer the longer the answer is runs in a thread, not in the loop."""
        begun, stats, form = time.monotonic(), [], asked.form
        for index in range(asked.choices):
            read: list[Chunk] = []
            reader, offset = CallReader(form.tools), 0
            async with self._blocks(asked, index, begun) as blocks:
                async for chunk in blocks:
                    if not read and form.kind == "chat":
                        yield form.first(index)
                    made = partial(form.part, index, chunk, offset, reader)
                    event = await asyncio.to_thread(made) if form.tools else made()  # a call may go back over many blocks
                    read.append(chunk)
                    offset += len(chunk.text)
                    yield event if chunk.finish_reason is None else await asyncio.to_thread(form.ended, event, read)
            stats.append(read[-1].stats)
        if asked.tells_usage:
            yield form.usage(stats)

    @asynccontextmanager
    async def _blocks(self, asked: QueuedRequest, index: int, begun: float) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The blocks of one choice; whoever leaves early ends their making."""
        left = None if self._timeout_s is None else max(0.001, self._timeout_s - (time.monotonic() - begun))
        submitted = time.monotonic()
        job = await self._submitted(asked, index, left)
        try:
            async with aclosing(self._counted(asked.pair, job, submitted)) as blocks:
                yield blocks
        finally:
            if not job.done:
                job.cancel()

    async def _counted(self, pair: str, job: Job, begun: float) -> AsyncGenerator[Chunk, None]:
        first_s = 0.0
        async for chunk in job:
            first_s = first_s or time.monotonic() - begun
            if chunk.finish_reason is not None:  # the last chunk alone has the whole answer's counts
                self._metrics.answered(pair, job, Reply.of([chunk]), first_s, time.monotonic() - begun)
            yield chunk

    async def _submitted(self, asked: QueuedRequest, index: int, timeout_s: float | None) -> Job:
        """In a thread, because a template is rendered there. Nobody waits for what a cancelled request put into the queue."""
        submitting = asyncio.ensure_future(
            asyncio.to_thread(
                self._engine.submit,
                asked.pair,
                asked.question,
                nth(asked.settings, index),
                conversation=asked.conversation,
                timeout_s=timeout_s,
                owner=asked.owner,
                client=asked.client,
            )
        )
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_withdrawn)
            raise


def _withdrawn(submitting: asyncio.Future[Job]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()


def messages_of(given: list[ChatMessage]) -> list[dict[str, Any]]:
    """As the chat template takes them; a developer is what templates call the system, a function's answer a tool's."""
    return [_message(each) for each in given]


def _message(given: ChatMessage) -> dict[str, Any]:
    message: dict[str, Any] = {"role": {"developer": "system", "function": "tool"}.get(given.role, given.role), "content": given.text}
    message |= {name: value for name in ("name", "tool_call_id") if (value := getattr(given, name)) is not None}
    return message | ({"tool_calls": [call.as_dict() for call in given.calls]} if given.calls else {})


def require_room(characters: int, runtime: Runtime) -> None:
    """Refuse a text that is too long by far, before anybody reads it. Raises ContextOverflowError."""
    most = runtime.n_ctx * CHARACTERS_PER_TOKEN
    if characters > most:
        raise ContextOverflowError(
            f"the prompt has {characters:,} characters, and the context holds {runtime.n_ctx} tokens; "
            f"more than {most:,} characters are not read, shorten it"
        )
