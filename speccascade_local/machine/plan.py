"""What a pair would bring on this machine, told before it is loaded: from two headers and from what other models took here.

A token takes as long as reading its weights, so seconds follow from bytes; how batches grow follows the most alike model that was
measured. What nobody can know beforehand is how often drafts will be kept, so the answer is a range. Knows nothing of files' places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import SettingError
from ..decoding.lengths import LONGEST
from ..decoding.profile import Speed
from ..models.gguf_header import Header

#: How often a drafted token is kept, from a poor pair to a good one.
ACCEPTANCE_RATES = (0.5, 0.95)
#: So far a guess of seconds may be off where one model alone was measured.
SINGLE_MODEL_ERROR = 0.25
#: Memory beside weights and caches: what llama.cpp computes in, at 512 tokens a batch, for each id of the vocabulary and token of a batch.
_ROW_BYTES, _BATCH = 4, 128


@dataclass(frozen=True)
class MeasuredModel:
    """A model that was measured on this machine: how large its weights are, in bytes, and how fast it was."""

    weights: int
    speed: Speed


@dataclass(frozen=True)
class Estimate:
    """Ranges are (low, high). speedup: of strict over the expert alone, with automatic lengths, which never choose to be slower.

    expert_s, drafter_s: seconds per token. best_length: drafted tokens per block at the better end. memory: bytes by part. basis: how many
    measured models this rests on, and how much smaller or larger than the expert the nearest is. off: by how much such a forecast of
    seconds is wrong for the measured models, each foretold from the others, the median and the most; None for a single one.
    """

    speedup: tuple[float, float]
    expert_s: tuple[float, float]
    drafter_s: tuple[float, float]
    best_length: int
    memory: dict[str, int]
    basis: tuple[int, float]
    off: tuple[float, float] | None


def estimate_pair(drafter: Header | None, expert: Header, known: Sequence[MeasuredModel], n_ctx: int) -> Estimate:
    """Drafter None: drafts are copied from the text. Raises SettingError where nothing was measured on this machine."""
    if not known:
        raise SettingError(
            "nothing has been measured on this machine yet, so nothing can be foretold; "
            "run 'speccascade profile' with any pair first, best with one of a similar size"
        )
    expert_s, drafter_s = token_seconds(expert.token_bytes, known), token_seconds(drafter.token_bytes, known) if drafter else (0.0, 0.0)
    nearest = min(known, key=lambda each: abs(np.log(each.weights / expert.token_bytes)))
    batches = [nearest.speed.batch_s(n) / nearest.speed.batch_s(1) for n in range(1, LONGEST + 2)]
    low, _ = best_length(ACCEPTANCE_RATES[0], drafter_s[1] / expert_s[0], batches)
    high, length = best_length(ACCEPTANCE_RATES[1], drafter_s[0] / expert_s[1], batches)
    models = {"expert": expert, "drafter": drafter}
    memory = {f"{role}'s weights": model.weights for role, model in models.items() if model}
    memory |= {f"{role}'s cache": model.cache_bytes * n_ctx for role, model in models.items() if model}
    memory["computing"] = sum(model.n_vocab * _BATCH * _ROW_BYTES for model in models.values() if model)
    return Estimate((low, high), expert_s, drafter_s, length, memory, (len(known), nearest.weights / expert.token_bytes), estimate_errors(known))


def token_seconds(token_bytes: int, known: Sequence[MeasuredModel]) -> tuple[float, float]:
    """Of one token, from a straight line through what was measured: some for each token, some for each byte."""
    sizes = np.array([each.weights for each in known], dtype=float)
    taken = np.array([each.speed.batch_s(1) for each in known])
    if len(set(sizes)) == 1:
        middle, off = float(np.median(taken)) * token_bytes / sizes[0], SINGLE_MODEL_ERROR
    else:
        # Relative errors are what counts: a large model's seconds must not drown a small one's.
        (overhead, per_byte), *_ = np.linalg.lstsq(np.stack([1 / taken, sizes / taken], axis=1), np.ones(len(known)), rcond=None)
        overhead, per_byte = max(overhead, 0.0), max(per_byte, 0.0)
        middle = float(overhead + per_byte * token_bytes)
        off = max(0.1, float(np.max(np.abs((overhead + per_byte * sizes) / taken - 1))))
    return middle * (1 - min(off, 0.9)), middle * (1 + off)


def estimate_errors(known: Sequence[MeasuredModel]) -> tuple[float, float] | None:
    """The median and the largest relative error of ``seconds`` for each measured model, foretold from the others."""
    if len(known) < 2:
        return None
    found = []
    for i, each in enumerate(known):
        low, high = token_seconds(each.weights, [*known[:i], *known[i + 1 :]])
        found.append(abs((low + high) / 2 / each.speed.batch_s(1) - 1))
    return float(np.median(found)), max(found)


def best_length(kept: float, drafter: float, batches: Sequence[float]) -> tuple[float, int]:
    """The best speed-up and the draft length that gives it; drafter, batches: costs in units of the expert's single token.

    Leviathan et al. 2211.17192, theorem 3.8, with what a batch really costs in place of 1.
    """
    rates = [(1 - kept ** (n + 1)) / (1 - kept) / (n * drafter + batches[n]) for n in range(len(batches))]
    best = int(np.argmax(rates))
    return max(1.0, float(rates[best])), best
