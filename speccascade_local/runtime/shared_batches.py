"""Several replies at once over the same models: the tokens that they need evaluated now go into one batch of each context.

Each reply has a thread of its own, and a session that looks like any other. Where a session reads, its thread waits until the others
request something too, or for ``PATIENCE_S``. Then one of the waiting threads evaluates for all, in common batches where these are cheaper
than one after the other. Nothing here changes what a reply reads, only in which batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from ..common.errors import SessionError
from ..llama.batch import Part, Timeline
from ..llama.context import LlamaContext
from ..llama.session import LlamaSession
from ..tokens.sampler import Array

#: Returns the seconds of a batch by its number of tokens.
Seconds = Callable[[int], float]

#: Seconds that the others wait for a participant that is busy between two reads, such as in a slow rule of the user's own.
PATIENCE_S = 0.02
#: Evaluations of cheaper models, as many as write a draft, after which a request for a dearer one goes first.
MOST_PASSED = 16
#: Tokens of a piece: longer texts are read in pieces, so that others get their turn, and a cancelled one ends.
PIECE = 128


class Participant:
    """A place for one reply at a time. ``stopped`` is asked, between the pieces of a long text, whether its caller has given up."""

    def __init__(self) -> None:
        self.stopped: Callable[[], bool] = lambda: False


def _silent_bell() -> threading.Lock:
    bell = threading.Lock()
    bell.acquire()
    return bell


@dataclass(eq=False)
class _Request:
    """What one timeline must read. ``held``: its tokens before. ``bell``: released when something may have changed."""

    participant: Participant
    context: LlamaContext
    part: Part
    held: int
    since: float = field(default_factory=time.monotonic)
    passed: int = 0  # batches that went before it
    rows: Array | None = None
    error: BaseException | None = None
    bell: threading.Lock = field(default_factory=_silent_bell)

    @property
    def is_done(self) -> bool:
        return self.rows is not None or self.error is not None


class _Work(NamedTuple):
    """An evaluation: the request of the thread that evaluates, and all requests that it evaluates."""

    by: _Request
    requests: list[_Request]


class SharedBatches:
    """Evaluates for all participants that share some contexts. No context is used by two threads at once.

    A thread that is interrupted anywhere removes its own request and nothing else: a request stays in the list until its own thread leaves,
    and an evaluation counts only as long as the request of the thread that evaluates is in the list.

    ``seconds`` of a batch, for each context. The first goes first: a drafter's, so that the expert then finds all drafts ready.
    ``one_at_a_time``: whether the contexts compete for the same processor.
    """

    def __init__(self, seconds: Mapping[LlamaContext, Seconds], *, one_at_a_time: bool = True) -> None:
        self._seconds, self._one_at_a_time = seconds, one_at_a_time
        self._lock = threading.Lock()
        self._work: dict[LlamaContext | None, _Work] = {}  # by context, or by None where there is one at a time
        self._participants: set[Participant] = set()
        self._requests: dict[Timeline, _Request] = {}

    @contextmanager
    def join_as(self, participant: Participant) -> Iterator[None]:
        """Take part for one reply: the others wait for what it reads."""
        self._participants.add(participant)
        try:
            yield
        finally:
            self._participants.discard(participant)
            self._ring()

    def read(self, participant: Participant, context: LlamaContext, part: Part) -> Array:
        """Evaluate one part as ``LlamaContext.evaluate`` does, and return rows of the caller's own. Raises only what concerns this part."""
        request = _Request(participant, context, part, len(part.timeline.tokens))
        try:
            self._requests[part.timeline] = request
            self._ring()
            while not request.is_done:
                if not self._evaluate_due(request):
                    request.bell.acquire(timeout=PATIENCE_S)
        finally:
            self._requests.pop(part.timeline, None)
            self._ring()
        if request.error is not None:
            raise request.error
        assert request.rows is not None
        return request.rows

    def _ring(self) -> None:
        """Wake all waiting threads."""
        with self._lock:
            for request in list(self._requests.values()):
                if request.bell.locked():
                    request.bell.release()

    def _evaluate_due(self, own: _Request) -> bool:
        """Evaluate what is due, for all that request it, while others may come. Returns False where nothing is due."""
        with self._lock:
            context = self._due()
            if context is None:
                return False
            waiting = self._waiting()
            requests = [request for request in waiting if request.context is context]
            for request in waiting:
                request.passed += request.context is not context
            place = self._place(context)
            self._work[place] = work = _Work(own, requests)
        try:
            for group in group_parts([len(request.part.tokens) for request in requests], self._seconds[context]):
                _evaluate(context, [requests[at] for at in group])
                self._ring()
        finally:
            with self._lock:
                if self._work.get(place) is work:
                    del self._work[place]
            self._ring()
        return True

    def _place(self, context: LlamaContext) -> LlamaContext | None:
        return None if self._one_at_a_time else context

    def _is_free(self, context: LlamaContext) -> bool:
        work = self._work.get(self._place(context))
        return work is None or not self._is_current(work.by)

    def _is_current(self, request: _Request) -> bool:
        return self._requests.get(request.part.timeline) is request

    def _waiting(self) -> list[_Request]:
        """Return the requests that no thread evaluates, the oldest first."""
        begun = [request for work in self._work.values() if self._is_current(work.by) for request in work.requests]
        waiting = [request for request in list(self._requests.values()) if not request.is_done and request not in begun]
        return sorted(waiting, key=lambda request: request.since)

    def _due(self) -> LlamaContext | None:
        """Return the context to evaluate now, if any."""
        waiting = self._waiting()
        wanted = {request.context for request in waiting if self._is_free(request.context)}
        if not wanted:
            return None
        here = {request.participant for request in waiting}
        if not self._participants <= here and time.monotonic() - waiting[0].since < PATIENCE_S:
            return None
        late = [request.context for request in waiting if request.passed >= MOST_PASSED and request.context in wanted]
        return next(iter(late + [each for each in self._seconds if each in wanted]), None)


