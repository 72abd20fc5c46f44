"""Whether two models can answer as one: their vocabularies must be the same thing.

The conditions are llama.cpp's (``common/speculative.cpp``), which refuses a pair and keeps the reason to itself; here the reason is
the result. One thing is ours: two vocabularies of ids without text pair by their sizes alone, where llama.cpp would end the process.
Knows nothing of files or of how the pair will be used.
"""

from __future__ import annotations

from .errors import PairError
from .tokenizer import Tokenizer

MAX_SIZE_DIFFERENCE = 128
FIRST_COMPARED_ID = 5  # the first few ids are unk, bos, eos and the like, which converters name differently

_KINDS = {
    0: "no text",
    1: "SentencePiece (SPM)",
    2: "byte-level BPE",
    3: "WordPiece",
    4: "Unigram",
    5: "RWKV",
    6: "PLaMo-2",
    7: "a dummy for tests",
}


def shared_vocab_size(drafter: Tokenizer, expert: Tokenizer, role: str = "drafter") -> int:
    """The number of ids that both models have; nothing outside is ever emitted.

    Raises PairError with the first difference when the two cannot be paired. role: what the first of them is called there.
    """
    advice = f"choose a {role} of the same model family as the expert"
    if drafter.kind != expert.kind:
        raise PairError(f"the {role}'s vocabulary is {_kind(drafter)}, the expert's {_kind(expert)}; {advice}")
    for name in ("bos_id", "eos_id"):
        ours, theirs = getattr(drafter, name), getattr(expert, name)
        if ours != theirs:
            raise PairError(
                f"the models frame a text differently: {name} is {_added(ours)} for the {role}, {_added(theirs)} for the expert; {advice}"
            )
    difference = abs(drafter.n_vocab - expert.n_vocab)
    if difference > MAX_SIZE_DIFFERENCE:
        raise PairError(
            f"the {role} has {drafter.n_vocab} token ids, the expert {expert.n_vocab}: {difference} apart, "
            f"allowed are {MAX_SIZE_DIFFERENCE}; {advice}"
        )
    shared = min(drafter.n_vocab, expert.n_vocab)
    for token in range(FIRST_COMPARED_ID, shared) if drafter.has_text else ():
        ours, theirs = drafter.stored_text(token), expert.stored_text(token)
        if ours != theirs:
            raise PairError(f"token id {token} is {_shown(ours)} for the {role} and {_shown(theirs)} for the expert; {advice}")
    return shared


def _shown(text: bytes) -> str:
    """As text, or as bytes where it is none: two that differ never look the same."""
    try:
        return repr(text.decode())
    except UnicodeDecodeError:
        return repr(text)


def _kind(tokenizer: Tokenizer) -> str:
    return _KINDS[tokenizer.kind] if tokenizer.kind < len(_KINDS) else f"of type {tokenizer.kind}"


def _added(token: int | None) -> str:
    return "not added" if token is None else f"id {token}"
