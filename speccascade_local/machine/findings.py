"""What speaks for and against two models as a pair, from facts alone: their dry runs, their headers and the estimated speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from rich.filesize import decimal

from ..models.gguf_header import Header
from ..models.placement import QUANTIZED, Placement
from .dry_run import ModelPlan, TokenizerFacts
from .plan import ACCEPTANCE_RATES, Estimate

Grade = Literal["well", "note", "warning", "no"]

#: Where the expert reads fewer times as many weights per token as the drafter, few drafts pay for themselves.
MIN_RATIO = 4.0
#: A pair with less than this speed-up at best is not worth its memory.
_MIN_SPEEDUP = 1.1
_MAX_IDS_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """One line of the verdict on a pair."""

    grade: Grade  # "well", "note" (nothing against the pair), "warning" (it works, but) or "no" (it cannot work)
    about: str  # the subject, in a word or two
    text: str  # the finding itself


def compare_models(
    models: Mapping[str, ModelPlan], headers: Mapping[str, Header], placements: Mapping[str, Placement]
) -> Iterator[Finding]:
    """Yield what is to be known of the models, given by role, with or without a drafter."""
    expert, drafter = models["expert"], models.get("drafter")
    if drafter is None:
        yield Finding("well", "vocabulary", "drafts are copied from the text, so there is nothing to fit")
    else:
        yield vocabulary(drafter, expert)
        yield from tokenizers(drafter.tokenizer, expert.tokenizer)
        yield chat_templates(drafter, expert)
        yield size(headers["drafter"].token_bytes, headers["expert"].token_bytes)
        yield from drafter_cache(placements["drafter"])
    for role, model in models.items():
        yield rollback(role, model)
    yield from mixture(expert)


def vocabulary(drafter: ModelPlan, expert: ModelPlan) -> Finding:
    """Return llama.cpp's verdict on the two vocabularies, with the first difference."""
    if drafter.difference or drafter.n_shared is None:
        return Finding("no", "vocabulary", drafter.difference or "the drafter's was not compared with the expert's")
    sizes = "" if drafter.n_vocab == expert.n_vocab else f"; the drafter has {drafter.n_vocab}, the expert {expert.n_vocab}"
    if not expert.tokenizer.kind:
        text = f"{drafter.n_shared} ids in common by number alone: these files hold no text for them{sizes}"
        return Finding("warning", "vocabulary", text)
    return Finding("well", "vocabulary", f"{drafter.n_shared} ids in common, with the same texts{sizes}")


def tokenizers(drafter: TokenizerFacts, expert: TokenizerFacts) -> Iterator[Finding]:
    """Yield what llama.cpp does not compare: how text is split before merging, special ids, and the ids that end a text."""
    if drafter.pre != expert.pre:
        names = f"{drafter.pre or 'not named'} for the drafter, {expert.pre or 'not named'} for the expert"
        effect = "text is split as the expert splits it, so the drafter may meet ids that it seldom saw in training"
        yield Finding("warning", "pre-type", f"{names}: {effect}")
    elif expert.pre:
        yield Finding("well", "pre-type", f"{expert.pre}, for both")
    special = [
        f"{name} is {_show_id(ours, drafter)} for the drafter, {_show_id(theirs, expert)} for the expert"
        for name, ours, theirs in (("BOS", drafter.bos_id, expert.bos_id), ("EOS", drafter.eos_id, expert.eos_id))
        if ours != theirs
    ]
    if special:
        yield Finding("warning", "special ids", "; ".join(special))
    elif expert.bos_id is not None or expert.eos_id is not None:
        yield Finding("well", "special ids", f"BOS {_show_id(expert.bos_id, expert)}, EOS {_show_id(expert.eos_id, expert)}, for both")
    ends = [
        f"only the {role} ends a text at {_show_ids(sorted({*own.end_ids} - {*other.end_ids}), own)}"
        for role, own, other in (("drafter", drafter, expert), ("expert", expert, drafter))
        if {*own.end_ids} - {*other.end_ids}
    ]
    if ends:
        yield Finding("warning", "end ids", f"{'; '.join(ends)}: the expert's count")
    elif expert.end_ids:
        yield Finding("well", "end ids", f"{_show_ids(expert.end_ids, expert)}, for both")