def group_parts(sizes: Sequence[int], seconds: Seconds) -> list[list[int]]:
    """Return which parts are cheapest to read together, by their places in ``sizes``; the first part is in the first group.

    Parts of similar sizes go together. The cost of a batch is a staircase: four single tokens may be cheaper one by one, and four times
    five tokens in one batch.
    """
    order = sorted(range(len(sizes)), key=lambda at: sizes[at])
    best: list[tuple[float, list[list[int]]]] = [(0.0, [])]  # of the first 0, 1, ... in that order
    for end in range(1, len(order) + 1):
        ways = [(best[start], order[start:end]) for start in range(end)]
        best.append(
            min(((cost + seconds(sum(sizes[at] for at in group)), [*rest, group]) for (cost, rest), group in ways), key=lambda way: way[0])
        )
    return sorted((sorted(group) for group in best[-1][1]), key=lambda group: group[0])


def _evaluate(context: LlamaContext, requests: Sequence[_Request]) -> None:
    """Evaluate in one batch; if that fails, one by one, so that each request gets its own error.

    An interruption concerns only this thread: it is raised, and the threads of the other requests evaluate again.
    """
    for request in requests:
        if len(request.part.timeline.tokens) > request.held:  # read, but the rows were lost
            context.drop(request.part.timeline, request.held)
    try:
        for request, rows in zip(requests, [rows.copy() for rows in context.evaluate([request.part for request in requests])]):
            request.rows = rows
    except Exception as error:
        if len(requests) == 1:
            requests[0].error = error
            return
        for request in requests:
            _evaluate(context, [request])


class SharedSession(LlamaSession):
    """A session whose timeline is read together with those of other participants; for one thread at a time, like any session.

    ``timeline``: its place in the context, if it has one already.
    """

    def __init__(
        self,
        context: LlamaContext,
        batches: SharedBatches,
        participant: Participant,
        *,
        n_vocab: int | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self._batches, self._participant = batches, participant
        super().__init__(context, n_vocab=n_vocab, timeline=timeline)

    def extend(self, tokens: list[int], keep: int) -> Array:
        """Read as :meth:`LlamaSession.extend` does. Raises SessionError too where the caller gives up during a long text."""
        held, start = len(self.tokens), 0
        try:
            while len(tokens) - keep - start > PIECE:
                self._read(tokens[start : start + PIECE], 0)
                start += PIECE
                if self._participant.stopped():
                    raise SessionError("the prefill was ended, because its caller has given up")
            return self._read(tokens[start:], keep)
        except BaseException:
            if len(self.tokens) > held:
                self.roll_back(held)
            raise

    def _read(self, tokens: list[int], keep: int) -> Array:
        return self._batches.read(self._participant, self.context, Part(self.timeline, tokens, keep))
