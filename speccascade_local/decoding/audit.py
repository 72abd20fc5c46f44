"""The audit: the expert judges, after the answer, the tokens that a sequential cascade or the drafter wrote without it.

Each of them was drawn from the drafter's own sampling distribution, so its raw row is stored until the answer is complete. Then the
expert reads the answer in batches. Nothing here changes the text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

from ..rules.evidence import Evidence
from ..rules.position_rules import Never
from ..rules.rule import Decision
from ..tokens.rows import MAX_ROWS
from ..tokens.sampler import Array, Sampler
from ..tokens.shaping import Shaper
from .draft import Session
from .fidelity import Entry, Recording, make_entry
from .loop import Block
from .stats import Stats

log = logging.getLogger(__name__)

#: Most bytes of the drafter's rows that are stored: 1,700 tokens where the vocabulary has 150,000.
MOST_BYTES = 1 << 30


class Audit:
    """Stores what judging an answer's tokens needs, block by block with :meth:`keep`.

    An answer whose rows exceed ``MOST_BYTES`` is not judged, and the log shows a warning. ``prompt``: the ids before the answer.
    """

    def __init__(self, prompt: Sequence[int], sampler: Sampler, shaper: Shaper, recording: Recording) -> None:
        self._prompt, self._sampler, self._shaper, self._recording = list(prompt), sampler, shaper, recording
        self.clear()

    def clear(self) -> None:
        """Forget the answer, because another one takes its place."""
        self._reply: list[int] = []
        self._rows: dict[int, Array] = {}  # the drafter's, [n_vocab], by the place of the token that was drawn from it
        self._bytes = 0

    def keep(self, block: Block) -> None:
        """Store one more block."""
        first = len(self._reply)
        self._reply += block.verdict.token_ids
        for place, (entry, rows) in enumerate(zip(block.verdict.entries, block.draft.rows), start=first):
            if entry.expert_logprob is not None or self._bytes > MOST_BYTES:
                continue
            self._rows[place] = rows.logits[0]
            self._bytes += rows.logits.nbytes
            if self._bytes > MOST_BYTES:
                log.warning("this answer is not audited: the drafter's rows of %d tokens exceed 1 GiB", len(self._rows))
                self._rows.clear()

    @property
    def due(self) -> bool:
        """Whether there are tokens to judge."""
        return bool(self._rows)

    def entries(self, expert: Session, stats: Stats) -> Iterator[Mapping[int, Entry]]:
        """Yield, batch after batch, the entries of the tokens to judge, by their places in the answer; ``stats`` counts the cost.

        The expert then holds all of the text except its last token, and after an interruption a prefix of the text. Raises SessionError
        where an evaluation fails, and SettingError where the grammar does.
        """
        text, begin = [*self._prompt, *self._reply], len(self._prompt)
        first, last = min(self._rows), max(self._rows)
        expert.roll_back(min(len(expert.tokens), begin + first - 1))
        for start in range(first, last + 1, MAX_ROWS):
            begun, stop = time.perf_counter(), min(start + MAX_ROWS, last + 1)
            logits = expert.extend(text[len(expert.tokens) : begin + stop - 1], keep=stop - start)
            entries = {place: self._judge(place, row) for place, row in zip(range(start, stop), logits) if place in self._rows}
            stats.audited += len(entries)
            stats.audit_s += time.perf_counter() - begun
            yield entries

    def _judge(self, place: int, row: Array) -> Entry:
        before = self._reply[:place]
        drafter, expert = (self._shaper.rows(logits[None], before, ()) for logits in (self._rows[place], row))
        decision = Decision(Never(), Evidence(drafter, expert, self._sampler))
        return make_entry(self._recording, self._reply[place], self._sampler, expert, drafter, decision)
