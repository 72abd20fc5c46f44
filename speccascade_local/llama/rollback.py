"""Rollback: how a context forgets the end of a text after a rejected draft, in the way that the model's architecture allows.

    tail         the cache entries of single tokens are dropped: attention of all kinds
    snapshots    llama.cpp keeps the recurrent state after each of the last tokens of a batch (n_rs_seq)
    checkpoints  the recurrent state is copied before a draft and restored; the kept part of the draft is read again

A recurrent state cannot roll back alone. So the latter two roll back when the next tokens are read: only then it is known what must be
read again, and that goes into the same batch.

An exception may arrive between any two steps, even while another one is handled. So a timeline is marked as uncertain before its memory
changes, what depends on the old state is dropped first, and the mark is removed last: ``settle`` repairs what was left incomplete.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import Any, Protocol

import llama_cpp

from ..common.errors import SessionError
from .batch import MAX_COPIES, Timeline
from .model import LlamaModel

#: Most tokens that are read again together with new ones; more are read alone, once, and the state after them is copied.
_MAX_TOKENS_TOGETHER = 8
#: The least distance of two copies, in tokens.
_MIN_TOKENS_APART = 4
#: After more tokens than this, a prompt or a long draft, a copy also serves later replies; and the number of such copies.
_LONG_TOKENS, _MAX_LASTING = 32, MAX_COPIES - 1
_PARTIAL, _ON_DEVICE = 1, 2  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY and _ON_DEVICE, which has one copy per sequence


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after the first ``length`` tokens, in llama.cpp's format. ``lasting``: it serves later replies too."""

    length: int
    data: Any
    flags: int
    lasting: bool


class Rollback(Protocol):
    """A way to roll back. Afterwards llama.cpp may hold fewer tokens (``timeline.held``) than ``timeline.tokens``.

    After any interruption the next read continues ``timeline.tokens``.
    """

    name: str
    #: Whether a batch can be padded with tokens that are dropped at once.
    pads: bool

    def drop(self, timeline: Timeline, length: int) -> None:
        """Let the timeline end after its first ``length`` tokens."""

    def missing(self, timeline: Timeline) -> int:
        """Return how many tokens of the timeline must be read again."""

    def settle(self, timeline: Timeline, length: int) -> None:
        """Make the memory end after at most ``length`` tokens, before the next read; ``held`` is then certain."""

    def n_separate(self, timeline: Timeline, unread: int, keep: int) -> int:
        """Return how many of the unread tokens to read first, in a batch of their own."""

    def begin(self, timeline: Timeline, keep: int) -> None:
        """Prepare the read of the last unread tokens, for ``keep`` rows."""

    def end(self, timeline: Timeline, read: int, keep: int) -> None:
        """Finish that read; its last ``read`` tokens were one batch."""

    def trim(self, timeline: Timeline) -> None:
        """Drop what the memory holds after ``held`` tokens."""

    def clear(self, timeline: Timeline) -> None:
        """Empty the memory."""


class Tail:
    """Drops the cache entries of the last tokens at once. Raises SessionError where llama.cpp refuses."""

    name = "tail"
    pads = True

    def __init__(self, file: str, memory: Any) -> None:
        self._file, self._memory = file, memory

    def drop(self, timeline: Timeline, length: int) -> None:
        if len(timeline.tokens) > length:
            self._cut(timeline, length)
            del timeline.tokens[length:]

    def missing(self, timeline: Timeline) -> int:
        return len(timeline.tokens) - timeline.held

    def settle(self, timeline: Timeline, length: int) -> None:
        if timeline.uncertain:
            self._cut(timeline, length)

    def n_separate(self, timeline: Timeline, unread: int, keep: int) -> int:
        return 0

    def begin(self, timeline: Timeline, keep: int) -> None:
        """Prepare nothing."""

    def end(self, timeline: Timeline, read: int, keep: int) -> None:
        """Save nothing."""

    def trim(self, timeline: Timeline) -> None:
        self._cut(timeline, timeline.held)

    def clear(self, timeline: Timeline) -> None:
        self._cut(timeline, 0)

    def _cut(self, timeline: Timeline, length: int) -> None:
        """Cut the memory to at most ``length`` tokens, and mark it as certain."""
        timeline.uncertain = True
        timeline.held = min(timeline.held, length)
        timeline.aligned = min(timeline.aligned, timeline.held)
        self._remove(timeline, timeline.held)
        timeline.uncertain = False

    def _remove(self, timeline: Timeline, length: int) -> None:
        if not llama_cpp.llama_memory_seq_rm(self._memory, timeline.sequence, length, -1):
            raise SessionError(
                f"{self._file}: llama.cpp cannot drop the tail of this model's memory "
                f"(from {len(timeline.tokens)} to {length} tokens); load the pair again"
            )


