"""Bytes -> UTF-8 text that may be shown, and stop strings.

A token can be half a character, and a stop string can lie across tokens: :class:`TextStream` holds back what is not yet certain.
Knows nothing of models beyond the few functions and texts it is given.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property


class TextStream:
    """Turns emitted tokens into text, one piece per token.

    ``pieces[i]`` is what token i made visible: never half a character, and nothing that might still turn out to be the
    beginning of a stop string; held-back text appears with the token that settles it. The concatenation is the text.

    Control tokens show nothing, but stop strings may spell them: a stop string ends the text where it is complete in what is shown, or
    in the same text with all control tokens written out. piece: a token's visible bytes. spelled: its bytes as it is written.
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
        self._length = 0  # of all visible text, with what is held back
        self._stops = [_Stop(text) for text in dict.fromkeys(stop)]
        self._in_shown, self._in_spelled = _Matches(self._stops), _Matches(self._stops)
        #: How much visible text stands before each of the last characters of the text that is written out.
        self._before: deque[int] = deque(maxlen=max((len(text) for text in stop), default=0))

    def feed(self, token: int) -> bool:
        """Take the next token; True when the text ends with it (end of text, or a stop string is complete)."""
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
        settled = "" if ends else self._held[: len(self._held) - self._kept()]  # at an end the rest is for finish
        self.pieces.append(settled)
        self._held = self._held[len(settled) :]
        return ends

    def finish(self) -> None:
        """No more tokens: what is held back belongs to the text after all. A broken last character becomes U+FFFD."""
        rest = self._held + self._decoder.decode(b"", final=True)
        if rest:
            self.pieces[-1] += rest

    def _cut(self, shown: str, control: str) -> int | None:
        """How much visible text stands before the stop string that is complete first (of those, the longest); None where none is.

        Looked for character by character, so token borders make no difference. shown, control: what the next token adds to the text,
        and how it is written where it adds nothing.
        """
        for length, character in enumerate(shown, self._length - len(shown)):
            self._before.append(length)
            in_shown, in_spelled = self._in_shown.feed(character), self._in_spelled.feed(character)
            if in_shown or in_spelled:
                return min(length + 1 - in_shown, self._before[-in_spelled] if in_spelled else length)
        for character in control:
            self._before.append(self._length)
            in_spelled = self._in_spelled.feed(character)
            if in_spelled:
                return self._before[-in_spelled]
        return None

    def _kept(self) -> int:
        """How much of the visible text's end might still be the beginning of a stop string."""
        spelled = self._in_spelled.longest
        return max(self._in_shown.longest, self._length - self._before[-spelled] if spelled else 0)


class _Stop:
    """A stop string, found as Knuth, Morris and Pratt (1977) do: a character of the text is never looked at again."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def _borders(self) -> list[int]:
        """For each beginning of the string, how long its longest proper end is that the string begins with, too."""
        borders = [0, 0]
        for character in self.text[1:]:
            length = borders[-1]
            while length and self.text[length] != character:
                length = borders[length]
            borders.append(length + (self.text[length] == character))
        return borders

    def behind(self, matched: int, character: str) -> int:
        """How long a beginning the text ends with behind this character, where it ended with one of ``matched`` characters before."""
        while matched and self.text[matched] != character:
            matched = self._borders[matched]
        return matched + (self.text[matched] == character)


class _Matches:
    """How much of each stop string a text ends with. Costs nothing for those of which it is nothing."""

    def __init__(self, stops: Sequence[_Stop]) -> None:
        self._beginning: dict[str, list[_Stop]] = {}
        for stop in stops:
            self._beginning.setdefault(stop.text[0], []).append(stop)
        self._matched: dict[_Stop, int] = {}

    def feed(self, character: str) -> int:
        """Take the next character. Returns the length of the longest stop string that is complete with it; 0 where none is."""
        begun = self._beginning.get(character, ())
        if not begun and not self._matched:
            return 0
        before = dict.fromkeys(begun, 0) | self._matched
        matched = {stop: stop.behind(length, character) for stop, length in before.items()}
        self._matched = {stop: length for stop, length in matched.items() if length}
        return max((length for stop, length in matched.items() if length == len(stop.text)), default=0)

    @property
    def longest(self) -> int:
        """The length of the longest beginning of a stop string that the text ends with."""
        return max(self._matched.values(), default=0)
