"""Several replies at once over the same models: what they want read at the moment goes into one batch of each context.

Replies are made in threads of their own, by sessions that look like any others. Where one of them reads, its thread waits until the others
want something too or have not come for a while; then one of the waiting threads evaluates for all, in common batches where these are
cheaper than one after the other. Nothing here changes what a reply reads, only with whom. Knows nothing of pairs, rules or drafts.
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

#: What a batch of so many tokens takes.
Seconds = Callable[[int], float]

#: So long the others wait for a reply that is at work between two readings, such as in a slow rule of the user's own.
PATIENCE_S = 0.02
#: After so many evaluations of cheaper models, as many as write a draft, whoever waits for a dearer one goes first.
MOST_PASSED = 16
#: Longer texts are read in such pieces, so that others get their turn, and their end, meanwhile.
PIECE = 128


class Participant:
    """Where one reply at a time is made. stopped: asked between the pieces of a long text whether anybody still wants it."""

    def __init__(self) -> None:
        self.stopped: Callable[[], bool] = lambda: False


def _silent_bell() -> threading.Lock:
    bell = threading.Lock()
    bell.acquire()
    return bell


@dataclass(eq=False)
class _Request:
    """What one timeline is to read. held: how many tokens it stands for before. bell: released when there may be news."""

    seat: Participant
    context: LlamaContext
    part: Part
    held: int
    since: float = field(default_factory=time.monotonic)
    passed: int = 0  # so many batches went before it
    rows: Array | None = None
    error: BaseException | None = None
    bell: threading.Lock = field(default_factory=_silent_bell)

    @property
    def settled(self) -> bool:
        return self.rows is not None or self.error is not None


class _Work(NamedTuple):
    """An evaluation: the wish of the thread that evaluates, and all wishes that it evaluates for."""

    by: _Request
    wishes: list[_Request]


class SharedBatches:
    """Evaluates for all who share some contexts. No context is used by two threads at once.

    seconds: for each context, what a batch of so many tokens takes. The first context goes first: a drafter's, so that the expert then
    finds all drafts ready. one_at_a_time: for contexts that compete for the same processor.

    A thread that is interrupted anywhere takes its wish with it and nothing else: a wish stands in the list until its own thread leaves,
    and an evaluation counts only as long as the wish of the thread that evaluates stands there.
    """

    def __init__(self, seconds: Mapping[LlamaContext, Seconds], *, one_at_a_time: bool = True) -> None:
        self._seconds, self._one_at_a_time = seconds, one_at_a_time
        self._lock = threading.Lock()
        self._work: dict[LlamaContext | None, _Work] = {}  # by context, or by None where there is one at a time
        self._seats: set[Participant] = set()
        self._wishes: dict[Timeline, _Request] = {}

    @contextmanager
    def join_as(self, seat: Participant) -> Iterator[None]:
        """A reply is made there: the others wait for what it wants to read."""
        self._seats.add(seat)
        try:
            yield
        finally:
            self._seats.discard(seat)
            self._ring()

    def read(self, seat: Participant, context: LlamaContext, part: Part) -> Array:
        """As ``LlamaContext.evaluate`` for one part. The rows are the caller's own. What goes wrong is told to whose part it was."""
        wish = _Request(seat, context, part, len(part.timeline.tokens))
        try:
            self._wishes[part.timeline] = wish
            self._ring()
            while not wish.settled:
                if not self._evaluate_due(wish):
                    wish.bell.acquire(timeout=PATIENCE_S)
        finally:
            self._wishes.pop(part.timeline, None)
            self._ring()
        if wish.error is not None:
            raise wish.error
        assert wish.rows is not None
        return wish.rows

    def _ring(self) -> None:
        """Wake all who wait."""
        with self._lock:
            for wish in list(self._wishes.values()):
                if wish.bell.locked():
                    wish.bell.release()

    def _evaluate_due(self, own: _Request) -> bool:
        """Evaluate what is due, for all who want it, while others may come and wish. False where nothing is."""
        with self._lock:
            context = self._due()
            if context is None:
                return False
            waiting = self._waiting()
            wishes = [wish for wish in waiting if wish.context is context]
            for wish in waiting:
                wish.passed += wish.context is not context
            place = self._place(context)
            self._work[place] = work = _Work(own, wishes)
        try:
            for group in group_parts([len(wish.part.tokens) for wish in wishes], self._seconds[context]):
                _evaluate(context, [wishes[at] for at in group])
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
        return work is None or not self._stands(work.by)

    def _stands(self, wish: _Request) -> bool:
        return self._wishes.get(wish.part.timeline) is wish

    def _waiting(self) -> list[_Request]:
        """Those that nobody evaluates, whoever came first in front."""
        begun = [wish for work in self._work.values() if self._stands(work.by) for wish in work.wishes]
        waiting = [wish for wish in list(self._wishes.values()) if not wish.settled and wish not in begun]
        return sorted(waiting, key=lambda wish: wish.since)

    def _due(self) -> LlamaContext | None:
        """Where to evaluate now, if anywhere."""
        waiting = self._waiting()
        wanted = {wish.context for wish in waiting if self._is_free(wish.context)}
        if not wanted:
            return None
        here = {wish.seat for wish in waiting}
        if not self._seats <= here and time.monotonic() - waiting[0].since < PATIENCE_S:
            return None
        late = [wish.context for wish in waiting if wish.passed >= MOST_PASSED and wish.context in wanted]
        return next(iter(late + [each for each in self._seconds if each in wanted]), None)