class Checkpoints(Tail):
    """Restores a copy of the state, or one of llama.cpp's snapshots where these reach back far enough.

    A copy is made where the text is committed. ``drop`` only notes the new length; ``settle`` restores the state before the next read.
    A session rolls back to the committed text before every draft, even where it holds exactly that text. The first read after a rollback
    therefore ends with a draft of ``keep - 1`` tokens, and all before it is committed. Raises SessionError where llama.cpp can neither
    copy nor restore.
    """

    pads = False

    def __init__(self, file: str, memory: Any, context: Any, snapshots: int = 0) -> None:
        super().__init__(file, memory)
        self.name = "snapshots" if snapshots else "checkpoints"
        self._context, self._snapshots = context, snapshots
        # With snapshots a state has several pieces. GGML aborts if a copy on the device has other pieces than the last one.
        self._brief_flags = _PARTIAL if snapshots_of(context) else _PARTIAL | _ON_DEVICE

    def drop(self, timeline: Timeline, length: int) -> None:
        timeline.checkpoints = [each for each in timeline.checkpoints if each.length <= length]
        timeline.rolled_back = True
        del timeline.tokens[length:]  # last: a copy must never reach beyond its text

    def missing(self, timeline: Timeline) -> int:
        length = len(timeline.tokens)
        if self._can_step_back(timeline, length):
            return 0
        return length - (self._latest(timeline) if timeline.uncertain or timeline.held > length else timeline.held)

    def settle(self, timeline: Timeline, length: int) -> None:
        if not timeline.uncertain and timeline.held <= length:
            return
        started = time.perf_counter()
        if self._can_step_back(timeline, length):
            timeline.batch = 0
            self._cut(timeline, length)
        else:
            self._restore(timeline)
        timeline.rollbacks.replayed += length - timeline.held
        timeline.rollbacks.seconds += time.perf_counter() - started

    def _can_step_back(self, timeline: Timeline, length: int) -> bool:
        """Return whether a snapshot serves: there is one after each token of the last batch, for one rollback."""
        return not timeline.uncertain and 0 < timeline.held - length <= min(self._snapshots, timeline.batch - 1)

    def _restore(self, timeline: Timeline) -> None:
        """Restore the latest copy, or start from the beginning."""
        start = 0
        timeline.uncertain = True
        if timeline.checkpoints:
            latest = max(timeline.checkpoints, key=lambda each: each.length)
            start, size = latest.length, len(latest.data)
            if llama_cpp.llama_state_seq_set_data_ext(self._context, latest.data, size, timeline.sequence, latest.flags) != size:
                raise SessionError(f"{self._file}: llama.cpp cannot restore the state after {start} tokens; load the pair again")
            timeline.rollbacks.restored += 1
        self._remove(timeline, start)
        timeline.held = start
        timeline.batch = 0
        timeline.uncertain = False

    def n_separate(self, timeline: Timeline, unread: int, keep: int) -> int:
        before = unread - keep
        together = _LONG_TOKENS if self._snapshots_suffice(keep) else _MAX_TOKENS_TOGETHER
        return before if timeline.rolled_back and keep > 1 and before > together else 0

    def begin(self, timeline: Timeline, keep: int) -> None:
        if timeline.rolled_back and keep > 1:
            timeline.rolled_back = False
            if self._tokens_since_copy(timeline) >= (_LONG_TOKENS if self._snapshots_suffice(keep) else _MIN_TOKENS_APART):
                self._save(timeline)

    def end(self, timeline: Timeline, read: int, keep: int) -> None:
        timeline.batch = read
        since = self._tokens_since_copy(timeline)
        if keep == 1 and since >= (_MIN_TOKENS_APART if timeline.rolled_back else _LONG_TOKENS):  # a draft that is written, not scored
            self._save(timeline)
        timeline.rolled_back = False

    def clear(self, timeline: Timeline) -> None:
        timeline.checkpoints = []
        timeline.batch = 0
        super().clear(timeline)

    def _snapshots_suffice(self, keep: int) -> bool:
        return keep - 1 <= self._snapshots

    def _tokens_since_copy(self, timeline: Timeline) -> int:
        return timeline.held - self._latest(timeline)

    def _latest(self, timeline: Timeline) -> int:
        return max((each.length for each in timeline.checkpoints), default=0)

    def _save(self, timeline: Timeline) -> None:
        started = time.perf_counter()
        lasting = self._tokens_since_copy(timeline) >= _LONG_TOKENS
        flags = _PARTIAL if lasting else self._brief_flags
        lasting_copies = [each for each in timeline.checkpoints if each.lasting]
        brief = [each for each in timeline.checkpoints if not each.lasting]
        # The device has one copy, which the next one overwrites.
        timeline.checkpoints = [*brief, *lasting_copies[1 - _MAX_LASTING :]] if lasting else lasting_copies
        size = llama_cpp.llama_state_seq_get_size_ext(self._context, timeline.sequence, flags)
        data = (ctypes.c_uint8 * size)()
        if not size or llama_cpp.llama_state_seq_get_data_ext(self._context, data, size, timeline.sequence, flags) != size:
            raise SessionError(f"{self._file}: llama.cpp cannot copy the state after {timeline.held} tokens; load the pair again")
        timeline.checkpoints.append(Checkpoint(timeline.held, data, flags, lasting))
        timeline.rollbacks.saved += 1
        timeline.rollbacks.seconds += time.perf_counter() - started


def snapshots_of(context: Any) -> int:
    """Return how many tokens back llama.cpp's snapshots of a recurrent state reach."""
    return int(llama_cpp.llama_n_rs_seq(context)) if hasattr(llama_cpp, "llama_n_rs_seq") else 0


def possible_rollbacks(model: LlamaModel, context: Any, memory: Any) -> list[Rollback]:
    """Return the ways of rollback that may work for a context over this model, the cheapest first."""
    file = model.path.name
    copies = Checkpoints(file, memory, context)
    if snapshots := snapshots_of(context):
        return [Checkpoints(file, memory, context, snapshots), copies]
    return [copies] if model.is_recurrent else [Tail(file, memory), copies]
