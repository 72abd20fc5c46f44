"""Bytes -> UTF-8 text to show, and stop strings.

A token can be half a character, and a stop string can lie across tokens: :class:`TextStream` holds back what is not yet certain.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property


class TextStream:
    """Turns emitted tokens into text, one piece per token.

    ``pieces[i]`` is the text that token i made visible: never half a character, and never the possible beginning of a stop string. Text
    that is held back appears with a later token. The concatenation is the whole text.

    Control tokens are not visible, but stop strings may spell them. A stop string ends the text where it is complete in the visible text,
    or in the same text with control tokens spelled out.

    Args:
        piece: Returns a token's visible bytes.
        is_end: Returns whether a token ends the text.
        stop: Texts that end the text and are not part of it.
        spelled: Returns a control token's bytes as it is spelled.
    """

    def __init__(
        self,
        piece: Callable[[int], bytes],
        is_end: Callable[[int], bool],
        stop: Sequence[str] = (),
        spelled: Callable[[int], bytes] = lambda token: b"",
    ) -> None:
        self.pieces: list[str] = []
        self._piece, self._is_end, self._spelled = piece, is_end, spelled
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._length = 0  # of all visible text, including held-back text
        self._stops = [_Stop(text) for text in dict.fromkeys(stop)]
        self._in_shown, self._in_spelled = _Matches(self._stops), _Matches(self._stops)
        #: The length of the visible text before each of the last characters of the spelled-out text.
        self._before: deque[int] = deque(maxlen=max((len(text) for text in stop), default=0))

    def feed(self, token: int) -> bool:
        """Take the next token. Return True if the text ends with it: an end of text, or a complete stop string."""
        ends = self._is_end(token)
        data = b"" if ends else self._piece(token)
        text = self._decoder.decode(data)
        shown = self._length - len(self._held)
        self._held += text
        self._length += len(text)
        if self._stops:
            cut = self._cut(text, "" if data else self._spelled(token).decode(errors="replace"))
            if cut is not None:
                self.pieces.append(self._held[: cut - shown])
                self._held = ""
                self._decoder.reset()
                return True
        piece = "" if ends else self._held[: len(self._held) - self._uncertain_length()]  # at an end the rest is for finish
        self.pieces.append(piece)
        self._held = self._held[len(piece) :]
        return ends

    def finish(self) -> None:
        """Add the text that is held back to the last piece. A broken last character becomes U+FFFD."""
        if rest := self._held + self._decoder.decode(b"", final=True):
            self.pieces[-1] += rest

    def _cut(self, shown: str, control: str) -> int | None:
        """Return the length of the visible text before the first complete stop string, the longest of several; None without one.

        The search is by characters, so token borders make no difference. shown: the visible text of the next token. control: its spelling,
        if it has none.
        """
        for length, character in enumerate(shown, self._length - len(shown)):
            self._before.append(length)
            in_shown, in_spelled = self._in_shown.feed(character), self._in_spelled.feed(character)
            if in_shown or in_spelled:
                return min(length + 1 - in_shown, self._before[-in_spelled] if in_spelled else length)
        for character in control:
            self._before.append(self._length)
            if in_spelled := self._in_spelled.feed(character):
                return self._before[-in_spelled]
        return None

    def _uncertain_length(self) -> int:
        """Return how much of the end of the visible text may be the beginning of a stop string."""
        spelled = self._in_spelled.longest
        return max(self._in_shown.longest, self._length - self._before[-spelled] if spelled else 0)


class _Stop:
    """A stop string, searched for as by Knuth, Morris and Pratt (1977): each character of the text is read once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def _borders(self) -> list[int]:
        """For each prefix of the string, the length of its longest proper suffix that is also a prefix."""
        borders = [0, 0]
        for character in self.text[1:]:
            length = borders[-1]
            while length and self.text[length] != character:
                length = borders[length]
            borders.append(length + (self.text[length] == character))
        return borders

    def advance(self, matched: int, character: str) -> int:
        """Return the length of the prefix that the text ends with after this character, given that it was ``matched`` before."""
        while matched and self.text[matched] != character:
            matched = self._borders[matched]
        return matched + (self.text[matched] == character)


class _Matches:
    """The prefix of each stop string that a text ends with. Stop strings without one cost nothing."""

    def __init__(self, stops: Sequence[_Stop]) -> None:
        self._beginning: dict[str, list[_Stop]] = {}
        for stop in stops:
            self._beginning.setdefault(stop.text[0], []).append(stop)
        self._matched: dict[_Stop, int] = {}

    def feed(self, character: str) -> int:
        """Take the next character. Return the length of the longest stop string that it completes; 0 for none."""
        beginning = self._beginning.get(character, ())
        if not beginning and not self._matched:
            return 0
        before = dict.fromkeys(beginning, 0) | self._matched
        matched = {stop: stop.advance(length, character) for stop, length in before.items()}
        self._matched = {stop: length for stop, length in matched.items() if length}
        return max((length for stop, length in matched.items() if length == len(stop.text)), default=0)

    @property
    def longest(self) -> int:
        """The length of the longest prefix of a stop string that the text ends with."""
        return max(self._matched.values(), default=0)
