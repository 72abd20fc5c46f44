"""Which of the models on this machine would draft for an expert, the most promising first; and why the others would not.

Most are ruled out by a look at their vocabularies as the files store them; the rest are rehearsed with the expert, so that the verdict is
llama.cpp's. Nobody can know beforehand how often a model's drafts will be kept, so the order is by what is known: how fast it is beside
the expert. Knows nothing of where models are found.
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
from ..decoding.lengths import LONGEST
from ..llama.tokenizer import FIRST_COMPARED_ID, MAX_SIZE_DIFFERENCE
from ..models.gguf_header import Header, read_header
from ..models.gguf_layout import StoredList, layout_of
from ..models.local import TOKENS, LocalModel
from ..models.placement import DEFAULT_CONTEXT
from .dry_run import dry_run_models
from .plan import ACCEPTANCE_RATES, MeasuredModel, best_length, estimate_pair

#: Files' words for kinds of vocabularies that llama.cpp reads as one kind; what is not listed is left to llama.cpp.
_KINDS = {"llama": "SPM", "gpt2": "BPE", "gemma4": "BPE", "bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV", "no_vocab": "none"}
#: So many are rehearsed, which takes a second or two each; the rest is only ranked.
MAX_SUGGESTIONS = 5
_AT_ONCE, _CONTEXT = 4, 256
_LOOKING = 0.5  # of the progress
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Suggestion:
    """A model that pairs. speedup: of strict over the expert alone, (low, high). ratio: how much more of its weights a token of the expert
    reads. rollback: how its memory forgets a rejected draft.
    """

    model: LocalModel
    speedup: tuple[float, float]
    ratio: float
    rollback: str


@dataclass(frozen=True)
class Suggestions:
    """ranked: the best first. untried: models that may pair too, but promise no more. others: those that do not pair, with the reason."""

    ranked: tuple[Suggestion, ...]
    untried: tuple[LocalModel, ...]
    others: tuple[tuple[LocalModel, str], ...]


def suggest(
    expert: Path,
    models: Sequence[LocalModel],
    known: Sequence[MeasuredModel] = (),
    most: int = MAX_SUGGESTIONS,
    on_step: Callable[[float], None] = lambda _: None,
) -> Suggestions:
    """known: what was measured on this machine. most: so many are rehearsed successfully, then no more. on_step: called with 0..1.

    Raises ModelLoadError for an expert that cannot be read.
    """
    header = read_header(expert)
    store, own = _Vocabulary(expert), os.path.realpath(expert)
    promising: list[Suggestion] = []
    ranked: list[Suggestion] = []
    others: list[tuple[LocalModel, str]] = []
    candidates = [model for model in models if os.path.realpath(model.path) != own]
    for i, model in enumerate(candidates):
        found = _look_at(model, store, header, known)
        promising.append(found) if isinstance(found, Suggestion) else others.append((model, found))
        on_step(_LOOKING * (i + 1) / len(candidates))
    promising.sort(key=lambda each: (-each.speedup[0] * each.speedup[1], each.model.size, each.model.name))
    while promising and len(ranked) < most:
        trying, promising = promising[: most - len(ranked)], promising[most - len(ranked) :]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            verdicts = list(pool.map(lambda each: _dry_run(each, expert), trying))
        for each, verdict in zip(trying, verdicts):
            ranked.append(verdict) if isinstance(verdict, Suggestion) else others.append((each.model, verdict))
    on_step(1.0)
    return Suggestions(tuple(ranked), tuple(each.model for each in promising), tuple(others))


def estimate_speedup(drafter: Header, expert: Header, known: Sequence[MeasuredModel], n_ctx: int = DEFAULT_CONTEXT) -> tuple[float, float]:
    """As ``plan`` tells it. Where nothing was measured: Leviathan's formula, as if a drafted token took a share of an expert's that is the
    share of bytes it reads, and a batch as long as a single token, which is how it is where memory alone is slow.
    """
    if known:
        return estimate_pair(drafter, expert, known, n_ctx).speedup
    cost = drafter.token_bytes / expert.token_bytes
    flat = [1.0] * (LONGEST + 1)
    low, high = (best_length(kept, cost, flat)[0] for kept in ACCEPTANCE_RATES)
    return low, high


def _look_at(model: LocalModel, expert: _Vocabulary, header: Header, known: Sequence[MeasuredModel]) -> Suggestion | str:
    """What the files alone tell: a suggestion still to be rehearsed, or why there is none."""
    try:
        if reason := reason_against(model, expert, header):
            return reason
        drafter = read_header(model.path)
    except ModelLoadError as error:
        return str(error)
    except OSError as error:
        return f"{model.path}: cannot be read ({error.strerror})"
    return Suggestion(model, estimate_speedup(drafter, header, known), header.token_bytes / max(1, drafter.token_bytes), "")


def reason_against(model: LocalModel, expert: _Vocabulary, header: Header) -> str | None:
    """The reason why a model cannot pair, where the files alone tell it. Raises ModelLoadError and OSError."""
    kind, wanted = _KINDS.get(model.tokenizer), _KINDS.get(expert.kind)
    if kind and wanted and kind != wanted:
        return f"its vocabulary is {kind} ({model.tokenizer}), the expert's {wanted} ({expert.kind})"
    if model.n_tokens and expert.count and abs(model.n_tokens - expert.count) > MAX_SIZE_DIFFERENCE:
        return f"it has {model.n_tokens} token ids, the expert {expert.count}; {MAX_SIZE_DIFFERENCE} apart are allowed"
    if model.size >= header.weights:
        return f"it is as large as the expert ({decimal(model.size)})"
    return expert.first_difference(_Vocabulary(model.path)) if model.n_tokens and expert.count else None


def _dry_run(suggestion: Suggestion, expert: Path) -> Suggestion | str:
    """llama.cpp's verdict: the suggestion with how its memory rolls back, or why it is none."""
    try:
        found = dry_run_models({"drafter": suggestion.model.path, "expert": expert}, n_ctx=_CONTEXT)
    except ModelLoadError as error:
        return str(error)
    drafter = found.models["drafter"]
    if reason := drafter.refused or found.difference:
        return reason
    return replace(suggestion, rollback=drafter.rollback or "")


