"""Two devices at once: both models read the prompt together, and the drafter writes on while the expert reads, in the hope that
everything will be kept.

Worth it where the two models do not compete, such as an expert on a GPU and a drafter on the CPU. What was written ahead is used only if
the block turns out as was hoped, to the bonus token, so it was drawn after exactly the text that it now follows. How much is written ahead
is decided beforehand and never by a clock, so a seed repeats an answer here too. Knows nothing of rules or costs.
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

#: What was last given to a thread for each session.
_GIVEN: WeakKeyDictionary[Session, Future[Any]] = WeakKeyDictionary()


def wait_for(session: Session) -> None:
    """Wait for a thread that still works with the session, because the call that started it was interrupted before it could wait."""
    given = _GIVEN.get(session)
    if given is not None:
        wait([given])


@contextmanager
def reading_meanwhile(session: Session, tokens: list[int]) -> Iterator[None]:
    """The session reads ``tokens`` in a thread of its own; leaving waits for it, and raises what it raised."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert") as pool:
        reading = _GIVEN[session] = pool.submit(session.extend, tokens, 0)
        yield
        reading.result()


class WriteAhead:
    """The drafter in a thread of its own. Between ``start`` and ``join`` nobody else may touch it, the generation's random numbers or its
    shaper.

    The loop starts it before the expert reads and joins it right after. Use it as a context manager: leaving waits for the thread.
    calls: batches of the drafter since the last ``start``.
    """

    def __init__(self, drafter: Session) -> None:
        self.calls = 0
        self._drafter = drafter
        self._left = False
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[ReadAhead] | None = None
        self._written: ReadAhead = []
        self._hoped: list[int] = []

    def __enter__(self) -> WriteAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def start(self, generation: Generation, draft: Draft, length: int) -> None:
        """Write ``length`` tokens behind ``draft``, the first of them in place of the bonus token."""
        self.calls, self._hoped = 0, draft.token_ids
        if length < 1 or len(generation.tokens) + len(self._hoped) + length > self._drafter.n_ctx:
            return
        known = [draft.rows[len(self._hoped)]] if len(draft.rows) > len(self._hoped) else []  # the drafter has read its last token
        self._pool = self._pool or ThreadPoolExecutor(max_workers=1, thread_name_prefix="drafter")
        self._writing = _GIVEN[self._drafter] = self._pool.submit(self._write, generation.with_drafts(self._hoped), length, known)

    def join(self) -> None:
        """Wait for what was started, if anything."""
        writing, self._writing = self._writing, None
        self._written = writing.result() if writing else []

    def kept(self, verdict: Verdict) -> ReadAhead:
        """What follows the text now: all behind the bonus token if that is as hoped, else nothing."""
        as_hoped = bool(self._written) and list(verdict.token_ids) == [*self._hoped, self._written[0][1]]
        return self._written[1:] if as_hoped else []

    def _write(self, generation: Generation, length: int, known: list[Rows]) -> ReadAhead:
        written: ReadAhead = []
        while len(written) < length and not self._left and not (written and generation.is_end(written[-1][1])):
            if known:
                row = known.pop()
            else:
                self.calls += 1
                row = next_row(self._drafter, generation)
            written.append((row, generation.draw(row)))
            generation.grow([written[-1][1]])
        return written
