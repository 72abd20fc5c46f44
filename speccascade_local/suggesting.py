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
from dataclasses import dataclass
from pathlib import Path

from .bench.planning import KEPT, Known, best_length, planned
from .errors import ModelLoadError
from .header import Header, read_header
from .layout import StoredList, layout_of
from .loading import DEFAULT_CONTEXT
from .local_models import TOKENS, LocalModel
from .pacing import LONGEST
from .pairing import FIRST_COMPARED_ID, MAX_SIZE_DIFFERENCE
from .rehearsal import rehearse

#: Files' words for kinds of vocabularies that llama.cpp reads as one kind; what is not listed is left to llama.cpp.
_KINDS = {"llama": "SPM", "gpt2": "BPE", "gemma4": "BPE", "bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV", "no_vocab": "none"}
_AT_ONCE = 4
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
    """ranked: the best first. others: models that do not pair, each with the reason."""

    ranked: tuple[Suggestion, ...]
    others: tuple[tuple[LocalModel, str], ...]


def suggest(
    expert: Path, models: Sequence[LocalModel], known: Sequence[Known] = (), on_step: Callable[[float], None] = lambda _: None
) -> Suggestions:
    """known: what was measured on this machine. on_step: called with 0..1. Raises ModelLoadError for an expert that cannot be read."""
    header = read_header(expert)
    store = _Texts(expert)
    own = os.path.realpath(expert)
    ranked: list[Suggestion] = []
    others: list[tuple[LocalModel, str]] = []

    def judge(model: LocalModel) -> Suggestion | str:
        try:
            reason = _ruled_out(model, store, header)
            return reason or _rehearsed(model, expert, header, known)
        except ModelLoadError as error:
            return str(error)
        except OSError as error:
            return f"{model.path}: cannot be read ({error.strerror})"

    candidates = [model for model in models if os.path.realpath(model.path) != own]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for i, (model, found) in enumerate(zip(candidates, pool.map(judge, candidates))):
            if isinstance(found, str):
                others.append((model, found))
            else:
                ranked.append(found)
            on_step((i + 1) / len(candidates))
    ranked.sort(key=lambda each: (-each.speedup[0] * each.speedup[1], each.model.size))
    return Suggestions(tuple(ranked), tuple(others))


def expected(drafter: Header, expert: Header, known: Sequence[Known], n_ctx: int = DEFAULT_CONTEXT) -> tuple[float, float]:
    """As ``plan`` tells it. Where nothing was measured: Leviathan's formula, as if a drafted token took a share of an expert's that is the
    share of bytes it reads, and a batch as long as a single token, which is how it is where memory alone is slow.
    """
    if known:
        return planned(drafter, expert, known, n_ctx).speedup
    cost = drafter.token_bytes / expert.token_bytes
    flat = [1.0] * (LONGEST + 1)
    low, high = (best_length(kept, cost, flat)[0] for kept in KEPT)
    return low, high


def _ruled_out(model: LocalModel, expert: _Texts, header: Header) -> str | None:
    """The reason why a model cannot pair, where the files alone tell it. Raises ModelLoadError and OSError."""
    kind, wanted = _KINDS.get(model.tokenizer), _KINDS.get(expert.kind)
    if kind and wanted and kind != wanted:
        return f"its vocabulary is {kind} ({model.tokenizer}), the expert's {wanted} ({expert.kind})"
    if model.n_tokens and expert.count and abs(model.n_tokens - expert.count) > MAX_SIZE_DIFFERENCE:
        return f"it has {model.n_tokens} token ids, the expert {expert.count}; {MAX_SIZE_DIFFERENCE} apart are allowed"
    if model.size >= header.weights:
        return f"it is as large as the expert ({model.size / 1e9:.2f} GB)"
    return expert.first_difference(_Texts(model.path)) if model.n_tokens and expert.count else None


def _rehearsed(model: LocalModel, path: Path, expert: Header, known: Sequence[Known]) -> Suggestion | str:
    """llama.cpp's verdict. Raises ModelLoadError."""
    found = rehearse({"drafter": model.path, "expert": path}, n_ctx=256)
    drafter = found.models["drafter"]
    if drafter.refused or found.difference:
        return drafter.refused or found.difference or ""
    header = read_header(model.path)
    speedup = expected(header, expert, known)
    return Suggestion(model, speedup, expert.token_bytes / max(1, header.token_bytes), drafter.rollback or "")


class _Texts:
    """The texts of a file's vocabulary, as it stores them."""

    def __init__(self, path: Path) -> None:
        layout = layout_of(path, until=TOKENS)
        self.path = path
        self.kind = str(layout.values.get("tokenizer.ggml.model", ""))
        self.place = layout.lists.get(TOKENS) or StoredList(8, 0, 0)
        self.count = self.place.count

    def first_difference(self, other: _Texts) -> str | None:
        """From the first id that counts to the last that both have."""
        shared = min(self.count, other.count)
        with _mapped(self.path) as ours, _mapped(other.path) as theirs:
            for token, (own, its) in enumerate(zip(_texts(ours, self.place, shared), _texts(theirs, other.place, shared))):
                if own != its and token >= FIRST_COMPARED_ID and _still_differ(own, its, token):
                    return f"token id {token} is {its.decode(errors='replace')!r} there, {own.decode(errors='replace')!r} for the expert"
        return None


def _still_differ(own: bytes, its: bytes, token: int) -> bool:
    """Whether they still differ once llama.cpp has read them: to a zero byte, and something in place of nothing."""
    empty = f"[EMPTY_{token}]".encode()
    return (own.split(b"\0")[0] or empty) != (its.split(b"\0")[0] or empty)


def _texts(data: mmap.mmap, place: StoredList, count: int) -> Iterator[bytes]:
    """Raises ModelLoadError where the file ends before."""
    at = place.start
    for _ in range(count):
        end = at + 8 + _LENGTH.unpack_from(data, at)[0] if at + 8 <= len(data) else len(data) + 1
        if end > len(data):
            raise ModelLoadError("cut off within its vocabulary; fetch it again")
        yield data[at + 8 : end]
        at = end


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
