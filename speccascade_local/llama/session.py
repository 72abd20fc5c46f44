"""A model's timeline as the decoding loop wants it. Knows nothing of pairs, rules or sampling, and of llama.cpp only its context."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import llama_cpp

from ..common.errors import SessionError, SettingError
from ..tokens.sampler import Array
from .batch import Part, Rollbacks, Timeline
from .context import LlamaContext
from .model import LlamaModel


class LlamaSession:
    """One sequence of tokens over a model: the real :class:`~speccascade_local.decoding.draft.Session`.

    n_vocab: crops the rows to fewer ids, for a partner with a slightly smaller vocabulary. timeline: its place in the context, for
    ``LlamaContext.evaluate``, which lets several sessions read at once; made here unless it is given. Raises SessionError if the context
    is closed or full.
    """

    def __init__(self, context: LlamaContext, *, n_vocab: int | None = None, timeline: Timeline | None = None) -> None:
        self.context = context
        self.timeline = timeline or context.open(n_vocab)

    @property
    def model(self) -> LlamaModel:
        """The weights."""
        return self.context.model

    @property
    def n_vocab(self) -> int:
        """Width of the rows."""
        return self.timeline.n_vocab

    @property
    def n_ctx(self) -> int:
        """How many tokens it can hold."""
        return self.context.n_ctx

    @property
    def tokens(self) -> list[int]:
        """What it holds. Not to be changed by the caller."""
        return self.timeline.tokens

    def extend(self, tokens: list[int], keep: int) -> Array:
        """Append ``tokens``; the logits after each of the last ``keep`` of them: see :meth:`LlamaContext.evaluate`. [keep, n_vocab]"""
        return self.context.evaluate([Part(self.timeline, tokens, keep)])[0]

    def roll_back(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens. Raises SessionError when the model cannot."""
        self.context.require_open(self.timeline)
        if not 0 <= length <= len(self.tokens):
            raise SettingError(f"cannot roll back to {length}; the session holds {len(self.tokens)} tokens")
        self.context.drop(self.timeline, length)

    @property
    def missing(self) -> int:
        """How many of ``tokens`` the next ``extend`` reads again, because the model's memory could not go back as far and no further."""
        return self.context.rollback.missing(self.timeline)

    def aligned(self, length: int) -> int:
        """How many of its first ``length`` tokens are in the cache as a cold reading would have them: see :meth:`LlamaContext.aligned`."""
        return self.context.aligned(self.timeline, length)

    @property
    def rollbacks(self) -> Rollbacks:
        """What going back has cost so far."""
        return self.timeline.rollbacks

    def close(self) -> None:
        """Make room for another session in the context. Harmless when repeated."""
        self.context.release(self.timeline)


class SavedState(NamedTuple):
    """tokens: what was held. state: llama.cpp's bytes for it, with which reading those tokens again is saved."""

    tokens: tuple[int, ...]
    state: bytes


def save_state(session: LlamaSession) -> SavedState:
    """What a session holds. Raises SessionError."""
    context, timeline = session.context, session.timeline
    context.require_open(timeline)
    with context.in_use:
        context.rollback.settle(timeline, len(timeline.tokens))  # a memory that could not go back as far as the text holds less of it
        sequence = timeline.sequence
        size = llama_cpp.llama_state_seq_get_size(context.handle, sequence)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(context.handle, buffer, size, sequence)
        tokens = tuple(timeline.tokens[: timeline.held])
    if not 0 < written <= size:
        raise SessionError(
            f"{session.model.path.name}: llama.cpp wrote {written} of {size} bytes of what this model's memory holds; the text can be "
            "saved, but not the cache"
        )
    return SavedState(tokens, bytes(memoryview(buffer)[:written]))


def restore_state(session: LlamaSession, kept: SavedState) -> None:
    """Make a session hold again what was saved. Raises SessionError where it cannot, and then the session holds nothing."""
    context, timeline = session.context, session.timeline
    with context.in_use:
        session.roll_back(0)
        context.rollback.clear(timeline)
        if not kept.tokens:
            return
        if len(kept.tokens) > context.n_ctx:
            raise SessionError(f"{session.model.path.name}: {len(kept.tokens)} tokens were saved and the context holds {context.n_ctx}")
        data = (ctypes.c_uint8 * len(kept.state)).from_buffer_copy(kept.state)
        timeline.uncertain = True  # until it is known what llama.cpp has taken
        read = llama_cpp.llama_state_seq_set_data(context.handle, data, len(kept.state), timeline.sequence)
        held = 1 + llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(context.handle), timeline.sequence)
        if read != len(kept.state) or held != len(kept.tokens):
            context.rollback.clear(timeline)
            raise SessionError(
                f"{session.model.path.name}: llama.cpp does not take what was saved of this model's memory "
                "(another version, cache type or context?)"
            )
        timeline.tokens += kept.tokens
        timeline.held = held
        timeline.uncertain = False
