"""A conversation so far as text and as token ids, piece by piece, so that the next prompt uses the same ids.

Models may write a text with other ids than the tokenizer would. A prompt from the text of a reply alone would then differ from what the
caches hold. Here generated ids stay, and only what a template adds after them is tokenized. Where a template changes the past (drops the
thinking, say), pieces stay as far as they agree and the rest is tokenized again. The prompt always spells exactly the template's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .prompt import Part, Tokenizer, encode_parts


class Piece(NamedTuple):
    """Ids and the text that they stand for. parts: None for ids that a model wrote, which spell their own text."""

    ids: tuple[int, ...]
    parts: tuple[Part, ...] | None


@dataclass(frozen=True)
class Transcript:
    """A conversation so far; a value that methods extend into a new one."""

    pieces: tuple[Piece, ...] = ()

    @cached_property
    def ids(self) -> list[int]:
        """All ids."""
        return [token for piece in self.pieces for token in piece.ids]

    def answered(self, token_ids: Sequence[int]) -> Transcript:
        """Return the transcript extended by a model's reply."""
        return Transcript((*self.pieces, Piece(tuple(token_ids), None)))

    def prompt(self, rendered: Sequence[Part], tokenizer: Tokenizer) -> Transcript:
        """Return the transcript of what a chat template wrote, with the ids that are known as far as they stand for the same text."""
        pieces = [part for piece in self.pieces for part in _divide(piece, tokenizer)]
        for count, rest in reversed(list(enumerate(_rests(pieces, rendered, tokenizer), 1))):
            ids = _ids_between(rest, tokenizer)
            if ids is not None:
                return Transcript((*pieces[:count], Piece(tuple(ids), tuple(rest))))
        return Transcript((Piece(tuple(encode_parts(rendered, tokenizer)), tuple(rendered)),))


def _divide(piece: Piece, tokenizer: Tokenizer) -> list[Piece]:
    """Return a piece with the id that ended a reply as a piece of its own, because a template may or may not write it there."""
    if piece.parts is not None or not piece.ids or not tokenizer.is_end(piece.ids[-1]):
        return [piece]
    *text, end = piece.ids
    return [Piece(tuple(text), None), Piece((end,), ((tokenizer.piece(end, special=True).decode(errors="replace"), True),))]


def _rests(pieces: Sequence[Piece], rendered: Sequence[Part], tokenizer: Tokenizer) -> list[list[Part]]:
    """Return what is left of a text after the first piece, the first two, and so on, as far as it begins with them."""
    rests, rest = [], list(rendered)
    for ids, parts in pieces:
        text = b"".join(map(tokenizer.piece, ids)).decode(errors="replace")
        after = _after([(text, None)] if parts is None else parts, rest)
        if after is None:
            break
        rest = after
        rests.append(rest)
    return rests


def _after(beginning: Sequence[tuple[str, bool | None]], parts: Sequence[Part]) -> list[Part] | None:
    """Return what follows this beginning; None if the text begins otherwise, or with parts of another kind. A kind of None matches any."""
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
    """Return the ids of a text that follows other ids; None if they spell it differently: some vocabularies add a space in front."""
    ids = [token for text, control in parts for token in tokenizer.tokenize(text, add_special=False, parse_special=control)]
    spelled = b"".join(tokenizer.piece(token, special=True) for token in ids)
    return ids if ids and spelled == "".join(text for text, _ in parts).encode() else None
