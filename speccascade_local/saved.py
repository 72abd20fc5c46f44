"""What a model's memory holds of a text, as bytes that can be put back later, even by another process.

The bytes are llama.cpp's own: they fit the model that they were taken from, and mean nothing to anyone else. Knows nothing of files.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import llama_cpp

from .errors import SessionError
from .session import LlamaSession


class Saved(NamedTuple):
    """tokens: what was held. state: llama.cpp's bytes for it, with which reading those tokens again is saved."""

    tokens: tuple[int, ...]
    state: bytes


def saved(session: LlamaSession) -> Saved:
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
    return Saved(tokens, bytes(memoryview(buffer)[:written]))


def restore(session: LlamaSession, kept: Saved) -> None:
    """Make a session hold again what was saved. Raises SessionError where it cannot, and then the session holds nothing."""
    context, timeline = session.context, session.timeline
    with context.in_use:
        session.rewind(0)
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
