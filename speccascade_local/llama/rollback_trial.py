"""Finds the rollback that a model's memory really supports, by reading, rolling back, reading again, and comparing the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..common.errors import ModelLoadError, SessionError
from ..tokens.sampler import Array
from .batch import Part, Timeline
from .model import LlamaModel
from .rollback import Rollback

#: Equal rows may differ by this root mean square, in units of their spread: batches of other sizes sum in other orders, and a mixture of
#: experts may then choose others. Rows after another text differ by about 1.
TOLERANCE = 0.25
_TEXT, _DRAFT, _OTHER = 5, 4, 2


class Context(Protocol):
    """The part of :class:`~speccascade_local.llama.context.LlamaContext` that trials of a new context need."""

    model: LlamaModel
    n_ctx: int
    rollback: Rollback
    exact: int

    def open(self) -> Timeline: ...

    def release(self, timeline: Timeline) -> None: ...

    def evaluate(self, parts: Sequence[Part]) -> list[Array]: ...

    def drop(self, timeline: Timeline, length: int) -> None: ...


def choose_rollback(context: Context, ways: Sequence[Rollback]) -> None:
    """Give the context the first way of rollback that works; without room for a trial, the first one.

    Raises ModelLoadError when none works, or when drafts cannot be scored.
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
            last, scored, again = _rows(context, text, draft, other)
        except SessionError as error:
            reasons.append(f"its memory cannot roll back to an earlier token ({error})")
            continue
        if not (_agree(last, whole[-1:]) and _agree(scored[:1], single)):
            reasons = ["its logits differ between single tokens and batches, so drafts cannot be scored"]
            break
        if _agree(again, straight):
            return
        reasons.append(f"its memory cannot roll back to an earlier token: {way.name} gives other rows")
    raise ModelLoadError(f"{context.model.path}: {'; '.join(reasons)}; choose another model")


def _rows(context: Context, text: list[int], draft: list[int], other: list[int]) -> tuple[Array, Array, Array]:
    """Return the last row of a text, the rows of a draft after it, and those of other tokens after the draft's first one."""
    timeline = context.open()
    try:
        last = context.evaluate([Part(timeline, text, 1)])[0].copy()
        context.drop(timeline, len(text))
        scored = context.evaluate([Part(timeline, draft, len(draft))])[0].copy()
        context.drop(timeline, len(text) + 1)
        return last, scored, context.evaluate([Part(timeline, other, len(other))])[0].copy()
    finally:
        context.release(timeline)


def _straight_rows(context: Context, *parts: list[int]) -> list[Array]:
    """Return all rows of the parts, read one after the other into an empty timeline."""
    timeline = context.open()
    try:
        return [context.evaluate([Part(timeline, tokens, len(tokens))])[0].copy() for tokens in parts]
    finally:
        context.release(timeline)


def _agree(rows: Array, expected: Array) -> bool:
    """Return whether rows agree; rows of NaN do not."""
    return bool(np.sqrt(np.square(rows - expected).mean()) <= TOLERANCE * expected.std())
