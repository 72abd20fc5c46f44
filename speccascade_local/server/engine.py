"""Requests to loaded pairs: submit one, read its chunks, cancel it, close everything within seconds.

A :class:`Job` waits in a queue and is then answered, by a thread and in a slot of its own. Slots read in common batches
(runtime/shared_batches.py). A grammar is compiled before its job gets a slot, so that a slow one blocks no slot. Works from any thread,
without HTTP.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from types import TracebackType
from typing import cast

from ..common.errors import CatalogError, EngineError, SettingError
from ..common.validation import whole_number
from ..llama.context import MAX_TIMELINES
from ..runtime.answer import answer, compile_grammar
from ..runtime.pending_reply import PendingReply
from ..runtime.runtime import Question, Runtime
from ..runtime.settings import Settings
from ..tokens.grammar import Grammar
from ..tokens.transcript import Transcript
from .request_queue import FairQueue, Slot, Slots

#: Share of the time for closing in which running replies may finish; the rest is for cancelling them.
_FINISH_SHARE = 0.6
#: Maximum number of conversations whose ids are kept, the latest ones.
_MAX_TRANSCRIPTS = 256
#: Grammars compiled at once, and seconds after which a job with one counts as heavy (server/request_queue.py).
_PREPARERS, _SLOW_S = 2, 0.25


class Job(PendingReply):
    """A request and its :class:`~speccascade_local.runtime.pending_reply.PendingReply`, from :meth:`Engine.submit`."""

    def __init__(
        self,
        prompt: Transcript,
        settings: Settings,
        conversation: str | None,
        timeout_s: float | None,
        withdraw: Callable[[Job], bool],
        owner: Hashable = None,
        client: Hashable = None,
        cold: bool = False,
    ) -> None:
        super().__init__(timeout_s=timeout_s)
        self.cold = cold  # the client named the seed, and expects it to repeat the reply
        self.prompt, self.settings, self.conversation, self.owner, self.client = prompt, settings, conversation, owner, client
        self._withdraw = withdraw
        self._submitted, self._taken = time.monotonic(), 0.0
        self.ready, self.heavy = settings.constraint is None, False
        self._grammar: Grammar | None = None

    @property
    def line(self) -> Hashable:
        return id(self) if self.conversation is None else (self.owner, self.conversation)

    @property
    def queued_s(self) -> float:
        """Seconds in the queue, so far or in all."""
        return (self._taken or time.monotonic()) - self._submitted

    def prepare(self, runtime: Runtime) -> None:
        """Compile its grammar. Raises SettingError and UnwantedError."""
        start = time.monotonic()
        tokenizer = runtime.models["expert"].tokenizer
        self._grammar = compile_grammar(self.settings, tokenizer, runtime.n_vocab, lambda: self.should_stop)
        self.ready, self.heavy = True, time.monotonic() - start > _SLOW_S

    def begin(self) -> Grammar | None:
        """End the wait. Return the grammar and keep no reference to it."""
        self._taken = time.monotonic()
        grammar, self._grammar = self._grammar, None
        return grammar

    def cancel(self) -> None:
        """End it: at once while it waits, within one block later."""
        super().cancel()
        if self._withdraw(self):
            self.end()


class Engine:
    """Answers requests to several loaded pairs: conversations take turns, and each keeps its order.

    Use it as a context manager, or close it. Raises SettingError and SessionError.

    Args:
        pairs: Loaded pairs by the names that requests use. The caller closes them, after the engine.
        slots: Requests that each pair answers at once. The pairs must be loaded with ``timelines=slots``.
        queue: Maximum number of requests that wait for each pair.
    """

    def __init__(self, pairs: Mapping[str, Runtime], *, slots: int = 1, queue: int = 64) -> None:
        if not pairs:
            raise SettingError("an engine needs at least one loaded pair; none is given")
        whole_number("queue", queue, 1, 10**6)
        whole_number("slots", slots, 1, MAX_TIMELINES)
        with ExitStack() as opened:
            self._lanes = {name: opened.enter_context(closing(_Lane(name, runtime, slots, queue))) for name, runtime in pairs.items()}
            self._opened = opened.pop_all()

    @property
    def pairs(self) -> dict[str, Runtime]:
        return {name: lane.runtime for name, lane in self._lanes.items()}

    def submit(
        self,
        pair: str,
        question: Question,
        settings: Settings,
        *,
        conversation: str | None = None,
        timeout_s: float | None = None,
        owner: Hashable = None,
        client: Hashable = None,
    ) -> Job:
        """Put a request into the queue and return its job. Takes a while for long texts, so call it outside an event loop.

        Raises EngineBusyError where the queue is full, EngineError where the engine is closing, CatalogError, PromptError and SettingError.

        Args:
            pair: The pair's name.
            question: A text, a list of ids, or a list of messages for the chat template.
            settings: How to reply.
            conversation: Requests of one conversation are answered one after the other; "" is none, like None.
            timeout_s: Limit in seconds for waiting and answering together.
            owner: KV caches and conversations of one owner are never used for another.
            client: Different clients take turns in the queue; None if clients cannot be distinguished.
        """
        if pair not in self._lanes:
            raise CatalogError(f"unknown pair {pair!r:.80}; the pairs here are {', '.join(sorted(self._lanes))}")
        if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and 0 < timeout_s <= 10**7):
            raise SettingError(f"timeout_s is {timeout_s!r:.40}; it must be a number of seconds above 0")
        return self._lanes[pair].submit(question, settings, conversation or None, timeout_s, owner, client)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of running and waiting requests by pair."""
        return {name: (len(lane.running), len(lane.queue)) for name, lane in self._lanes.items()}

    def close(self, within_s: float = 5.0) -> None:
        """Refuse new requests, end waiting ones, and let running ones finish or cancel them. Repeated calls do nothing.

        Takes longer than ``within_s`` seconds only if a single evaluation does, which cannot be interrupted.
        """
        for lane in self._lanes.values():
            lane.stop()
        deadline = time.monotonic() + within_s * _FINISH_SHARE
        for lane in self._lanes.values():
            lane.join(deadline)
        self._opened.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Lane:
    """One pair: its queue, its slots, and a thread for each slot."""

    def __init__(self, name: str, runtime: Runtime, slots: int, bound: int) -> None:
        self.runtime = runtime
        self.queue: FairQueue[Job] = FairQueue(bound, slots)
        self.running: set[Job] = set()
        self._closing = False
        self._transcripts: OrderedDict[Hashable, Transcript] = OrderedDict()  # by owner and conversation
        self._resources = ExitStack()
        sharing = self._resources.enter_context(runtime.shared(slots))
        self._batches, self._slots = sharing.batches, Slots(sharing.pairs)
        self._threads = [threading.Thread(target=self._work, name=f"answers of {name}", daemon=True) for _ in range(slots)]
        self._threads += [threading.Thread(target=self._prepare, name=f"grammars of {name}", daemon=True) for _ in range(_PREPARERS)]
        for thread in self._threads:
            thread.start()

    def submit(
        self, question: Question, settings: Settings, conversation: str | None, timeout_s: float | None, owner: Hashable, client: Hashable
    ) -> Job:
        self.runtime.method(settings)
        history = Transcript() if conversation is None else self._transcripts.get((owner, conversation), Transcript())
        prompt, cold = self.runtime.transcript_of(question, history), settings.seed is not None
        settings = settings if cold else replace(settings, seed=secrets.randbits(32))  # so that no reply depends on another
        job = Job(prompt, settings, conversation, timeout_s, self.queue.withdraw, owner, client, cold)
        self.queue.put(job)
        return job

    def _prepare(self) -> None:
        while (job := self.queue.take_unready()) is not None:
            try:
                job.prepare(self.runtime)
            except BaseException as error:
                self.queue.withdraw(job)
                job.end(None if job.cancelled else error)
            finally:
                self.queue.finish_preparing(job)
            del job  # a waiting thread holds no request and no grammar

    def _work(self) -> None:
        while (job := self.queue.take()) is not None:
            self._serve(job)
            del job  # as above

    def _serve(self, job: Job) -> None:
        grammar = job.begin()
        self.running.add(job)
        if self._closing:  # it was taken just before, and not yet running
            job.stop_for(_closing_error("this reply was not finished"))
        start = time.monotonic()
        slot = self._slots.take(job.prompt.ids, job.owner)
        slot.participant.stopped = lambda: job.should_stop
        try:
            self._answer(job, slot, grammar)
        except BaseException as error:
            job.end(None if job.cancelled else error)
        finally:
            slot.participant.stopped = lambda: False
            self._slots.give_back(slot)
            self.running.discard(job)
            self.queue.finish(job, time.monotonic() - start)
            job.end()

    def _answer(self, job: Job, slot: Slot, grammar: Grammar | None) -> None:
        if job.should_stop:
            return
        self._slots.hand_over(slot, job.owner)
        method, seed = self.runtime.method(job.settings), cast(int, job.settings.seed)
        chunks = answer(
            slot.pair, job.prompt.ids, job.settings, method, seed, grammar=grammar, unwanted=lambda: job.should_stop, cold=job.cold
        )
        with self._batches.join_as(slot.participant):
            job.follow(chunks)
        if job.conversation is not None and not job.cancelled:
            self._remember((job.owner, job.conversation), job.prompt.answered(job.reply_so_far.token_ids))

    def _remember(self, conversation: Hashable, transcript: Transcript) -> None:
        """Keep a conversation's ids, so that its next prompt begins as the KV caches do."""
        self._transcripts[conversation] = transcript
        self._transcripts.move_to_end(conversation)
        if len(self._transcripts) > _MAX_TRANSCRIPTS:
            self._transcripts.popitem(last=False)

    def stop(self) -> None:
        for job in self.queue.close():
            job.end(_closing_error("this request was still waiting"))

    def join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        self.stop()
        self._closing = True
        for job in list(self.running):
            job.stop_for(_closing_error("this reply was not finished"))
        for thread in self._threads:
            thread.join()
        self._resources.close()


def _closing_error(what: str) -> EngineError:
    return EngineError(f"the server is closing, and {what}; ask again when it is back")
