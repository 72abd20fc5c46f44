"""The bytes and texts of token ids, looked up once for the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np

from .sampler import Mask


class Vocabulary:
    """The ids 0..n_vocab-1 and the bytes of each, control tokens as they are spelled."""

    def __init__(self, n_vocab: int, piece: Callable[[int], bytes]) -> None:
        self.n_vocab = n_vocab
        self._piece = piece
        self._masks: dict[Callable[[str], bool], Mask] = {}

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every id, which may be a part of a character."""
        return [self._piece(token) for token in range(self.n_vocab)]

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes that the tokens spell."""
        return b"".join(self.pieces[token] for token in tokens)

    def where(self, predicate: Callable[[str], bool]) -> Mask:
        """Return for which ids ``predicate`` holds of the token's text, as a read-only mask. [n_vocab]

        The mask is cached by predicate, so give a named function and not a new lambda at every call.
        """
        if predicate not in self._masks:
            mask = np.array([bool(predicate(piece.decode(errors="replace"))) for piece in self.pieces], dtype=bool)
            mask.flags.writeable = False
            self._masks[predicate] = mask
        return self._masks[predicate]
