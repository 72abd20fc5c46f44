"""Two devices at once: both models read the prompt together, and the drafter writes on while the expert reads.

This pays where the two models do not compete, such as an expert on a GPU and a drafter on the CPU. What was written ahead is used only if
the block turns out as assumed, up to the bonus token, so it was drawn after exactly the text that it then follows. How much is written
ahead never depends on a clock, so a seed repeats an answer here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from ..tokens.rows import Rows
from .draft import ReadAhead, Session, next_row
from .generation import Generation
from .verify import Draft, Verdict

#: The latest work that a thread does with each session.
_WORK: WeakKeyDictionary[Session, Future[Any]] = WeakKeyDictionary()


def wait_for(session: Session) -> None:
    """Wait for a thread that still works with the session, because the call that started it was interrupted before it could wait."""
    work = _WORK.get(session)
    if work is not None:
        wait([work])


@contextmanager
def reading_beside(session: Session, tokens: list[int]) -> Iterator[None]:
    """Let the session read ``tokens`` in a thread during the block; leaving waits for it, and raises what it raised."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert") as pool:
        reading = _WORK[session] = pool.submit(session.extend, tokens, 0)
        yield
        reading.result()


class WriteAhead:
    """The drafter in a thread of its own, started before the expert reads and joined right after.

    Between ``start`` and ``join`` no other thread may use the drafter, the generation's random numbers or its shaper. Use it as a context
    manager: leaving waits for the thread. ``calls`` counts batches of the drafter since the last ``start``.
    """

    def __init__(self, drafter: Session) -> None:
        self.calls = 0
        self._drafter = drafter
        self._closed = False
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[ReadAhead] | None = None
        self._written: ReadAhead = []
        self._assumed: list[int] = []  # what the block must keep for the written tokens to fit

    def __enter__(self) -> WriteAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def start(self, generation: Generation, draft: Draft, length: int) -> None:
        """Write ``length`` tokens after ``draft``, the first of them in place of the bonus token."""
        self.calls, self._assumed = 0, draft.token_ids
        if length < 1 or len(generation.tokens) + len(self._assumed) + length > self._drafter.n_ctx:
            return
        known = [draft.rows[len(self._assumed)]] if len(draft.rows) > len(self._assumed) else []  # the drafter has read its last token
        self._pool = self._pool or ThreadPoolExecutor(max_workers=1, thread_name_prefix="drafter")
        self._writing = _WORK[self._drafter] = self._pool.submit(self._write, generation.with_drafts(self._assumed), length, known)

    def join(self) -> None:
        """Wait for what was started, if anything."""
        writing, self._writing = self._writing, None
        self._written = writing.result() if writing else []

    def tokens_after(self, verdict: Verdict) -> ReadAhead:
        """Return what follows the text now: all after the bonus token if that is as assumed, else nothing."""
        fits = bool(self._written) and list(verdict.token_ids) == [*self._assumed, self._written[0][1]]
        return self._written[1:] if fits else []

    def _write(self, generation: Generation, length: int, known: list[Rows]) -> ReadAhead:
        written: ReadAhead = []
        while len(written) < length and not self._closed and not (written and generation.is_end(written[-1][1])):
            if known:
                row = known.pop()
            else:
                self.calls += 1
                row = next_row(self._drafter, generation)
            written.append((row, generation.draw(row)))
            generation.grow([written[-1][1]])
        return written
