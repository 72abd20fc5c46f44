"""Bytes -> UTF-8 text that may be shown, and stop strings.

A token can be half a character, and a stop string can lie across tokens: :class:`TextStream` holds back what is not yet certain.
Knows nothing of models beyond the few functions and texts it is given.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Turns emitted tokens into text, one piece per token.

    ``pieces[i]`` is what token i made visible: never half a character, and nothing that might still turn out to be the
    beginning of a stop string; held-back text appears with the token that settles it. The concatenation is the text.
    """

    def __init__(self, piece: Callable[[int], bytes], is_end: Callable[[int], bool], stop: Sequence[str] = ()) -> None:
        self.pieces: list[str] = []
        self._piece = piece
        self._is_end = is_end
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, token: int) -> bool:
        """Take the next token; True when the text ends with it (end of text, or a stop string is complete)."""
        if self._is_end(token):
            self.pieces.append("")
            return True
        text = self._held + self._decoder.decode(self._piece(token))
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if found:
            # The stop string that is complete first ends the text (of those, the longest): so token borders make no difference.
            self.pieces.append(text[: min(found)[1]])
            self._held = ""
            self._decoder.reset()
            return True
        kept = _possible_beginning(text, self._stop)
        self.pieces.append(text[: len(text) - kept])
        self._held = text[len(text) - kept :]
        return False

    def finish(self) -> None:
        """No more tokens: what is held back belongs to the text after all. A broken last character becomes U+FFFD."""
        rest = self._held + self._decoder.decode(b"", final=True)
        if rest:
            self.pieces[-1] += rest


def _possible_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of a stop string."""
    longest = max((len(s) - 1 for s in stop), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[-length:]) for s in stop):
            return length
    return 0