class _Vocabulary:
    """The texts of a file's vocabulary, as it stores them."""

    def __init__(self, path: Path) -> None:
        layout = layout_of(path, until=TOKENS)
        self.path = path
        self.kind = str(layout.values.get("tokenizer.ggml.model", ""))
        self._place = layout.lists.get(TOKENS) or StoredList(8, 0, 0)
        self.count = self._place.count

    def first_difference(self, other: _Vocabulary) -> str | None:
        """From the first id that counts to the last that both have. Raises ModelLoadError."""
        shared = min(self.count, other.count)
        with _map_all(self.path) as ours, _map_all(other.path) as theirs:
            own, its = self._begin(ours), other._begin(theirs)
            end = self._ends[shared - 1] if shared > FIRST_COMPARED_ID else own
            if ours[own:end] == theirs[its : its + end - own]:  # which is so of most models that pair, and takes no time
                return None
            texts = zip(_texts(ours, own, shared - FIRST_COMPARED_ID), _texts(theirs, its, shared - FIRST_COMPARED_ID))
            for token, (wanted, found) in enumerate(texts, FIRST_COMPARED_ID):
                if wanted != found and _still_differ(wanted, found, token):
                    return (
                        f"token id {token} is {found.decode(errors='replace')!r} there, {wanted.decode(errors='replace')!r} for the expert"
                    )
        return None

    def _begin(self, data: mmap.mmap) -> int:
        """Where the first text that counts lies."""
        at = self._place.start
        for text in _texts(data, at, min(FIRST_COMPARED_ID, self.count)):
            at += 8 + len(text)
        return at

    @cached_property
    def _ends(self) -> list[int]:
        """Where each text ends."""
        with _map_all(self.path) as data:
            return list(accumulate((8 + len(text) for text in _texts(data, self._place.start, self.count)), initial=self._place.start))[1:]


def _still_differ(wanted: bytes, found: bytes, token: int) -> bool:
    """Once llama.cpp has read them: to a zero byte, and with something in place of nothing."""
    nothing = f"[EMPTY_{token}]".encode()
    return (wanted.split(b"\0")[0] or nothing) != (found.split(b"\0")[0] or nothing)


def _texts(data: mmap.mmap, at: int, count: int) -> Iterator[bytes]:
    """So many, from a place on. Raises ModelLoadError where the file ends before."""
    for _ in range(count):
        end = at + 8 + _LENGTH.unpack_from(data, at)[0] if at + 8 <= len(data) else len(data) + 1
        if end > len(data):
            raise ModelLoadError("cut off within its vocabulary; fetch it again")
        yield data[at + 8 : end]
        at = end


def _map_all(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
