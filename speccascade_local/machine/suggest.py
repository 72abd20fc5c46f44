"""Drafters for an expert among the models on this machine, the most promising first, and the reason why the others are none.

Most models are ruled out by their vocabularies as the files store them. The others are dry run with the expert, so that the verdict is
llama.cpp's. How often a model's drafts are accepted cannot be known from files, so the order is by speed beside the expert.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from rich.filesize import decimal

from ..common.errors import ModelLoadError
from ..llama.tokenizer import FIRST_COMPARED_ID, MAX_SIZE_DIFFERENCE
from ..models.gguf_header import Header, read_header
from ..models.gguf_layout import StoredList, layout_of
from ..models.local import TOKENS, LocalModel
from ..models.placement import DEFAULT_CONTEXT
from .dry_run import dry_run_models
from .plan import MeasuredModel, estimate_speedup

#: The kinds of vocabularies that llama.cpp reads as one, by the name in the file; it alone judges what is not listed.
_KINDS = {"llama": "SPM", "gpt2": "BPE", "gemma4": "BPE", "bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV", "no_vocab": "none"}
#: How many drafters are suggested by default; each dry run takes a second or two.
MAX_SUGGESTIONS = 5
_WORKERS, _CONTEXT = 4, 256
#: The share of the progress that looking at the files takes.
_LOOK_SHARE = 0.5
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Suggestion:
    """A model that pairs with the expert."""

    model: LocalModel
    speedup: tuple[float, float]  # speed-up of the rule ``strict`` over the expert alone, (low, high)
    ratio: float  # how many times as many bytes of weights a token of the expert reads
    rollback: str  # how its memory forgets a rejected draft


@dataclass(frozen=True)
class Suggestions:
    """Drafters for an expert."""

    ranked: tuple[Suggestion, ...]  # the best first
    untried: tuple[LocalModel, ...]  # models that may pair too, but promise no more
    others: tuple[tuple[LocalModel, str], ...]  # models that do not pair, each with the reason


def suggest(
    expert: Path,
    models: Sequence[LocalModel],
    measured: Sequence[MeasuredModel] = (),
    limit: int = MAX_SUGGESTIONS,
    on_step: Callable[[float], None] = lambda _: None,
) -> Suggestions:
    """Rank models as drafters for an expert. Raises ModelLoadError where the expert cannot be read.

    Args:
        expert: The expert's file.
        models: The candidates; the expert itself is left out.
        measured: The models whose speed on this machine is known.
        limit: How many drafters to find.
        on_step: Called with the progress, 0..1.
    """
    header = read_header(expert)
    vocabulary, own_path = _Vocabulary(expert), os.path.realpath(expert)
    promising: list[Suggestion] = []
    ranked: list[Suggestion] = []
    others: list[tuple[LocalModel, str]] = []
    candidates = [model for model in models if os.path.realpath(model.path) != own_path]
    for i, model in enumerate(candidates):
        verdict = _look_at(model, vocabulary, header, measured)
        promising.append(verdict) if isinstance(verdict, Suggestion) else others.append((model, verdict))
        on_step(_LOOK_SHARE * (i + 1) / len(candidates))
    promising.sort(key=lambda each: (-each.speedup[0] * each.speedup[1], each.model.size, each.model.name))
    while promising and len(ranked) < limit:
        batch, promising = promising[: limit - len(ranked)], promising[limit - len(ranked) :]
        with ThreadPoolExecutor(_WORKERS) as pool:
            verdicts = list(pool.map(lambda each: _dry_run(each, expert), batch))
        for each, verdict in zip(batch, verdicts):
            ranked.append(verdict) if isinstance(verdict, Suggestion) else others.append((each.model, verdict))
    on_step(1.0)
    return Suggestions(tuple(ranked), tuple(each.model for each in promising), tuple(others))


def _look_at(model: LocalModel, expert: _Vocabulary, header: Header, measured: Sequence[MeasuredModel]) -> Suggestion | str:
    """Return a suggestion that is still to be dry run, or the reason why the files alone rule it out."""
    try:
        if reason := find_obstacle(model, expert, header):
            return reason
        drafter = read_header(model.path)
    except ModelLoadError as error:
        return str(error)
    except OSError as error:
        return f"{model.path}: cannot be read ({error.strerror})"
    speedup = estimate_speedup(drafter, header, measured, DEFAULT_CONTEXT)
    return Suggestion(model, speedup, header.token_bytes / max(1, drafter.token_bytes), "")


def find_obstacle(model: LocalModel, expert: _Vocabulary, header: Header) -> str | None:
    """Return the reason why a model cannot pair, where the files alone show one. Raises ModelLoadError and OSError."""
    kind, expert_kind = _KINDS.get(model.tokenizer), _KINDS.get(expert.kind)
    if kind and expert_kind and kind != expert_kind:
        return f"its vocabulary is {kind} ({model.tokenizer}), the expert's {expert_kind} ({expert.kind})"
    if model.n_tokens and expert.count and abs(model.n_tokens - expert.count) > MAX_SIZE_DIFFERENCE:
        return f"it has {model.n_tokens} token ids, the expert {expert.count}; {MAX_SIZE_DIFFERENCE} apart are allowed"
    if model.size >= header.weights:
        return f"it is as large as the expert ({decimal(model.size)})"
    return expert.first_difference(_Vocabulary(model.path)) if model.n_tokens and expert.count else None


def _dry_run(suggestion: Suggestion, expert: Path) -> Suggestion | str:
    """Return the suggestion with its kind of rollback, or llama.cpp's reason why it is none."""
    try:
        drafter = dry_run_models({"drafter": suggestion.model.path, "expert": expert}, n_ctx=_CONTEXT)["drafter"]
    except ModelLoadError as error:
        return str(error)
    return drafter.refused or drafter.difference or replace(suggestion, rollback=drafter.rollback or "")


