"""Two devices at once: both models read the prompt together, and the drafter writes on while the expert reads, in the hope that
everything will be kept.

Worth it where the two models do not compete, such as an expert on a GPU and a drafter on the CPU. What was written ahead is used only if
the block turns out as was hoped, to the bonus token, so it was drawn after exactly the text that it now follows. How much is written ahead
is decided beforehand and never by a clock, so a seed repeats an answer here too. Knows nothing of rules or costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from .drafting import ReadAhead, Session
from .evidence import Rows
from .sampling import Sampler
from .shaping import Shaper
from .verify import Draft, Verdict, drawn


@contextmanager
def meanwhile(session: Session, tokens: list[int]) -> Iterator[None]:
    """The session reads ``tokens`` in a thread of its own; leaving waits for it, and raises what it raised."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert") as pool:
        reading = pool.submit(session.extend, tokens, 1)
        yield
        reading.result()


class Ahead:
    """The drafter in a thread of its own. Between ``start`` and ``join`` nobody else may touch it, the random numbers or the shaper.

    Use it as a context manager: leaving waits for the thread.
    """

    def __init__(self, drafter: Session, sampler: Sampler, rng: np.random.Generator, is_end: Callable[[int], bool], shaper: Shaper) -> None:
        self._drafter, self._sampler, self._rng, self._is_end, self._shaper = drafter, sampler, rng, is_end, shaper
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[ReadAhead] | None = None
        self._hoped: list[int] = []

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def start(self, text: Sequence[int], reply: Sequence[int], draft: Draft, length: int) -> None:
        """Write ``length`` tokens behind ``draft``, the first of them in place of the bonus token. reply: the end of ``text``."""
        drafted = self._hoped = draft.token_ids
        if length < 1 or len(text) + len(drafted) + length > self._drafter.n_ctx:
            return
        known = [draft.rows.row(len(drafted))] if len(draft.rows) > len(drafted) else []  # the drafter has read its own last token
        self._pool = self._pool or ThreadPoolExecutor(max_workers=1, thread_name_prefix="drafter")
        self._writing = self._pool.submit(self._write, [*text, *drafted], [*reply, *drafted], length, known)

    def join(self) -> ReadAhead:
        """Wait for what was started: rows, and the token drawn from each; empty if nothing was."""
        writing, self._writing = self._writing, None
        return writing.result() if writing else []

    def kept(self, written: ReadAhead, verdict: Verdict) -> ReadAhead:
        """What of it follows the text now: all behind the bonus token if that is as hoped, else nothing."""
        as_hoped = bool(written) and list(verdict.token_ids) == [*self._hoped, written[0][1]]
        return written[1:] if as_hoped else []

    def _write(self, text: list[int], reply: list[int], length: int, known: list[Rows]) -> ReadAhead:
        written: ReadAhead = []
        while len(written) < length and not (written and self._is_end(written[-1][1])):
            tokens = [token for _, token in written]
            if known:
                row = known.pop()
            else:
                unread = [*text, *tokens][len(self._drafter.tokens) :]
                row = self._shaper.rows(self._drafter.extend(unread, keep=1).copy(), [*reply, *tokens], [])
            written.append((row, drawn(row, self._sampler, self._rng)))
        return written
