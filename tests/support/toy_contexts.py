"""A context without a model. Its rows depend on a text alone, in any batch, and are views for one call, as llama.cpp's are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
from toys import RowOf, random_rows

import speccascade_local as sc
from speccascade_local.common.errors import PromptError
from speccascade_local.decoding.profile import SIZES, Profile, Speed
from speccascade_local.llama.batch import Part, Rollbacks, Timeline
from speccascade_local.llama.session import LlamaSession
from speccascade_local.rules.registry import parse
from speccascade_local.runtime.runtime import Runtime

#: Any batch takes as long as a single token, so as much as possible is read together.
FLAT = Speed(1, 1, (0,), (tuple(0.01 for _ in SIZES),), 1e-6)
CHEAP = Speed(1, 1, (0,), (tuple(0.001 for _ in SIZES),), 1e-6)


class ToyContext:
    """What a :class:`LlamaSession` needs of a context. ``batches`` has the number of tokens of each part, for each evaluation."""

    def __init__(self, row_of: RowOf, model, *, n_vocab: int, n_ctx: int = 512, timelines: int = 1) -> None:
        self.row_of, self.model, self.n_vocab, self.n_ctx, self.timelines = row_of, model, n_vocab, n_ctx, timelines
        self.batches: list[list[int]] = []
        self.decoders: set[int] = set()  # threads that evaluated
        self.rollback = SimpleNamespace(missing=lambda timeline: 0)
        self.entered, self.leave = threading.Event(), threading.Event()
        self.leave.set()
        self._rows = np.empty((0, n_vocab), np.float32)
        self._evaluating, self._in_use = threading.Lock(), threading.Lock()
        self._open = 0

    def open(self, n_vocab: int | None = None) -> Timeline:
        if self._open == self.timelines:
            raise sc.SessionError("all timelines of this context are in use")
        self._open += 1
        return Timeline(0, n_vocab or self.n_vocab, rollbacks=Rollbacks())

    def release(self, timeline: Timeline) -> None:
        assert not timeline.closed
        timeline.closed = True
        self._open -= 1

    def require_open(self, timeline: Timeline | None = None) -> None:
        assert timeline is None or not timeline.closed

    def evaluate(self, parts: Sequence[Part]) -> list[np.ndarray]:
        assert self._evaluating.acquire(blocking=False), "two threads evaluate in one context"
        try:
            with self._in_use:
                return self._rows_of(parts)
        finally:
            self._evaluating.release()

    def _rows_of(self, parts: Sequence[Part]) -> list[np.ndarray]:
        self.decoders.add(threading.get_ident())
        self.entered.set()
        assert self.leave.wait(30)
        self._rows[:] = np.nan  # earlier views are invalid
        self.batches.append([len(part.tokens) for part in parts])
        for part in parts:
            if max(part.tokens) >= self.n_vocab:
                raise PromptError(f"token id {max(part.tokens)}")
        rows = []
        for timeline, tokens, keep in parts:
            start = len(timeline.tokens) + len(tokens) - keep
            timeline.tokens += tokens
            rows += [self.row_of(timeline.tokens[: start + i + 1]) for i in range(keep)]
        self._rows = np.array(rows, np.float32)
        ends = np.cumsum([part.keep for part in parts])
        return [self._rows[end - part.keep : end] for end, part in zip(ends, parts)]

    def aligned(self, timeline: Timeline, length: int) -> int:
        return length

    def drop(self, timeline: Timeline, length: int) -> None:
        with self._in_use:  # as a real one waits for an evaluation
            del timeline.tokens[length:]


def toy_runtime(demo: sc.Runtime, timelines: int = 1) -> Runtime:
    """Return a runtime with the vocabulary and templates of a real pair over two small Markov models that agree in part."""
    shared, own = random_rows(demo.n_vocab, 3), random_rows(demo.n_vocab, 4)
    rows = {"drafter": lambda text: 1.5 * shared(text) + 0.7 * own(text), "expert": lambda text: 1.5 * shared(text)}
    model = demo.models["expert"]
    contexts = {role: ToyContext(row, model, n_vocab=demo.n_vocab, timelines=timelines) for role, row in rows.items()}
    sessions = {role: LlamaSession(context) for role, context in contexts.items()}
    runtime = Runtime(demo.pair, parse("strict"), sessions["drafter"], sessions["expert"], ExitStack())
    runtime._loaded.profile = toy_profile()
    return runtime


def toy_profile() -> Profile:
    """Return a profile of models that evaluate a batch as fast as a token."""
    return Profile(FLAT, CHEAP, 1.0, {})