class _Vocabulary:
    """The texts of a file's vocabulary, as the file stores them."""

    def __init__(self, path: Path) -> None:
        layout = layout_of(path, until=TOKENS)
        self.path = path
        self.kind = str(layout.values.get("tokenizer.ggml.model", ""))
        self._texts = layout.lists.get(TOKENS) or StoredList(8, 0, 0)
        self.count = self._texts.count

    def first_difference(self, other: _Vocabulary) -> str | None:
        """Return the first difference among the ids that both have, from the first that is compared. Raises ModelLoadError."""
        shared = min(self.count, other.count)
        with _map(self.path) as ours, _map(other.path) as theirs:
            start, other_start = self._first_compared(ours), other._first_compared(theirs)
            end = self._ends[shared - 1] if shared > FIRST_COMPARED_ID else start
            if ours[start:end] == theirs[other_start : other_start + end - start]:  # most models that pair; this takes no time
                return None
            n = shared - FIRST_COMPARED_ID
            for token, (text, other_text) in enumerate(zip(_texts(ours, start, n), _texts(theirs, other_start, n)), FIRST_COMPARED_ID):
                if text != other_text and _as_loaded(text, token) != _as_loaded(other_text, token):
                    own, its = (each.decode(errors="replace") for each in (text, other_text))
                    return f"token id {token} is {its!r} there, {own!r} for the expert"
        return None

    def _first_compared(self, data: mmap.mmap) -> int:
        """Return where the first text that is compared begins."""
        skipped = _texts(data, self._texts.start, min(FIRST_COMPARED_ID, self.count))
        return self._texts.start + sum(_LENGTH.size + len(text) for text in skipped)

    @cached_property
    def _ends(self) -> list[int]:
        """Where each text ends."""
        with _map(self.path) as data:
            sizes = (_LENGTH.size + len(text) for text in _texts(data, self._texts.start, self.count))
            return list(accumulate(sizes, initial=self._texts.start))[1:]


def _as_loaded(text: bytes, token: int) -> bytes:
    """Return a text as llama.cpp loads it: up to a zero byte, and with a name where it is empty."""
    return text.split(b"\0")[0] or f"[EMPTY_{token}]".encode()


def _texts(data: mmap.mmap, start: int, count: int) -> Iterator[bytes]:
    """Yield ``count`` texts from a position on. Raises ModelLoadError where the file ends before."""
    for _ in range(count):
        text = start + _LENGTH.size
        end = text + _LENGTH.unpack_from(data, start)[0] if text <= len(data) else len(data) + 1
        if end > len(data):
            raise ModelLoadError("cut off within its vocabulary; fetch it again")
        yield data[text:end]
        start = end


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