def group_parts(sizes: Sequence[int], seconds: Seconds) -> list[list[int]]:
    """Which parts of so many tokens are cheapest to read together, by their places; whoever came first is in the first group.

    Parts of like sizes go together: what a batch takes is a staircase, so four times one token may be cheaper one by one, and four times
    five in one batch.
    """
    order = sorted(range(len(sizes)), key=lambda at: sizes[at])
    best: list[tuple[float, list[list[int]]]] = [(0.0, [])]  # of the first so many in that order
    for end in range(1, len(order) + 1):
        ways = [(best[start], order[start:end]) for start in range(end)]
        best.append(
            min(((cost + seconds(sum(sizes[at] for at in group)), [*rest, group]) for (cost, rest), group in ways), key=lambda way: way[0])
        )
    return sorted((sorted(group) for group in best[-1][1]), key=lambda group: group[0])


def _evaluate(context: LlamaContext, wishes: Sequence[_Request]) -> None:
    """In one batch; if that fails, one by one, so that everybody gets what is wrong with their own.

    An interruption is nobody's but this thread's: it is raised, and who waits for the others' rows evaluates anew.
    """
    for wish in wishes:
        if len(wish.part.timeline.tokens) > wish.held:  # read, but the rows were lost
            context.drop(wish.part.timeline, wish.held)
    try:
        for wish, rows in zip(wishes, [rows.copy() for rows in context.evaluate([wish.part for wish in wishes])]):
            wish.rows = rows
    except Exception as error:
        if len(wishes) == 1:
            wishes[0].error = error
            return
        for wish in wishes:
            _evaluate(context, [wish])


class SharedSession(LlamaSession):
    """A timeline that is read together with those of other seats. Used by one thread at a time, like any session.

    timeline: its place in the context, if it has one already.
    """

    def __init__(
        self,
        context: LlamaContext,
        gathering: SharedBatches,
        seat: Participant,
        *,
        n_vocab: int | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self._gathering, self._seat = gathering, seat
        super().__init__(context, n_vocab=n_vocab, timeline=timeline)

    def extend(self, tokens: list[int], keep: int) -> Array:
        """See :meth:`LlamaSession.extend`. Raises SessionError too where nobody wants the rest of a long text any more."""
        held, start = len(self.tokens), 0
        try:
            while len(tokens) - keep - start > PIECE:
                self._read(tokens[start : start + PIECE], 0)
                start += PIECE
                if self._seat.stopped():
                    raise SessionError("the reading of a text was ended, because nobody waits for it any more")
            return self._read(tokens[start:], keep)
        except BaseException:
            if len(self.tokens) > held:
                self.roll_back(held)
            raise

    def _read(self, tokens: list[int], keep: int) -> Array:
        return self._gathering.read(self._seat, self.context, Part(self.timeline, tokens, keep))
