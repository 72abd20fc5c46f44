"""A request for text, from its body to the response: check it, queue it, read the reply block by block, count it.

Nothing is sent before the first block, so that every refusal has a status of its own.
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
from .openai.responses import Kind, ResponseForm
from .openai.tool_calls import CallReader
from .openai.translation import translate
from .request_settings import ServedPairs, settings_of, settings_of_choice
from .streams import EventStream, run_while_connected

#: A text with more characters per token of the context is refused unread.
CHARACTERS_PER_TOKEN = 64
#: Maximum number of objects and lists in a body; a bracket inside a text counts too.
MAX_VALUES = 200_000
Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")
_ROUTES: dict[type[BaseModel], Route] = {ChatRequest: "chat", CompletionRequest: "completions"}


async def read_request(request: Request, model: type[Model], read: Callable[[Model], Result], large: LargeRequests) -> Result:
    """Return what ``read``, run in a thread, makes of the checked body. Raises RefusedError and pydantic.ValidationError."""
    body = await request.body()
    if len(body) < LARGE:
        return await asyncio.to_thread(read, _check(body, model))
    return await large.run(lambda: read(_check(body, model)))


def _check(body: bytes, model: type[Model]) -> Model:
    """Validate a body. If an object repeats a name, the last one counts."""
    values = body.count(b"{") + body.count(b"[")  # before parsing them takes memory and garbage collection time
    if values > MAX_VALUES:
        raise RefusedError(400, f"the body has {values:,} objects and lists; at most {MAX_VALUES:,} are allowed", code="invalid_value")
    try:
        fields = pydantic_core.from_json(body.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RefusedError(400, f"the body is a JSON {type(fields).__name__}; it must be an object", code="invalid_json")
    if model not in _ROUTES:
        return model.model_validate(fields)
    translation = translate(fields, _ROUTES[model])
    try:
        return model.model_validate(translation.fields)
    except ValidationError as error:
        raise translation.refusal(refusal_of(error)) from None


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
    streams_usage: bool
    cache_salt: str | None
    owner: Hashable = None
    client: Hashable = None


class Completions:
    """The routes that reply with text; ``timeout_s`` limits each request, waiting included."""

    def __init__(self, engine: Engine, models: ServedPairs, metrics: Metrics, timeout_s: float | None, large: LargeRequests) -> None:
        self._engine, self._models, self._metrics, self._timeout_s, self._large = engine, models, metrics, timeout_s, large

    async def chat(self, http: Request) -> Response:
        return await self._answer(http, await read_request(http, ChatRequest, self._read_chat, self._large))

    async def complete(self, http: Request) -> Response:
        return await self._answer(http, await read_request(http, CompletionRequest, self._read_completion, self._large))

    def _read_chat(self, body: ChatRequest) -> QueuedRequest:
        name, runtime, rule = self._models.choose(body.model, required=True)
        question: Question = messages_of(body.messages)
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or () if body.tool_choice != "none"]
        require_room(body.characters, runtime)
        settings = settings_of(body, runtime, self._models, rule)
        if tools and not runtime.takes_tools:
            raise RefusedError(400, f"the chat template of {name} does not support tools; leave them out", param="tools")
        if tools or body.continues is False:
            question = runtime.chat_ids(messages_of(body.messages), tools, continues=body.continues is not False)
        top = (body.top_logprobs or 0) if body.logprobs else None
        return self._request(body, name, question, settings, "chat", top, frozenset(tool["function"]["name"] for tool in tools))

    def _read_completion(self, body: CompletionRequest) -> QueuedRequest:
        name, runtime, rule = self._models.choose(body.model, required=True)
        require_room(len(body.prompt) if isinstance(body.prompt, str) else 0, runtime)
        return self._request(body, name, body.prompt, settings_of(body, runtime, self._models, rule), "text", body.logprobs)

    def _request(
        self,
        body: SamplingFields,
        name: str,
        question: Question,
        settings: Settings,
        kind: Kind,
        top: int | None,
        tools: frozenset[str] = frozenset(),
    ) -> QueuedRequest:
        piece = partial(self._models.pairs[name].models["expert"].tokenizer.piece, special=True)
        return QueuedRequest(
            name,
            question,
            settings,
            ResponseForm(kind, body.model or name, body.cascade, settings.block_size, piece, top, tools),
            choices=body.n or 1,
            conversation=body.prompt_cache_key or None,
            streams=bool(body.stream),
            streams_usage=bool(body.stream_options and body.stream_options.include_usage),
            cache_salt=body.cache_salt,
        )

    async def _answer(self, http: Request, request: QueuedRequest) -> Response:
        request = replace(request, owner=http.state.owner(request.cache_salt, request.conversation), client=http.state.client)
        if not request.streams:
            replies = await run_while_connected(http.receive, self._replies(request))
            return await asyncio.to_thread(lambda: JSONResponse(request.form.response(replies)))
        events = self._events(request)
        try:
            first = await run_while_connected(http.receive, anext(events))
        except BaseException:
            await events.aclose()
            raise
        return EventStream(first, events)

    async def _replies(self, request: QueuedRequest) -> list[Reply]:
        begin, replies = time.monotonic(), []
        for index in range(request.choices):
            async with self._blocks(request, index, begin) as blocks:
                replies.append(await asyncio.to_thread(Reply.of, [chunk async for chunk in blocks]))
        return replies

    async def _events(self, request: QueuedRequest) -> AsyncGenerator[Mapping[str, Any], None]:
        """Yield a stream's events, the first one with the first block. Work that grows with the reply runs in a thread."""
        begin, stats, form = time.monotonic(), [], request.form
        for index in range(request.choices):
            chunks: list[Chunk] = []
            reader, offset = CallReader(form.tools), 0
            async with self._blocks(request, index, begin) as blocks:
                async for chunk in blocks:
                    if not chunks and form.kind == "chat":
                        yield form.first_event(index)
                    make_event = partial(form.event, index, chunk, offset, reader)
                    event = await asyncio.to_thread(make_event) if form.tools else make_event()  # a call may span many blocks
                    chunks.append(chunk)
                    offset += len(chunk.text)
                    yield event if chunk.finish_reason is None else await asyncio.to_thread(form.add_totals, event, chunks)
            stats.append(chunks[-1].stats)
        if request.streams_usage:
            yield form.usage_event(stats)

    @asynccontextmanager
    async def _blocks(self, request: QueuedRequest, index: int, begin: float) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Yield the blocks of one choice. Leaving early cancels its job."""
        timeout_s = None if self._timeout_s is None else max(0.001, self._timeout_s - (time.monotonic() - begin))
        submit_time = time.monotonic()
        job = await self._submit(request, index, timeout_s)
        try:
            async with aclosing(self._count(request.pair, job, submit_time)) as blocks:
                yield blocks
        finally:
            if not job.done:
                job.cancel()

    async def _count(self, pair: str, job: Job, begin: float) -> AsyncGenerator[Chunk, None]:
        """Yield a job's chunks, and count the reply at its end."""
        first_s = 0.0
        async for chunk in job:
            first_s = first_s or time.monotonic() - begin
            if chunk.finish_reason is not None:  # only the last chunk has the counts of the whole reply
                self._metrics.count_reply(pair, job, Reply.of([chunk]), first_s, time.monotonic() - begin)
            yield chunk

    async def _submit(self, request: QueuedRequest, index: int, timeout_s: float | None) -> Job:
        """Queue one choice, in a thread, because that renders the chat template. If cancelled, cancel the job when it is there."""
        submission = asyncio.ensure_future(
            asyncio.to_thread(
                self._engine.submit,
                request.pair,
                request.question,
                settings_of_choice(request.settings, index),
                conversation=request.conversation,
                timeout_s=timeout_s,
                owner=request.owner,
                client=request.client,
            )
        )
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(_cancel_job)
            raise


def _cancel_job(submission: asyncio.Future[Job]) -> None:
    if not submission.cancelled() and submission.exception() is None:
        submission.result().cancel()


def messages_of(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as chat templates take them: a developer is a system, and a function's result a tool's."""
    return [_message(each) for each in messages]


def _message(source: ChatMessage) -> dict[str, Any]:
    message: dict[str, Any] = {"role": {"developer": "system", "function": "tool"}.get(source.role, source.role), "content": source.text}
    message |= {name: value for name in ("name", "tool_call_id") if (value := getattr(source, name)) is not None}
    return message | ({"tool_calls": [call.as_dict() for call in source.calls]} if source.calls else {})


def require_room(characters: int, runtime: Runtime) -> None:
    """Raise ContextOverflowError for a text that is far too long, before it is tokenized."""
    limit = runtime.n_ctx * CHARACTERS_PER_TOKEN
    if characters > limit:
        raise ContextOverflowError(
            f"the prompt has {characters:,} characters, and the context holds {runtime.n_ctx} tokens; "
            f"at most {limit:,} characters are read; shorten it"
        )
