"""A model's timeline as the decoding loop uses it."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import llama_cpp

from ..common.errors import SessionError, SettingError
from ..tokens.sampler import Array
from .batch import Part, Timeline
from .context import LlamaContext


class SavedState(NamedTuple):
    """What a session held: the tokens, and llama.cpp's bytes for them, which save another prefill."""

    tokens: tuple[int, ...]
    state: bytes


class LlamaSession:
    """One sequence of tokens over a model: the real :class:`~speccascade_local.decoding.draft.Session`.

    ``n_vocab`` crops the rows to fewer ids, for a partner with a slightly smaller vocabulary. ``timeline`` is its place in the context,
    which lets several sessions read at once; opened here unless given. Raises SessionError where the context is closed or full.
    """

    def __init__(self, context: LlamaContext, *, n_vocab: int | None = None, timeline: Timeline | None = None) -> None:
        self.context, self.model, self.n_ctx = context, context.model, context.n_ctx
        self.timeline = timeline = timeline or context.open(n_vocab)
        #: Views of the timeline, for reading only: width of its rows, the ids that it holds, what rollbacks have cost so far.
        self.n_vocab, self.tokens, self.rollbacks = timeline.n_vocab, timeline.tokens, timeline.rollbacks

    def extend(self, tokens: list[int], keep: int) -> Array:
        """Append ``tokens`` and return the logits after the last ``keep``, [keep, n_vocab]; see :meth:`LlamaContext.evaluate`."""
        return self.context.evaluate([Part(self.timeline, tokens, keep)])[0]

    def roll_back(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens. Raises SessionError when the model cannot."""
        self.context.require_open(self.timeline)
        if not 0 <= length <= len(self.tokens):
            raise SettingError(f"cannot roll back to {length}; the session holds {len(self.tokens)} tokens")
        self.context.drop(self.timeline, length)

    @property
    def missing(self) -> int:
        """How many of ``tokens`` the next ``extend`` reads again, because the model's memory rolled back further."""
        return self.context.rollback.missing(self.timeline)

    def aligned(self, length: int) -> int:
        """Return how many of the first ``length`` tokens a cold prefill would have written alike; see :meth:`LlamaContext.aligned`."""
        return self.context.aligned(self.timeline, length)

    def close(self) -> None:
        """Make room for another session in the context. Harmless when repeated."""
        self.context.release(self.timeline)

    def save_state(self) -> SavedState:
        """Return what the session holds. Raises SessionError."""
        context, timeline = self.context, self.timeline
        context.require_open(timeline)
        with context.in_use:
            context.rollback.settle(timeline, len(timeline.tokens))  # a memory that rolled back further holds less than the text
            sequence = timeline.sequence
            size = llama_cpp.llama_state_seq_get_size(context.handle, sequence)
            buffer = (ctypes.c_uint8 * size)()
            written = llama_cpp.llama_state_seq_get_data(context.handle, buffer, size, sequence)
            tokens = tuple(timeline.tokens[: timeline.held])
        if not 0 < written <= size:
            raise SessionError(
                f"{self.model.path.name}: llama.cpp wrote {written} of {size} bytes of this model's KV cache; the text can be saved, but "
                "not the cache"
            )
        return SavedState(tokens, bytes(memoryview(buffer)[:written]))

    def restore_state(self, saved: SavedState) -> None:
        """Hold again what was saved. Raises SessionError where that is impossible; the session is then empty."""
        context, timeline = self.context, self.timeline
        with context.in_use:
            self.roll_back(0)
            context.rollback.clear(timeline)
            if not saved.tokens:
                return
            if len(saved.tokens) > context.n_ctx:
                raise SessionError(f"{self.model.path.name}: {len(saved.tokens)} tokens were saved and the context holds {context.n_ctx}")
            data = (ctypes.c_uint8 * len(saved.state)).from_buffer_copy(saved.state)
            timeline.uncertain = True  # until llama.cpp has accepted it
            read = llama_cpp.llama_state_seq_set_data(context.handle, data, len(saved.state), timeline.sequence)
            held = 1 + llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(context.handle), timeline.sequence)
            if read != len(saved.state) or held != len(saved.tokens):
                context.rollback.clear(timeline)
                raise SessionError(
                    f"{self.model.path.name}: llama.cpp does not take the saved KV cache of this model "
                    "(another version, cache type or context?)"
                )
            timeline.tokens += saved.tokens
            timeline.held = held
            timeline.uncertain = False
