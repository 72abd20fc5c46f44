"""What two models' rehearsals say of them as a pair: each thing that is well, that should be known, or that forbids it.

Compares facts that are handed in. Knows nothing of files, machines or terminals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich.filesize import decimal

from ..models.placement import QUANTIZED, Placement
from .dry_run import ModelPlan, TokenizerFacts

Grade = Literal["well", "note", "warning", "no"]

#: Below this a draft token costs so much of an expert's that few drafts pay for themselves.
LEAST_RATIO = 4.0
_MOST_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """grade: "well", "note" (nothing against the pair), "warning" (it works, but) or "no" (it cannot work). about: one word or two."""

    grade: Grade
    about: str
    text: str


def vocabulary(role: str, model: ModelPlan, expert: ModelPlan) -> Finding:
    """llama.cpp's verdict, with the first difference."""
    if model.difference or model.n_shared is None:
        return Finding("no", "vocabulary", model.difference or f"the {role}'s was not compared with the expert's")
    sizes = "" if model.n_vocab == expert.n_vocab else f"; the {role} has {model.n_vocab}, the expert {expert.n_vocab}"
    if not expert.tokenizer.kind:
        return Finding("warning", "vocabulary", f"{model.n_shared} ids in common by number alone: these files hold no text for them{sizes}")
    return Finding("well", "vocabulary", f"{model.n_shared} ids in common, with the same texts{sizes}")


def tokenizers(role: str, model: ModelPlan, expert: ModelPlan) -> Iterator[Finding]:
    """What llama.cpp does not compare: how text is cut up before merging, special ids, and the ids that end a text."""
    ours, theirs = model.tokenizer, expert.tokenizer
    if ours.pre != theirs.pre:
        yield Finding(
            "warning",
            "pre-type",
            f"{_name(ours.pre)} for the {role}, {_name(theirs.pre)} for the expert: text is cut as the expert cuts it, so the {role} "
            "may meet ids that it seldom saw in training",
        )
    elif theirs.pre:
        yield Finding("well", "pre-type", f"{theirs.pre}, for both")
    special = [
        f"{name} is {_id(getattr(ours, key), ours)} for the {role}, {_id(getattr(theirs, key), theirs)} for the expert"
        for name, key in (("BOS", "bos_id"), ("EOS", "eos_id"))
        if getattr(ours, key) != getattr(theirs, key)
    ]
    if special:
        yield Finding("warning", "special ids", "; ".join(special))
    elif theirs.bos_id is not None or theirs.eos_id is not None:
        yield Finding("well", "special ids", f"BOS {_id(theirs.bos_id, theirs)}, EOS {_id(theirs.eos_id, theirs)}, for both")
    if set(ours.end_ids) != set(theirs.end_ids):
        yield Finding("warning", "end ids", _ends(role, ours, theirs))
    elif theirs.end_ids:
        yield Finding("well", "end ids", f"{_ids(theirs.end_ids, theirs)}, for both")


def templates(role: str, model: ModelPlan, expert: ModelPlan) -> Finding:
    """The expert's is used for both."""
    ours, theirs = model.chat_template, expert.chat_template
    if not theirs:
        grade: Grade = "warning" if ours else "note"
        has = f"the expert has none, the {role} has one" if ours else "neither has one"
        return Finding(grade, "chat template", f"{has}: prompts are continued as they are")
    if not ours:
        return Finding("warning", "chat template", f"the {role} has none: it was perhaps not taught to answer, and may draft worse")
    if ours.strip() != theirs.strip():
        return Finding("warning", "chat template", f"they differ; both are given the expert's, and the {role} may draft worse in it")
    return Finding("well", "chat template", "the same")


def rollback(role: str, model: ModelPlan) -> Finding:
    """How its memory forgets a rejected draft."""
    about = f"{role}: rollback"
    if model.refused or model.rollback is None:
        return Finding("no", about, model.refused or "its memory cannot forget a rejected draft")
    if model.rollback == "tail":
        return Finding("well", about, f"drops the tail of its memory, which costs nothing ({model.architecture})")
    if model.rollback == "snapshots":
        return Finding(
            "well", about, f"goes back to one of the snapshots that it keeps, {decimal(model.recurrent)} in all ({model.architecture})"
        )
    size = decimal(model.state) if model.state else "under 10 kB"  # the log tells no less
    return Finding(
        "warning",
        about,
        f"a checkpoint of its state, {size}, is taken about once a block; after a rejected draft it is put back and the kept tokens are "
        f"read again ({model.architecture})",
    )


def experts(expert: ModelPlan) -> Iterator[Finding]:
    """A mixture of experts gains less."""
    if expert.n_experts:
        yield Finding(
            "warning",
            "experts",
            f"the expert is a mixture of {expert.n_experts}: several tokens at once read more of its weights than one does, so drafts gain "
            "less, 15 to 35 % by what others report",
        )


def size(role: str, token_bytes: int, expert_token_bytes: int) -> Finding:
    """token_bytes: what one token reads of the weights, which is what it costs."""
    ratio = expert_token_bytes / max(1, token_bytes)
    text = f"a token of the expert reads {ratio:.3g} × as much as one of the {role}"
    if ratio < LEAST_RATIO:
        larger = f"; the {role} is the larger one" if ratio < 1 else ""
        return Finding("warning", "size", f"{text}; below {LEAST_RATIO:g} × drafts seldom pay for themselves{larger}")
    return Finding("well", "size", text)


def cache(role: str, placement: Placement) -> Iterator[Finding]:
    """A drafter's cache is better left whole."""
    if placement.cache_type in QUANTIZED:
        yield Finding(
            "warning",
            "cache",
            f"the {role}'s is held as {placement.cache_type}, which by what others report can halve how many drafts are kept; f16 costs "
            "little memory there",
        )


def _ends(role: str, ours: TokenizerFacts, theirs: TokenizerFacts) -> str:
    only_ours = sorted(set(ours.end_ids) - set(theirs.end_ids))
    only_theirs = sorted(set(theirs.end_ids) - set(ours.end_ids))
    told = [
        f"only the {who} ends a text at {_ids(only, facts)}"
        for who, only, facts in ((role, only_ours, ours), ("expert", only_theirs, theirs))
        if only
    ]
    return "; ".join(told) + ": the expert's count"


def _ids(tokens: tuple[int, ...] | list[int], facts: TokenizerFacts) -> str:
    shown = ", ".join(_id(token, facts) for token in tokens[:_MOST_SHOWN])
    return f"{shown} and {len(tokens) - _MOST_SHOWN} more" if len(tokens) > _MOST_SHOWN else shown


def _id(token: int | None, facts: TokenizerFacts) -> str:
    if token is None:
        return "none"
    return f"{token} {facts.texts[token]!r}" if token in facts.texts else str(token)


def _name(pre: str) -> str:
    return pre or "not named"
