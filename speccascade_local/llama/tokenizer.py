"""Text to token ids and back with a GGUF file's vocabulary, and whether two vocabularies fit."""

from __future__ import annotations

import ctypes
import weakref
from functools import cached_property
from typing import Any

import llama_cpp

from ..common.errors import PairError, PromptError, SessionError
from ..tokens.grammar_pool import MatcherPool


class Tokenizer:
    """The vocabulary of one file, over llama.cpp's ``llama_vocab``. Its methods raise SessionError once ``freed`` has freed the weights."""

    def __init__(self, name: str, pointer: Any, freed: weakref.finalize[..., Any]) -> None:
        self.name = name
        self._pointer, self._freed = pointer, freed
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(pointer)

    @property
    def _vocab(self) -> Any:
        if not self._freed.alive:
            raise SessionError(f"{self.name}: this model is closed; load the pair again")
        return self._pointer

    @cached_property
    def kind(self) -> int:
        """llama.cpp's ``llama_vocab_type``; 0 for a file that has ids and no text."""
        kind: int = llama_cpp.llama_vocab_type(self._vocab)
        return kind

    @property
    def has_text(self) -> bool:
        """Whether ids have texts."""
        return self.kind != 0

    @cached_property
    def bos_id(self) -> int | None:
        """The id that the model expects before every text, or None."""
        return llama_cpp.llama_vocab_bos(self._vocab) if llama_cpp.llama_vocab_get_add_bos(self._vocab) else None

    @cached_property
    def eos_id(self) -> int | None:
        """The id that the model expects after every text, or None."""
        return llama_cpp.llama_vocab_eos(self._vocab) if llama_cpp.llama_vocab_get_add_eos(self._vocab) else None

    @cached_property
    def special_texts(self) -> dict[str, str]:
        """``bos_token`` and ``eos_token`` for chat templates; empty where the vocabulary has none."""
        ids = {"bos_token": llama_cpp.llama_vocab_bos(self._vocab), "eos_token": llama_cpp.llama_vocab_eos(self._vocab)}
        return {name: self.token_text(token) if self.has_text and token >= 0 else "" for name, token in ids.items()}

    @cached_property
    def control_texts(self) -> frozenset[str]:
        """The written forms of all control tokens, such as ``<|im_start|>``."""
        if not self.has_text:
            return frozenset()
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        return frozenset(
            self.token_text(token) for token in range(self.n_vocab) if llama_cpp.llama_vocab_get_attr(self._vocab, token) & control
        )

    def is_end(self, token: int) -> bool:
        """Return whether an id ends a text or a turn."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """All ids that end a text or a turn."""
        return tuple(token for token in range(self.n_vocab) if self.is_end(token))

    def token_text(self, token: int) -> str:
        """Return the vocabulary's entry for an id, as stored in the file (byte-level alphabets are not decoded)."""
        return self.stored_text(token).decode(errors="replace")

    def stored_text(self, token: int) -> bytes:
        """Return the entry as bytes, which need not be UTF-8: two texts that look alike may differ."""
        text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the ids of a text.

        With ``add_special`` the vocabulary adds its BOS and EOS; with ``parse_special`` texts such as ``<|...|>`` are control tokens.
        Raises PromptError for a vocabulary without text.
        """
        if not self.has_text:
            raise PromptError(f"{self.name} has token ids but no text vocabulary; pass the prompt as a list of ids")
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds {text[error.start]!r} at position {error.start}, which is no character; its source was probably not UTF-8"
            ) from error
        room = len(data) + 2
        for _ in range(2):
            ids = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                break
            room = -count  # a vocabulary that normalizes text may need more ids than bytes; this is the number
        if count < 0:
            raise PromptError(
                f"llama_tokenize returned {count} for a text of {len(data)} bytes; "
                "the vocabulary of this file is damaged or unusual; please report it"
            )
        return list(ids[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of an id, possibly a part of a UTF-8 character; of a control token none, or with ``special`` its text."""
        if not self.has_text:
            return b""
        buffer = ctypes.create_string_buffer(64)
        length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:length]

    @cached_property
    def for_grammars(self) -> MatcherPool:
        """The vocabulary for grammars, made at the first use. Raises PromptError for a vocabulary without text."""
        if not self.has_text:
            raise PromptError(f"{self.name} has token ids but no text vocabulary, so no answer can follow a grammar")
        # llguidance marks control tokens with a byte that no text has.
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        marks = [b"\xff" if llama_cpp.llama_vocab_get_attr(self._vocab, token) & control else b"" for token in range(self.n_vocab)]
        tokens = [mark + self.piece(token, special=True) for token, mark in enumerate(marks)]
        return MatcherPool(tokens, self.end_ids)


MAX_SIZE_DIFFERENCE = 128
FIRST_COMPARED_ID = 5  # the first ids are unk, bos, eos and so on, which converters name differently

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


def shared_vocab_size(drafter: Tokenizer, expert: Tokenizer) -> int:
    """Return the number of ids that both models have; no other id is emitted.

    Raises PairError with the first difference where the two do not pair.
    """
    advice = "choose a drafter of the same model family as the expert"
    if drafter.kind != expert.kind:
        raise PairError(f"the drafter's vocabulary is {_kind(drafter)}, the expert's {_kind(expert)}; {advice}")
    for name in ("bos_id", "eos_id"):
        ours, theirs = getattr(drafter, name), getattr(expert, name)
        if ours != theirs:
            raise PairError(
                f"the models frame a text differently: {name} is {_describe_id(ours)} for the drafter, "
                f"{_describe_id(theirs)} for the expert; {advice}"
            )
    difference = abs(drafter.n_vocab - expert.n_vocab)
    if difference > MAX_SIZE_DIFFERENCE:
        raise PairError(
            f"the drafter has {drafter.n_vocab} token ids, the expert {expert.n_vocab}: {difference} apart, "
            f"allowed are {MAX_SIZE_DIFFERENCE}; {advice}"
        )
    shared = min(drafter.n_vocab, expert.n_vocab)
    for token in range(FIRST_COMPARED_ID, shared) if drafter.has_text else ():
        ours, theirs = drafter.stored_text(token), expert.stored_text(token)
        if ours != theirs:
            raise PairError(f"token id {token} is {_quote(ours)} for the drafter and {_quote(theirs)} for the expert; {advice}")
    return shared


def _quote(text: bytes) -> str:
    """Return a text for a message, or bytes where it is none, so that two different ones never look alike."""
    try:
        return repr(text.decode())
    except UnicodeDecodeError:
        return repr(text)


def _kind(tokenizer: Tokenizer) -> str:
    return _KINDS[tokenizer.kind] if tokenizer.kind < len(_KINDS) else f"of type {tokenizer.kind}"


def _describe_id(token: int | None) -> str:
    return "not added" if token is None else f"id {token}"
