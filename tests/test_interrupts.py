"""A KeyboardInterrupt at any line of what changes caches: the next answer is right, whatever kind of memory the models have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from interrupting import Point, Tracer
from tiny_architectures import N_VOCAB, write_architecture

import speccascade_local as sc
from speccascade_local.batch import Part
from speccascade_local.context import LlamaContext
from speccascade_local.model import LlamaModel
from speccascade_local.saved import restore, saved
from speccascade_local.session import LlamaSession

CACHES = ("rollback", "context", "batch", "session", "saved")
WHOLE_CALLS = (*CACHES, "runtime", "cascade", "answering", "drafting", "generation", "ahead", "ngram", "verify")
#: A model for each way back.
KINDS = {"tail": "llama-dense", "snapshots": "qwen35-dense", "checkpoints": "falcon-h1-dense"}
TEXT = [(7 * n + 3) % N_VOCAB for n in range(60)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float], Path]:
    folder = tmp_path_factory.mktemp("interrupted")

    def write(name: str, off: float) -> Path:
        path = folder / f"{name}-{off:g}.gguf"
        return path if path.exists() else write_architecture(path, name, off=off)

    return write


class Sessions:
    """Two timelines of one context, and a third in a context of its own, which nothing interrupts."""

    def __init__(self, path: Path, kind: str) -> None:
        self.model = LlamaModel(path)
        self.contexts = [LlamaContext(self.model, n_ctx=256, n_threads=1, n_timelines=n) for n in (2, 1)]
        context, _ = self.contexts
        assert context.rollback.name == kind
        self.one, self.other = LlamaSession(context), LlamaSession(context)
        self.cold = LlamaSession(self.contexts[1])
        context.pad_batches({3: 8})

    def close(self) -> None:
        for each in [*self.contexts, self.model]:
            each.close()

    def use(self) -> None:
        """All that changes a memory: long and short texts, drafts, going back by few and by many tokens, bytes put back, common batches."""
        one, other = self.one, self.other
        one.rewind(0)
        one.extend(TEXT[:50], 1)
        one.rewind(48)
        for _ in range(2):
            one.extend([1, 2, 3, 4, 5], 4)
            one.rewind(len(one.tokens) - 2)
        one.extend([9, 8, 7], 1)
        kept = saved(one)
        one.rewind(20)
        one.extend([3, 4, 5], 3)
        restore(one, kept)
        one.rewind(len(one.tokens) - 1)
        other.rewind(min(len(other.tokens), 7))
        one.context.evaluate([Part(one.timeline, [5, 6], 2), Part(other.timeline, [7, 8, 9], 1)])
        other.rewind(len(other.tokens) - 2)
        other.extend([2], 1)
        fresh, self.other = other, LlamaSession(one.context, timeline=other.timeline)
        fresh.rewind(1)

    def assert_true(self) -> None:
        """What each session reads next is what a context reads that never held anything else."""
        for session in (self.one, self.other):
            text = [*session.tokens, 5, 6, 7]
            rows = session.extend([5, 6, 7], 3).copy()
            self.cold.rewind(0)
            expected = self.cold.extend(text, 3)
            assert np.abs(rows - expected).max() <= 0.01 * expected.std()


def ways_to_break(make, by_bytecode=False, modules=CACHES, use="use"):
    tested = make()
    tracer = Tracer(modules, by_bytecode=by_bytecode)
    getattr(tested, use)()
    with tracer.tracing():
        getattr(tested, use)()
    bad, points = [], tracer.points()
    for point in points:
        tracer = Tracer(modules, point, by_bytecode=by_bytecode)
        try:
            with tracer.tracing():
                getattr(tested, use)()
        except KeyboardInterrupt:
            pass
        except Exception as e:
            bad.append((point, "raised", repr(e)[:150]))
        try:
            tested.assert_true()
        except BaseException as e:
            if not isinstance(e, Exception) and not isinstance(e, AssertionError): raise
            bad.append((point, repr(e)[:200]))
            tested.close()
            tested = make()
    tested.close()
    return points, bad

@pytest.mark.parametrize("by_bytecode", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sessions(written, kind, by_bytecode):
    path = written(KINDS[kind], 0.0)
    points, bad = ways_to_break(lambda: Sessions(path, kind), by_bytecode)
    print(kind, by_bytecode, len(points), len(bad))
    for b in bad[:30]: print(Path(b[0].file).name, b[0].line, b[0].offset, b[0].nth, b[1:])
    assert not bad
