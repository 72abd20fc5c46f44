"""A conversation so far as text and as token ids, piece by piece, so that the next prompt stands for it by the same ids.

A text can be written with other ids than the tokenizer would take, and models do write so. A prompt that reads an answer again from its
text would then part from what the caches hold; here the ids that were generated stay, and only what a template adds behind them is
tokenized. Where a template writes the past differently (drops the thinking, say), pieces are kept as far as they agree and the rest is
tokenized anew: the prompt always spells exactly what the template wrote. Knows nothing of models, templates or messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .prompt import Part, Tokenizer, encode_parts


class Piece(NamedTuple):
    """Ids that stand for some text. parts: that text; None for what a model wrote, whose text is what its ids spell."""

    ids: tuple[int, ...]
    parts: tuple[Part, ...] | None


@dataclass(frozen=True)
class Transcript:
    """What has been said: a value; saying more makes another one."""

    pieces: tuple[Piece, ...] = ()

    @cached_property
    def ids(self) -> list[int]:
        """All of it."""
        return [token for piece in self.pieces for token in piece.ids]

    def answered(self, token_ids: Sequence[int]) -> Transcript:
        """With what a model wrote."""
        return Transcript((*self.pieces, Piece(tuple(token_ids), None)))

    def prompt(self, rendered: Sequence[Part], tokenizer: Tokenizer) -> Transcript:
        """What a chat template wrote, as ids: those that are here as far as they stand for the same text."""
        pieces = [part for piece in self.pieces for part in _divide(piece, tokenizer)]
        for count, rest in reversed(list(enumerate(_rests(pieces, rendered, tokenizer), 1))):
            ids = _ids_between(rest, tokenizer)
            if ids is not None:
                return Transcript((*pieces[:count], Piece(tuple(ids), tuple(rest))))
        return Transcript((Piece(tuple(encode_parts(rendered, tokenizer)), tuple(rendered)),))


def _divide(piece: Piece, tokenizer: Tokenizer) -> list[Piece]:
    """The id that ended an answer is a piece of its own, because a template may or may not write it there."""
    if piece.parts is not None or not piece.ids or not tokenizer.is_end(piece.ids[-1]):
        return [piece]
    *text, end = piece.ids
    return [Piece(tuple(text), None), Piece((end,), ((tokenizer.piece(end, special=True).decode(errors="replace"), True),))]


def _rests(pieces: Sequence[Piece], rendered: Sequence[Part], tokenizer: Tokenizer) -> list[list[Part]]:
    """What is left of a text after the first piece, the first two, and so on as far as it begins with them."""
    rests, rest = [], list(rendered)
    for ids, parts in pieces:
        written = b"".join(map(tokenizer.piece, ids)).decode(errors="replace")
        found = _after([(written, None)] if parts is None else parts, rest)
        if found is None:
            break
        rest = found
        rests.append(rest)
    return rests


def _after(beginning: Sequence[tuple[str, bool | None]], parts: Sequence[Part]) -> list[Part] | None:
    """What follows this beginning; None where the text begins otherwise, or with parts of another kind (None: of any kind)."""
    rest = list(reversed(parts))
    for text, may_hold_control in beginning:
        read = 0
        while read < len(text):
            if not rest:
                return None
            here, kind = rest.pop()
            shared = min(len(here), len(text) - read)
            if here[:shared] != text[read : read + shared] or may_hold_control not in (None, kind):
                return None
            read += shared
            if here[shared:]:
                rest.append((here[shared:], kind))
    return rest[::-1]


def _ids_between(parts: Sequence[Part], tokenizer: Tokenizer) -> list[int] | None:
    """The ids of a text that follows other ids; None where none were found that spell it (some vocabularies begin with a space)."""
    ids = [token for text, control in parts for token in tokenizer.tokenize(text, add_special=False, parse_special=control)]
    spelled = b"".join(tokenizer.piece(token, special=True) for token in ids)
    return ids if ids and spelled == "".join(text for text, _ in parts).encode() else None
