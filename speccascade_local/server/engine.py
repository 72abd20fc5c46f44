"""Requests to loaded pairs, answered in turn: submit one, read its chunks, cancel it, close all of it in a few seconds.

A :class:`Job` is a reply in the making that stands in a queue first. Knows nothing of HTTP; may be used from any thread.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from ..checks import whole_number
from ..errors import CatalogError, EngineError, SettingError
from ..pending import PendingReply
from ..prompts import Prompt
from ..reply import Chunk
from ..runtime import Runtime
from ..settings import Settings
from ..templates import Message
from .waiting import FairQueue

#: Of the time for closing, what answers that are being made get to finish; the rest is for ending them.
_TO_FINISH = 0.6

Question = Prompt | Sequence[Message]


class Job(PendingReply):
    """A request, and the reply to it: see :class:`~speccascade_local.pending.PendingReply`. Made by :meth:`Engine.submit`."""

    def __init__(
        self, ids: list[int], settings: Settings, conversation: str | None, timeout_s: float | None, withdraw: Callable[[Job], bool]
    ) -> None:
        super().__init__(timeout_s=timeout_s)
        self.ids, self.settings, self.conversation = ids, settings, conversation
        self._withdraw = withdraw
        self._submitted, self._taken = time.monotonic(), 0.0

    @property
    def line(self) -> Hashable:
        """Whose turn it takes."""
        return id(self) if self.conversation is None else self.conversation

    @property
    def queued_s(self) -> float:
        """Seconds that it waited, or has been waiting."""
        return (self._taken or time.monotonic()) - self._submitted

    def begin(self) -> None:
        """It waits no longer."""
        self._taken = time.monotonic()

    def cancel(self) -> None:
        """End it: while it waits at once, later within one block."""
        super().cancel()
        if self._withdraw(self):
            self.end()


class Engine:
    """Answers requests to several loaded pairs, fairly: conversations take turns, and each is answered in its order.

    pairs: by the names that requests use; the caller closes them, after the engine. queue: how many requests may wait for each
    pair. Use it as a context manager, or close it. Raises SettingError.
    """

    def __init__(self, pairs: Mapping[str, Runtime], *, queue: int = 64) -> None:
        if not pairs:
            raise SettingError("an engine needs at least one loaded pair; it was given none")
        whole_number("queue", queue, 1, 10**6)
        self._lanes = {name: _Lane(name, runtime, queue) for name, runtime in pairs.items()}

    @property
    def pairs(self) -> dict[str, Runtime]:
        """The loaded pairs by name."""
        return {name: lane.runtime for name, lane in self._lanes.items()}

    def submit(
        self, pair: str, question: Question, settings: Settings, *, conversation: str | None = None, timeout_s: float | None = None
    ) -> Job:
        """Put a request into the queue: a text, a list of ids, or a list of messages for the chat template.

        conversation: requests of one conversation are answered one after the other. timeout_s: for waiting and answering together.
        Everything that is wrong with a request is refused here, which may take as long as one block. Raises CatalogError for a pair that
        there is not, EngineBusyError when as many wait as may, EngineError when closing, PromptError and SettingError.
        """
        if pair not in self._lanes:
            raise CatalogError(f"there is no pair {pair!r:.80} here; there are {', '.join(sorted(self._lanes))}")
        if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and 0 < timeout_s <= 10**7):
            raise SettingError(f"timeout_s is {timeout_s!r:.40}; it must be a number of seconds above 0")
        return self._lanes[pair].submit(question, settings, conversation, timeout_s)

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
        for lane in self._lanes.values():
            lane.end()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Lane:
    """One pair: its queue, and the threads that answer."""

    def __init__(self, name: str, runtime: Runtime, bound: int) -> None:
        self.runtime = runtime
        self.queue: FairQueue[Job] = FairQueue(bound)
        self.running: set[Job] = set()
        self._threads = [threading.Thread(target=self._work, name=f"answers of {name}", daemon=True)]
        for thread in self._threads:
            thread.start()

    def submit(self, question: Question, settings: Settings, conversation: str | None, timeout_s: float | None) -> Job:
        self.runtime.method(settings)
        seed = secrets.randbits(32) if settings.seed is None else settings.seed  # named, so that no answer depends on another
        job = Job(self._ids(question), replace(settings, seed=seed), conversation, timeout_s, self.queue.withdraw)
        self.queue.put(job)
        return job

    def _ids(self, question: Question) -> list[int]:
        if not isinstance(question, str) and question and isinstance(question[0], Mapping):
            return self.runtime.prompt_ids(self.runtime.chat_ids(question))  # type: ignore[arg-type]
        return self.runtime.prompt_ids(question)  # type: ignore[arg-type]

    def _work(self) -> None:
        while (job := self.queue.take()) is not None:
            job.begin()
            self.running.add(job)
            begun = time.monotonic()
            try:
                self._answer(job, self._chunks(job))
            except BaseException as error:
                job.end(error)
            finally:
                self.running.discard(job)
                self.queue.finished(job, time.monotonic() - begun)
                job.end()

    def _chunks(self, job: Job) -> Iterator[Chunk | None]:
        yield from self.runtime.stream(job.ids, **vars(job.settings))

    @staticmethod
    def _answer(job: Job, chunks: Iterator[Chunk | None]) -> None:
        while not job.should_stop:
            chunk = next(chunks)
            if chunk is not None:
                job.put(chunk)
                if chunk.finish_reason is not None:
                    return

    def stop(self) -> None:
        for job in self.queue.close():
            job.end(EngineError("the server is closing, and this request was still waiting; ask again when it is back"))

    def join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        for job in list(self.running):
            job.stop_for(EngineError("the server is closing, and this answer was not finished; ask again when it is back"))
        for thread in self._threads:
            thread.join()
