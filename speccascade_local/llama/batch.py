"""What llama_decode reads: parts of timelines, tokens with their positions in a sequence, and where logits are computed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import llama_cpp
import numpy as np

from ..common.errors import ContextOverflowError, PromptError, SessionError, SettingError
from ..tokens.rows import MAX_ROWS
from ..tokens.sampler import Array
from .backend import complaint

#: The most tokens of one llama_decode.
BATCH_TOKENS = 512
#: The most copies of a recurrent state.
MAX_COPIES = 4


@dataclass
class Rollbacks:
    """The cost of rollbacks so far: recurrent states saved and restored, tokens read again, and the seconds of the copies alone."""

    saved: int = 0
    restored: int = 0
    replayed: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class Timeline:
    """One sequence of tokens in a context.

    It is ``uncertain`` while llama.cpp's memory changes. After an interruption nothing after ``held`` counts, and nothing of a recurrent
    state. A new timeline is uncertain too: its sequence may hold what an earlier one left.
    """

    sequence: int  # its number in the context
    n_vocab: int  # width of its rows
    tokens: list[int] = field(default_factory=list)  # what it holds
    closed: bool = False  # whether it was released
    held: int = 0  # how many of its tokens llama.cpp's memory holds
    uncertain: bool = True
    batch: int = 0  # how many tokens it read last, in one batch; 0 for unknown
    aligned: int = 0  # how many of its first tokens are in the memory as a cold prefill writes them (``LlamaContext.aligned``)
    rolled_back: bool = True  # whether it was rolled back since the last read
    checkpoints: list[Any] = field(default_factory=list)  # copies of its state
    rollbacks: Rollbacks = field(default_factory=Rollbacks)  # what rollbacks have cost


class Part(NamedTuple):
    """What one timeline reads: tokens to append, and after how many of the last ones logits are computed."""

    timeline: Timeline
    tokens: list[int]
    keep: int

    def check(self, n_vocab: int, n_ctx: int) -> None:
        """Raise SettingError, PromptError or ContextOverflowError where llama_decode cannot read this."""
        n_held, n_new = len(self.timeline.tokens), len(self.tokens)
        most = min(n_new, MAX_ROWS)
        if not (n_new and 0 <= self.keep <= most):
            raise SettingError(
                f"keep is {self.keep}; it must be between 0 and min(number of tokens, {MAX_ROWS}) = {most}, with at least one token"
            )
        if not (min(self.tokens) >= 0 and max(self.tokens) < n_vocab):
            raise PromptError(f"token ids run from {min(self.tokens)} to {max(self.tokens)}; this vocabulary has 0 to {n_vocab - 1}")
        if n_held + n_new > n_ctx:
            raise ContextOverflowError(
                f"{n_held} tokens held and {n_new} more do not fit a context of {n_ctx}; "
                "shorten the text or load with a larger context (--ctx)"
            )


class Batch:
    """A ``llama_batch`` over numpy arrays, so nothing needs freeing by hand."""

    def __init__(self) -> None:
        self.ids, self.positions, self.owners, self.counts = (np.zeros(BATCH_TOKENS, np.int32) for _ in range(4))
        self.outputs = np.zeros(BATCH_TOKENS, np.int8)
        self.counts[:] = 1
        self._views: dict[tuple[int, int], Array] = {}  # by address and number of rows
        id_pointer = ctypes.POINTER(llama_cpp.llama_seq_id)
        first = self.owners.ctypes.data
        self._owners = (id_pointer * BATCH_TOKENS)(*(ctypes.cast(first + 4 * i, id_pointer) for i in range(BATCH_TOKENS)))
        self._batch = llama_cpp.llama_batch(
            0,
            self.ids.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token)),
            None,
            self.positions.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_pos)),
            self.counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._owners,
            self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def put(self, at: int, tokens: list[int], position: int, sequence: int, keep: int = 0) -> int:
        """Put tokens into the batch from index ``at``, at ``position`` of a sequence, and return the index after them.

        Logits are computed after the last ``keep`` tokens.
        """
        end = at + len(tokens)
        self.ids[at:end] = tokens
        self.positions[at:end] = np.arange(position, position + len(tokens))
        self.owners[at:end] = sequence
        self.outputs[at : end - keep] = 0
        self.outputs[end - keep : end] = 1
        return end

    def decode(self, context: Any, size: int) -> int:
        """Evaluate the first ``size`` tokens, and return llama.cpp's code."""
        self._batch.n_tokens = size
        code: int = llama_cpp.llama_decode(context, self._batch)
        return code

    def rows(self, context: Any, count: int, n_vocab: int) -> Array:
        """Return the rows of the last evaluation, [count, n_vocab] float32: a view into llama.cpp's buffer.

        Views are cached: making one takes longer than reading a small row.
        """
        buffer = llama_cpp.llama_get_logits(context)
        key = ctypes.addressof(buffer.contents), count
        if key not in self._views:
            self._views[key] = np.ctypeslib.as_array(buffer, (count, n_vocab))
        return self._views[key]


class InconsistentError(SessionError):
    """llama.cpp's memory and a timeline differ."""


def check_code(code: int, size: int, file: str) -> None:
    """Raise SessionError unless a llama_decode of ``size`` tokens returned 0."""
    if code == -1:  # ids are checked, so it is the positions
        raise InconsistentError(
            f"{file}: llama_decode returned -1 (invalid batch) for {size} tokens: {complaint()}. "
            "The KV cache is inconsistent. The text is read once more; if that fails too, load the pair again"
        )
    if code != 0:
        meaning = {1: "no room in the KV cache", 2: "aborted"}.get(code, "evaluation failed")
        raise SessionError(
            f"{file}: llama_decode returned {code} ({meaning}) for {size} tokens: {complaint()}. "
            "If memory is short, load with a smaller context (--ctx)"
        )
