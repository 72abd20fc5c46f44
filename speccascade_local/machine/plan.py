"""An estimate of a pair's speed and memory on this machine, from the headers of its files and from models that were measured here.

Reading its weights is most of what a token costs, so seconds follow from bytes. How the cost of a batch grows with its size follows the
measured model that is nearest in size. How often drafts are accepted cannot be known from files, so every estimate is a range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import SettingError
from ..decoding.lengths import LONGEST
from ..decoding.profile import Speed
from ..models.gguf_header import Header

#: How often a drafted token is accepted, from a poor pair to a good one.
ACCEPTANCE_RATES = (0.5, 0.95)
#: The relative error of an estimate of seconds that rests on a single model.
SINGLE_MODEL_ERROR = 0.25
_MIN_ERROR, _MAX_ERROR = 0.1, 0.9
#: llama.cpp's compute buffers are counted as rows of logits, of 4 bytes for each id of the vocabulary.
_COMPUTE_ROWS, _BYTES_PER_LOGIT = 128, 4


@dataclass(frozen=True)
class MeasuredModel:
    """A model that was measured on this machine: the bytes of its weights, and its speed."""

    weights: int
    speed: Speed


@dataclass(frozen=True)
class Estimate:
    """The estimated speed and memory of a pair. Ranges are (low, high).

    Args:
        speedup: Speed-up of the rule ``strict`` over the expert alone. Automatic lengths never choose to be slower, so it is at least 1.
        expert_s: Seconds per token of the expert.
        drafter_s: Seconds per token of the drafter.
        best_length: Drafted tokens per block at the better end.
        memory: Bytes by part.
        basis: How many measured models the estimate rests on, and the nearest one's weights as a multiple of the expert's.
        off: The median and the largest relative error when the seconds of each measured model are estimated from the others; None for a
            single model.
    """

    speedup: tuple[float, float]
    expert_s: tuple[float, float]
    drafter_s: tuple[float, float]
    best_length: int
    memory: dict[str, int]
    basis: tuple[int, float]
    off: tuple[float, float] | None


def estimate_pair(drafter: Header | None, expert: Header, measured: Sequence[MeasuredModel], n_ctx: int) -> Estimate:
    """Estimate the speed and memory of a pair; a drafter of None copies drafts from the text.

    Raises SettingError where nothing was measured on this machine.
    """
    if not measured:
        raise SettingError(
            "nothing has been measured on this machine yet, so nothing can be estimated; "
            "run 'speccascade profile' with any pair first, best with one of a similar size"
        )
    expert_s = token_seconds(expert.token_bytes, measured)
    drafter_s = token_seconds(drafter.token_bytes, measured) if drafter else (0.0, 0.0)
    nearest = min(measured, key=lambda model: abs(np.log(model.weights / expert.token_bytes)))
    batches = [nearest.speed.batch_s(n) / nearest.speed.batch_s(1) for n in range(1, LONGEST + 2)]
    low, _ = best_length(ACCEPTANCE_RATES[0], drafter_s[1] / expert_s[0], batches)
    high, length = best_length(ACCEPTANCE_RATES[1], drafter_s[0] / expert_s[1], batches)
    models = {"expert": expert} | ({"drafter": drafter} if drafter else {})
    memory = {f"{role}'s weights": model.weights for role, model in models.items()}
    memory |= {f"{role}'s cache": model.cache_bytes * n_ctx for role, model in models.items()}
    memory["computing"] = sum(model.n_vocab * _COMPUTE_ROWS * _BYTES_PER_LOGIT for model in models.values())
    basis = len(measured), nearest.weights / expert.token_bytes
    return Estimate((low, high), expert_s, drafter_s, length, memory, basis, estimate_errors(measured))


def estimate_speedup(drafter: Header, expert: Header, measured: Sequence[MeasuredModel], n_ctx: int) -> tuple[float, float]:
    """Estimate the speed-up of a pair as :func:`estimate_pair` does, or by size alone where nothing was measured.

    By size alone a drafted token costs its share of the bytes that a token of the expert reads, and a batch costs as much as a single
    token. Both hold where reading memory is all that takes time (Leviathan et al. 2211.17192, theorem 3.8).
    """
    if measured:
        return estimate_pair(drafter, expert, measured, n_ctx).speedup
    cost = drafter.token_bytes / expert.token_bytes
    low, high = (best_length(rate, cost, [1.0] * (LONGEST + 1))[0] for rate in ACCEPTANCE_RATES)
    return low, high


def token_seconds(token_bytes: int, measured: Sequence[MeasuredModel]) -> tuple[float, float]:
    """Return the range of seconds of a token that reads ``token_bytes`` of weights.

    It lies around a straight line through the measured models: seconds for each token, and seconds for each byte.
    """
    sizes = np.array([model.weights for model in measured], dtype=float)
    seconds = np.array([model.speed.batch_s(1) for model in measured])
    if len(set(sizes)) == 1:
        middle, error = float(np.median(seconds)) * token_bytes / sizes[0], SINGLE_MODEL_ERROR
    else:
        # Least squares of relative errors: the seconds of a large model must not outweigh those of a small one.
        columns = np.stack([1 / seconds, sizes / seconds], axis=1)
        (overhead, per_byte), *_ = np.linalg.lstsq(columns, np.ones(len(measured)), rcond=None)
        overhead, per_byte = max(overhead, 0.0), max(per_byte, 0.0)
        middle = float(overhead + per_byte * token_bytes)
        error = max(_MIN_ERROR, float(np.max(np.abs((overhead + per_byte * sizes) / seconds - 1))))
    return middle * (1 - min(error, _MAX_ERROR)), middle * (1 + error)


def estimate_errors(measured: Sequence[MeasuredModel]) -> tuple[float, float] | None:
    """Return the median and the largest relative error of :func:`token_seconds` for each measured model, estimated from the others."""
    if len(measured) < 2:
        return None
    errors = []
    for i, model in enumerate(measured):
        low, high = token_seconds(model.weights, [*measured[:i], *measured[i + 1 :]])
        errors.append(abs((low + high) / 2 / model.speed.batch_s(1) - 1))
    return float(np.median(errors)), max(errors)


def best_length(acceptance: float, drafter: float, batches: Sequence[float]) -> tuple[float, int]:
    """Return the best speed-up and the draft length that gives it (Leviathan et al. 2211.17192, theorem 3.8).

    Args:
        acceptance: How often a drafted token is accepted, below 1.
        drafter: Cost of a drafted token, in single tokens of the expert.
        batches: ``batches[n]`` is the measured cost of a batch of n + 1 tokens in the same unit; the theorem has 1 in its place.
    """
    rates = [(1 - acceptance ** (n + 1)) / (1 - acceptance) / (n * drafter + batches[n]) for n in range(len(batches))]
    best = int(np.argmax(rates))
    return max(1.0, float(rates[best])), best
