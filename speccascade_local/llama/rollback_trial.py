"""Which way of going back a model's memory really has: found by reading, going back, reading on, and comparing.

What a model says of itself is only where to begin. Knows nothing of how llama.cpp does any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..common.errors import ModelLoadError, SessionError
from ..tokens.sampler import Array
from .batch import Part, Timeline
from .model import LlamaModel
from .rollback import Rollback

#: Rows that should be the same may differ by this, on the whole and in units of their spread: batches of different sizes sum in different
#: orders, and a mixture of experts may then choose others. Rows that stand behind another text differ by about 1.
TOLERANCE = 0.25
_TEXT, _DRAFT, _OTHER = 5, 4, 2


class Context(Protocol):
    """As much of a :class:`~speccascade_local.llama.context.LlamaContext` as is needed here."""

    model: LlamaModel
    n_ctx: int
    rollback: Rollback

    def open(self) -> Timeline: ...

    def release(self, timeline: Timeline) -> None: ...

    def evaluate(self, parts: Sequence[Part]) -> list[Array]: ...

    def drop(self, timeline: Timeline, length: int) -> None: ...


def choose(context: Context, ways: Sequence[Rollback]) -> None:
    """Give the context the first of the ways back that works; the first at its word, if there is no room to try.

    Raises ModelLoadError when none does, or when a draft cannot be judged.
    """
    ids = (np.arange(_TEXT + _DRAFT + _OTHER) * 7 + 3) % context.model.n_vocab
    text, draft, other = (part.tolist() for part in np.split(ids, [_TEXT, _TEXT + _DRAFT]))
    reasons = []
    for way in ways:
        context.rollback = way
        if context.n_ctx < _TEXT + _DRAFT:
            return
        whole, single, straight = _straight_rows(context, text, draft[:1], other)
        try:
            last, judged, again = _rows(context, text, draft, other)
        except SessionError as error:
            reasons.append(f"its memory cannot go back to an earlier token ({error})")
            continue
        if not (_agree(last, whole[-1:]) and _agree(judged[:1], single)):
            reasons = ["it tells other things of a token read by itself than of one read together with others, as drafts are"]
            break
        if _agree(again, straight):
            return
        reasons.append(f"its memory cannot go back to an earlier token: {way.name} gives other rows")
    raise ModelLoadError(f"{context.model.path}: {'; '.join(reasons)}; choose another model")


def _rows(context: Context, text: list[int], draft: list[int], other: list[int]) -> tuple[Array, Array, Array]:
    """The last of a text, those of a draft behind it, and those of what follows the draft's first token instead of the rest."""
    timeline = context.open()
    try:
        last = context.evaluate([Part(timeline, text, 1)])[0].copy()
        context.drop(timeline, len(text))
        judged = context.evaluate([Part(timeline, draft, len(draft))])[0].copy()
        context.drop(timeline, len(text) + 1)
        return last, judged, context.evaluate([Part(timeline, other, len(other))])[0].copy()
    finally:
        context.release(timeline)


def _straight_rows(context: Context, *parts: list[int]) -> list[Array]:
    """All of each part, one after the other in an empty timeline."""
    timeline = context.open()
    try:
        return [context.evaluate([Part(timeline, tokens, len(tokens))])[0].copy() for tokens in parts]
    finally:
        context.release(timeline)


def _agree(rows: Array, expected: Array) -> bool:
    """False for rows that are not numbers too."""
    return bool(np.sqrt(np.square(rows - expected).mean()) <= TOLERANCE * expected.std())
