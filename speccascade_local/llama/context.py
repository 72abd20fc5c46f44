"""A llama.cpp context: the memory of several timelines over one model, and the batch that evaluates them.

What is appended to any of the timelines is evaluated in one llama_decode. Every return code is checked. The context is freed once, before
its model.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np

from ..common.errors import ModelLoadError, SessionError, SettingError, UnwantedError
from ..tokens.rows import MAX_ROWS
from ..tokens.sampler import Array
from .backend import complaint, create, forget_complaints, free, in_own_process, require_own_process
from .batch import BATCH_TOKENS, Batch, InconsistentError, Part, Timeline, check_code
from .exactness import MIN_BATCH, largest_exact_batch
from .model import LlamaModel, apply_adapters
from .parameters import SNAPSHOTS, context_parameters
from .rollback import Rollback, Tail, possible_rollbacks
from .rollback_trial import choose_rollback

log = logging.getLogger(__name__)

#: The most timelines: each can then get all its rows from one batch.
MAX_TIMELINES = BATCH_TOKENS // MAX_ROWS


class LlamaContext:
    """Memory and batch of up to ``n_timelines`` timelines over one model, for one thread at a time; a second thread waits.

    Args:
        model: the weights.
        n_ctx: tokens that each timeline can hold.
        n_threads: for single tokens and batches alike, until :meth:`set_threads`; None for the model's default.
        n_timelines: number of timelines.
        n_snapshots: how many tokens back llama.cpp's snapshots of a recurrent state reach: worth their memory where drafts are scored, not
            where they are written token by token.

    Raises:
        SessionError: the context cannot be made, mostly because memory is short.
        ModelLoadError: the model keeps no memory of a text.
        SettingError: more timelines than a batch has room for.
    """

    def __init__(
        self, model: LlamaModel, *, n_ctx: int, n_threads: int | None = None, n_timelines: int = 1, n_snapshots: int = SNAPSHOTS
    ) -> None:
        if not 1 <= n_timelines <= MAX_TIMELINES:
            raise SettingError(f"n_timelines is {n_timelines}; it must be between 1 and {MAX_TIMELINES}")
        self.model = model
        self.n_ctx = n_ctx  # llama.cpp rounds the size of a context up; this is the limit that users see
        self.named_threads = n_threads  # the user's choice, if any
        #: Asked between the batches of a long text; once it returns True, the read ends with an UnwantedError.
        self.unwanted: Callable[[], bool] = lambda: False
        self._padding: Mapping[int, int] = {}
        #: The largest batch whose rows equal those of single tokens to the bit, where that is required; else 0.
        self.exact = 0
        self._n_timelines = n_timelines
        self._timelines: weakref.WeakValueDictionary[int, Timeline] = weakref.WeakValueDictionary()  # by sequence, closed ones too
        #: Held by all that changes or reads the memory. Its with statement is C code, so no signal arrives between acquiring and entering.
        self.in_use = threading.RLock()
        threads = n_threads or model.default_threads
        params = context_parameters(model.placement, n_ctx=n_ctx, n_timelines=n_timelines, n_threads=threads, n_snapshots=n_snapshots)
        log.info("%s: a context of %d tokens, threads: %d", model.path.name, n_ctx, params.n_threads)
        forget_complaints()
        self._ctx = create(lambda: llama_cpp.llama_init_from_model(model.handle, params), llama_cpp.llama_free)
        if not self._ctx:
            raise SessionError(
                f"{model.path.name}: llama.cpp cannot make a context of {n_ctx} tokens: {complaint()}. "
                "Try a smaller context (--ctx) or a smaller model"
            )
        self._free_ctx = weakref.finalize(self, _free_context, self._ctx, model)
        try:
            self._prepare()
        except BaseException:
            self._free_ctx()  # now, not when collected: the caller may free the model first
            raise

    def _prepare(self) -> None:
        if self.model.adapters:
            apply_adapters(self._ctx, self.model.adapters, [scale for _, scale in self.model.placement.lora])
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        if not self._memory:
            raise ModelLoadError(
                f"{self.model.path}: this model keeps no memory of a text (an embedding model?); choose one that generates text"
            )
        self._batch = Batch()
        self._step = int(llama_cpp.llama_n_ubatch(self._ctx))
        self.rollback: Rollback = Tail(self.model.path.name, self._memory)
        choose_rollback(self, possible_rollbacks(self.model, self._ctx, self._memory))
        if self.model.placement.exact:
            self.exact = largest_exact_batch(self)

    def close(self) -> None:
        """Free the context. Harmless when repeated; the model stays."""
        if in_own_process():
            with self.in_use:
                self._free_ctx()

    def open(self, n_vocab: int | None = None) -> Timeline:
        """Return an empty timeline. ``n_vocab`` crops its rows to fewer ids, for a partner with a slightly smaller vocabulary.

        Raises SessionError where all timelines are in use.
        """
        self.require_open()
        with self.in_use:
            used = {sequence for sequence, timeline in self._timelines.items() if not timeline.closed}
            free = [sequence for sequence in range(self._n_timelines) if sequence not in used]
            if not free:
                raise SessionError("all timelines of this context are in use; close one, or make the context with more (n_timelines)")
            timeline = self._timelines[free[0]] = Timeline(free[0], n_vocab or self.model.n_vocab)
            return timeline

    def release(self, timeline: Timeline) -> None:
        """Close a timeline. Harmless when repeated."""
        if not timeline.closed and self.is_open and in_own_process():
            with self.in_use:
                self.rollback.clear(timeline)
        timeline.closed = True

    @property
    def threads(self) -> int:
        """Threads for single tokens."""
        self.require_open()
        return int(llama_cpp.llama_n_threads(self._ctx))

    @property
    def batch_threads(self) -> int:
        """Threads for two tokens and more."""
        self.require_open()
        return int(llama_cpp.llama_n_threads_batch(self._ctx))

    def set_threads(self, single: int, batch: int) -> None:
        """Set the threads for single tokens and for batches. Raises SettingError below 1."""
        self.require_open()
        if min(single, batch) < 1:
            raise SettingError(f"threads are {single} and {batch}; each must be at least 1")
        llama_cpp.llama_set_n_threads(self._ctx, single, batch)

    @property
    def padding(self) -> Mapping[int, int]:
        """The sizes that batches are padded to; empty where the model's memory cannot drop padding."""
        return self._padding

    def pad_batches(self, sizes: Mapping[int, int]) -> None:
        """Evaluate n tokens as a batch of ``sizes[n]`` from now on, where a larger batch is faster; an empty mapping ends it.

        The padding stands after the real tokens and is dropped at once, so it changes no row. It is omitted where there is no room for it,
        or the model's memory cannot drop it. Raises SettingError for a size below n or above 512.
        """
        for n, size in sizes.items():
            if not 1 <= n <= size <= BATCH_TOKENS:
                raise SettingError(f"a batch of {n} cannot be padded to {size}; the size must be from {n} (at least 1) to {BATCH_TOKENS}")
        self._padding = dict(sizes) if self.rollback.pads and not self.exact else {}

    def aligned(self, timeline: Timeline, length: int) -> int:
        """Return how many of the first ``length`` tokens the memory holds as a cold prefill writes them, to the bit.

        llama.cpp cuts a long text into pieces (n_ubatch), and rounds by their sizes. So these are the tokens that were read in whole
        pieces, counted from the first token, with no other timeline in the batch; all tokens where evaluation is exact. 0 for a recurrent
        state, which cannot roll back there.
        """
        if self.exact:
            return length
        return min(timeline.aligned, length) // self._step * self._step if self.rollback.pads else 0

    def evaluate(self, parts: Sequence[Part]) -> list[Array]:
        """Append to several timelines at once, and return the logits of each part, [keep, n_vocab] float32.

        The rows are views into llama.cpp's buffer, valid until the next call on this context. One llama_decode reads up to 512 tokens; of
        several, the last one gives all rows. If anything fails, or Ctrl-C arrives, every timeline holds what it held before. If a second
        exception arrives during that rollback, a timeline may hold the new tokens too, and the next call reads them. A memory that differs
        from its timeline is cleared and read again, once.

        Raises:
            SessionError: a timeline or the context is closed, or an evaluation fails.
            PromptError: ids outside the vocabulary.
            ContextOverflowError: the context is too small.
            SettingError: ``keep`` is outside 0..min(len(tokens), 65).
            UnwantedError: the caller gives up during a long text.
        """
        self.require_open()
        if not parts:
            return []
        for part in parts:
            self.require_open(part.timeline)
            part.check(self.model.n_vocab, self.n_ctx)
        with self.in_use:
            try:
                return self._evaluate(parts)
            except InconsistentError as error:
                log.warning("%s", error)
                for part in parts:
                    self.rollback.clear(part.timeline)
                return self._evaluate(parts)

    def _evaluate(self, parts: Sequence[Part]) -> list[Array]:
        lengths = [len(part.timeline.tokens) for part in parts]
        try:
            todo = [self._with_unread(part) for part in parts]
            if self.exact:
                return [self._exact_rows(part) for part in todo]
            while sum(len(part.tokens) for part in todo) > BATCH_TOKENS:
                # All rows must come from one llama_decode, so earlier ones read only tokens without rows.
                at, (timeline, tokens, keep) = max(enumerate(todo), key=lambda each: len(each[1].tokens) - each[1].keep)
                before = len(tokens) - keep
                size = min(BATCH_TOKENS, before // self._step * self._step or before)  # whole pieces, see ``aligned``
                self._read_on(Part(timeline, tokens[:size], 0))
                todo[at] = Part(timeline, tokens[size:], keep)
            self._decode(todo)
            for part in todo:
                self.rollback.end(part.timeline, len(part.tokens), part.keep)
            return self._rows(parts)
        except BaseException:
            for part, length in zip(parts, lengths):
                self.drop(part.timeline, length)
            raise

    def _exact_rows(self, part: Part) -> Array:
        """Read one part in batches that give each token the row that it has alone, and return copies of its rows."""
        timeline, tokens, keep = part
        rows, first = np.empty((keep, timeline.n_vocab), np.float32), len(tokens) - keep
        for at in range(0, len(tokens), self.exact):
            piece = tokens[at : at + self.exact]
            end = at + len(piece)
            n_rows = min(len(piece), max(0, end - first))
            if end < len(tokens) and not n_rows:
                self._read_on(Part(timeline, piece, 0))
                continue
            self._decode([Part(timeline, piece, n_rows)], least=MIN_BATCH)
            if n_rows:
                rows[end - n_rows - first : end - first] = self._batch.rows(self._ctx, n_rows, self.model.n_vocab)[:, : timeline.n_vocab]
        return rows

    def _with_unread(self, part: Part) -> Part:
        """Return the part preceded by the tokens of its timeline that llama.cpp does not hold."""
        timeline, tokens, keep = part
        self.rollback.settle(timeline, len(timeline.tokens))
        timeline.tokens += tokens
        unread = timeline.tokens[timeline.held :]
        separate = self.rollback.n_separate(timeline, len(unread), keep)
        for at in range(0, separate, BATCH_TOKENS):
            self._read_on(Part(timeline, unread[at : min(at + BATCH_TOKENS, separate)], 0))
        self.rollback.begin(timeline, keep)
        return Part(timeline, unread[separate:], keep)

    def _read_on(self, part: Part) -> None:
        """Read one batch of a long text, with more to follow."""
        self._decode([part])
        if self.unwanted():
            raise UnwantedError("the prefill was cancelled; ask again to continue it")

    def _decode(self, parts: Sequence[Part], *, least: int = 1) -> None:
        """Evaluate the parts in one batch, padded to at least ``least`` tokens."""
        batch, n = self._batch, 0
        ends = [timeline.held + len(tokens) for timeline, tokens, _ in parts]
        for timeline, tokens, keep in parts:
            timeline.aligned = self.aligned(timeline, timeline.held)
            n = batch.put(n, tokens, timeline.held, timeline.sequence, keep)
            timeline.uncertain = True  # until the batch is read
            timeline.batch = 0
        last, length = parts[-1], ends[-1]  # the padding stands after it
        # A piece is padded alike whether whole pieces precede it in this batch or are already held.
        rest = n % self._step if len(parts) == 1 and last.timeline.aligned == last.timeline.held else n
        padded = self._padding.get(rest, rest) if last.keep else rest
        size = max(least, n - rest + padded)
        if length + size - n > self.n_ctx + bool(self.exact):
            size = n
        if size > n:
            batch.put(n, last.tokens[-1:] * (size - n), length, last.timeline.sequence)
        forget_complaints()
        check_code(batch.decode(self._ctx, size), size, self.model.path.name)
        if len(parts) == 1 and last.timeline.aligned == last.timeline.held:
            last.timeline.aligned = length // self._step * self._step
        for part, end in zip(parts, ends):
            part.timeline.held = end
        if size > n:
            self.rollback.trim(last.timeline)
        for part in parts:
            part.timeline.uncertain = False

    def _rows(self, parts: Sequence[Part]) -> list[Array]:
        if not any(part.keep for part in parts):
            return [np.empty((0, part.timeline.n_vocab), np.float32) for part in parts]
        rows, end, views = self._batch.rows(self._ctx, sum(part.keep for part in parts), self.model.n_vocab), 0, []
        for timeline, _, keep in parts:
            views.append(rows[end : end + keep, : timeline.n_vocab])
            end += keep
        return views

    def drop(self, timeline: Timeline, length: int) -> None:
        """Drop what a timeline holds after its first ``length`` tokens. Raises SessionError when the model cannot."""
        with self.in_use:
            self.rollback.drop(timeline, length)

    @property
    def handle(self) -> Any:
        """The ``llama_context`` pointer. Raises SessionError once it is closed."""
        self.require_open()
        return self._ctx

    @property
    def is_open(self) -> bool:
        """Whether neither this context nor its model has been closed."""
        return self._free_ctx.alive and not self.model.closed

    def require_open(self, timeline: Timeline | None = None) -> None:
        """Raise SessionError where a use would crash the process, or hang."""
        require_own_process()
        if not self.is_open or (timeline and timeline.closed):
            raise SessionError(f"{self.model.path.name}: this session is closed; load the pair again")


def _free_context(context: Any, _model: LlamaModel) -> None:
    """Free a context. This finalizer holds the model, so the weights are freed later even where both are in a reference cycle."""
    free(llama_cpp.llama_free, context)
