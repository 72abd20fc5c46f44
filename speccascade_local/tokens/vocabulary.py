"""What token ids stand for: bytes and text, looked up once for the whole vocabulary.

For rules that look at tokens, for log-probabilities that name them, and for finding a spelled tag in a text.
Knows nothing of models: it is given a function from an id to its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np

from .sampler import Mask


class Vocabulary:
    """The ids 0..n_vocab-1 and the bytes of each, control tokens in their written form."""

    def __init__(self, n_vocab: int, piece: Callable[[int], bytes]) -> None:
        self.n_vocab = n_vocab
        self._piece = piece
        self._masks: dict[Callable[[str], bool], Mask] = {}

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every id; a token may be a part of a character."""
        return [self._piece(token) for token in range(self.n_vocab)]

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """The bytes of a text."""
        return b"".join(self.pieces[token] for token in tokens)

    def where(self, predicate: Callable[[str], bool]) -> Mask:
        """For which ids ``predicate`` holds of the token's text. [n_vocab]

        Asked once for each predicate and remembered, so give a named function and not a fresh lambda at every call. The mask is shared
        with later calls, and so cannot be written to.
        """
        if predicate not in self._masks:
            mask = np.array([bool(predicate(piece.decode(errors="replace"))) for piece in self.pieces], dtype=bool)
            mask.flags.writeable = False
            self._masks[predicate] = mask
        return self._masks[predicate]