def chat_templates(drafter: ModelPlan, expert: ModelPlan) -> Finding:
    """Return how the chat templates compare; the expert's is used for both models."""
    ours, theirs = drafter.chat_template, expert.chat_template
    if not theirs:
        grade: Grade = "warning" if ours else "note"
        missing = "the expert has none, the drafter has one" if ours else "neither has one"
        return Finding(grade, "chat template", f"{missing}: prompts are continued as they are")
    if not ours:
        return Finding("warning", "chat template", "the drafter has none: it may not be trained to answer, and may draft worse")
    if ours.strip() != theirs.strip():
        return Finding("warning", "chat template", "they differ; both are given the expert's, and the drafter may draft worse in it")
    return Finding("well", "chat template", "the same")


def size(drafter_bytes: int, expert_bytes: int) -> Finding:
    """Return how the costs of a token compare, by the bytes of weights that each model reads for one."""
    ratio = expert_bytes / max(1, drafter_bytes)
    text = f"a token of the expert reads {ratio:.3g} × as much as one of the drafter"
    if ratio < MIN_RATIO:
        larger = "; the drafter is the larger one" if ratio < 1 else ""
        return Finding("warning", "size", f"{text}; below {MIN_RATIO:g} × drafts seldom pay for themselves{larger}")
    return Finding("well", "size", text)


def drafter_cache(placement: Placement) -> Iterator[Finding]:
    """Warn of a quantized KV cache of the drafter."""
    if placement.cache_type in QUANTIZED:
        effect = "which others report can halve how many drafts are accepted; f16 costs little memory there"
        yield Finding("warning", "cache", f"the drafter's is held as {placement.cache_type}, {effect}")


def rollback(role: str, model: ModelPlan) -> Finding:
    """Return how the model's memory forgets a rejected draft."""
    about = f"{role}: rollback"
    if model.refused or model.rollback is None:
        return Finding("no", about, model.refused or "its memory cannot forget a rejected draft")
    if model.rollback == "tail":
        return Finding("well", about, f"drops the tail of its memory, which costs nothing ({model.architecture})")
    if model.rollback == "snapshots":
        snapshots = f"one of its snapshots, which take {decimal(model.recurrent)} in all"
        return Finding("well", about, f"returns to {snapshots} ({model.architecture})")
    state = decimal(model.state) if model.state else "under 10 kB"  # llama.cpp's log shows no smaller size
    taken = f"a checkpoint of its state, {state}, is taken about once a block"
    used = "after a rejected draft it is restored and the accepted tokens are read again"
    return Finding("warning", about, f"{taken}; {used} ({model.architecture})")


def mixture(expert: ModelPlan) -> Iterator[Finding]:
    """Warn of a mixture of experts, which gains less from drafts."""
    if expert.n_experts:
        effect = "several tokens at once read more of its weights than one does, so drafts gain less; others report 15 to 35 %"
        yield Finding("warning", "experts", f"the expert is a mixture of {expert.n_experts}: {effect}")


def context(n_ctx: int, n_ctx_train: int) -> Iterator[Finding]:
    """Refuse a context of more tokens than the models were trained for."""
    if n_ctx > n_ctx_train:
        text = f"{n_ctx} tokens were asked for (--ctx); the models were trained for {n_ctx_train}, which is the most"
        yield Finding("no", "context", text)


def speed(estimate: Estimate | None) -> Finding:
    """Return the estimated speed-up; None where nothing was measured on this machine."""
    if estimate is None:
        text = "nothing was measured on this machine; run 'speccascade profile PAIR' with any pair to get an estimate"
        return Finding("note", "speed", text)
    low, high = estimate.speedup
    least, most = ACCEPTANCE_RATES
    text = f"{low:.1f} to {high:.1f} × as fast as the expert alone, where {least:.0%} to {most:.0%} of drafts are accepted"
    return Finding("warning" if high < _MIN_SPEEDUP else "well", "speed", text)


def _show_ids(tokens: list[int] | tuple[int, ...], facts: TokenizerFacts) -> str:
    ids = ", ".join(_show_id(token, facts) for token in tokens[:_MAX_IDS_SHOWN])
    return f"{ids} and {len(tokens) - _MAX_IDS_SHOWN} more" if len(tokens) > _MAX_IDS_SHOWN else ids


def _show_id(token: int | None, facts: TokenizerFacts) -> str:
    if token is None:
        return "none"
    return f"{token} {facts.texts[token]!r}" if token in facts.texts else str(token)
