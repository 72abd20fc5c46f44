"""Requests to loaded pairs: submit one, read its chunks, cancel it, close all of it in a few seconds.

A :class:`Job` is a reply in the making that stands in a queue first. Several are answered at once, each by a thread and in a slot of its
own, and what they read goes into common batches (runtime/shared_batches.py). A grammar is compiled before its job gets a slot, so that a slow one keeps
no slot from others. Knows nothing of HTTP; may be used from any thread.
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

#: Of the time for closing, what answers that are being made get to finish; the rest is for ending them.
_TO_FINISH = 0.6
#: So many conversations' ids are kept, the latest; an id takes some bytes.
_REMEMBERED = 256
#: How many grammars are compiled at once, and from how many seconds on a job with one counts as heavy (server/request_queue.py).
_PREPARERS, _SLOW_S = 2, 0.25


class Job(PendingReply):
    """A request, and the reply to it: see :class:`~speccascade_local.runtime.pending_reply.PendingReply`. Made by :meth:`Engine.submit`."""

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
        self.cold = cold  # whether the client named the seed, and expects it to repeat the answer
        self.prompt, self.settings, self.conversation, self.owner, self.client = prompt, settings, conversation, owner, client
        self._withdraw = withdraw
        self._submitted, self._taken = time.monotonic(), 0.0
        self.ready, self.heavy = settings.constraint is None, False
        self._grammar: Grammar | None = None

    @property
    def line(self) -> Hashable:
        """Whose turn it takes."""
        return id(self) if self.conversation is None else (self.owner, self.conversation)

    @property
    def queued_s(self) -> float:
        """Seconds that it waited, or has been waiting."""
        return (self._taken or time.monotonic()) - self._submitted

    def prepare(self, runtime: Runtime) -> None:
        """Compile its grammar. Raises SettingError and UnwantedError."""
        begun = time.monotonic()
        tokenizer = runtime.models["expert"].tokenizer
        self._grammar = compile_grammar(self.settings, tokenizer, runtime.n_vocab, lambda: self.should_stop)
        self.ready, self.heavy = True, time.monotonic() - begun > _SLOW_S

    def begin(self) -> Grammar | None:
        """It waits no longer. Returns its grammar, and keeps no hold of it."""
        self._taken = time.monotonic()
        grammar, self._grammar = self._grammar, None
        return grammar

    def cancel(self) -> None:
        """End it: while it waits at once, later within one block."""
        super().cancel()
        if self._withdraw(self):
            self.end()


class Engine:
    """Answers requests to several loaded pairs, fairly: conversations take turns, and each is answered in its order.

    pairs: by the names that requests use; the caller closes them, after the engine. slots: how many requests each pair answers at once,
    for which it must have been loaded (``load(..., timelines=slots)``). queue: how many may wait for each pair. Use it as a context
    manager, or close it. Raises SettingError and SessionError.
    """

    def __init__(self, pairs: Mapping[str, Runtime], *, slots: int = 1, queue: int = 64) -> None:
        if not pairs:
            raise SettingError("an engine needs at least one loaded pair; it was given none")
        whole_number("queue", queue, 1, 10**6)
        whole_number("slots", slots, 1, MAX_TIMELINES)
        with ExitStack() as opened:
            self._lanes = {name: opened.enter_context(closing(_Lane(name, runtime, slots, queue))) for name, runtime in pairs.items()}
            self._opened = opened.pop_all()

    @property
    def pairs(self) -> dict[str, Runtime]:
        """The loaded pairs by name."""
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
        """Put a request into the queue: a text, a list of ids, or a list of messages for the chat template.

        conversation: requests of one conversation are answered one after the other; "" is none, like None. timeout_s: for waiting and
        answering together. owner: what the models have read for one owner is never used for another, nor are conversations the same.
        client: those that differ take turns in the queue; None for one that cannot be told from others.
        Everything that is wrong with a request is refused here, which takes a while for long texts: not for an event loop. Raises
        CatalogError for a pair that there is not, EngineBusyError when as many wait as may, EngineError when closing, PromptError and
        SettingError.
        """
        if pair not in self._lanes:
            raise CatalogError(f"there is no pair {pair!r:.80} here; there are {', '.join(sorted(self._lanes))}")
        if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and 0 < timeout_s <= 10**7):
            raise SettingError(f"timeout_s is {timeout_s!r:.40}; it must be a number of seconds above 0")
        return self._lanes[pair].submit(question, settings, conversation or None, timeout_s, owner, client)

    def counts(self) -> dict[str, tuple[int, int]]:
        """How many requests are being answered and how many wait, by pair."""
        return {name: (len(lane.running), len(lane.queue)) for name, lane in self._lanes.items()}

    def close(self, within_s: float = 5.0) -> None:
        """Take no more, end what waits, let what runs finish and cancel what has not after a while. Harmless when repeated.

        Takes longer than ``within_s`` only where a single evaluation does, which cannot be interrupted.
        """
        for lane in self._lanes.values():
            lane.stop()
        deadline = time.monotonic() + within_s * _TO_FINISH
        for lane in self._lanes.values():
            lane.join(deadline)
        self._opened.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Lane:
    """One pair: its queue, its slots, and a thread for each that answers."""

    def __init__(self, name: str, runtime: Runtime, slots: int, bound: int) -> None:
        self.runtime = runtime
        self.queue: FairQueue[Job] = FairQueue(bound, slots)
        self.running: set[Job] = set()
        self._closing = False
        self._said: OrderedDict[Hashable, Transcript] = OrderedDict()  # by owner and conversation
        self._resources = ExitStack()
        sharing = self._resources.enter_context(runtime.shared(slots))
        self._gathering, self._slots = sharing.batches, Slots(sharing.pairs)
        self._threads = [threading.Thread(target=self._work, name=f"answers of {name}", daemon=True) for _ in range(slots)]
        self._threads += [threading.Thread(target=self._prepare, name=f"grammars of {name}", daemon=True) for _ in range(_PREPARERS)]
        for thread in self._threads:
            thread.start()

    def submit(
        self, question: Question, settings: Settings, conversation: str | None, timeout_s: float | None, owner: Hashable, client: Hashable
    ) -> Job:
        self.runtime.method(settings)
        said = Transcript() if conversation is None else self._said.get((owner, conversation), Transcript())
        prompt = self.runtime.transcript_of(question, said)
        seed = secrets.randbits(32) if settings.seed is None else settings.seed  # named, so that no answer depends on another
        job = Job(
            prompt, replace(settings, seed=seed), conversation, timeout_s, self.queue.withdraw, owner, client, settings.seed is not None
        )
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
                self.queue.prepared(job)
            del job  # a thread that waits holds no request, and no grammar

    def _work(self) -> None:
        while (job := self.queue.take()) is not None:
            self._serve(job)
            del job  # as above

    def _serve(self, job: Job) -> None:
        grammar = job.begin()
        self.running.add(job)
        if self._closing:  # it was taken just before, and not seen running
            job.stop_for(_unfinished())
        begun = time.monotonic()
        slot = self._slots.take(job.prompt.ids, job.owner)
        slot.seat.stopped = lambda: job.should_stop
        try:
            self._answer(job, slot, grammar)
        except BaseException as error:
            job.end(None if job.cancelled else error)
        finally:
            slot.seat.stopped = lambda: False
            self._slots.give_back(slot)
            self.running.discard(job)
            self.queue.finished(job, time.monotonic() - begun)
            job.end()

    def _answer(self, job: Job, slot: Slot, grammar: Grammar | None) -> None:
        if job.should_stop:
            return
        self._slots.hand_over(slot, job.owner)
        method, seed = self.runtime.method(job.settings), cast(int, job.settings.seed)
        chunks = answer(
            slot.pair, job.prompt.ids, job.settings, method, seed, grammar=grammar, unwanted=lambda: job.should_stop, cold=job.cold
        )
        with self._gathering.join_as(slot.seat):
            job.follow(chunks)
        if job.conversation is not None and not job.cancelled:
            self._remember((job.owner, job.conversation), job.prompt.answered(job.reply_so_far.token_ids))

    def _remember(self, conversation: Hashable, said: Transcript) -> None:
        """The ids of what was said, so that the next prompt of the conversation begins as the caches do."""
        self._said[conversation] = said
        self._said.move_to_end(conversation)
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)

    def stop(self) -> None:
        """Take no more, and end what waits."""
        for job in self.queue.close():
            job.end(EngineError("the server is closing, and this request was still waiting; ask again when it is back"))

    def join(self, deadline: float) -> None:
        """Wait for what is being answered, until then."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End what is being answered, and give the pair back."""
        self.stop()
        self._closing = True
        for job in list(self.running):
            job.stop_for(_unfinished())
        for thread in self._threads:
            thread.join()
        self._resources.close()


def _unfinished() -> EngineError:
    return EngineError("the server is closing, and this answer was not finished; ask again when it is back")
