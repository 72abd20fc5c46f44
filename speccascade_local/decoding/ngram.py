"""N-gram guesses from the text: a drafter that costs nothing, good where a text repeats itself or its prompt.

It finds the longest suffix of a text, up to ``longest`` tokens, that occurred in it before, and guesses that what followed the latest
occurrence follows now. That resembles Max-Gram (CS Drafting, Chen et al. 2312.11462) and prompt lookup decoding. Unlike Max-Gram it takes
the latest match, matches at most ``longest`` tokens, and has no table of the language's bigrams as a fallback.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice, takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..tokens.prompt import shared_prefix_length

#: Cap on the number of matching tokens that are counted.
LONGEST_MATCH = 12


class Guess(NamedTuple):
    """Tokens that may come next, and the number of matching tokens before them: the more, the surer.

    ``match`` counts up to LONGEST_MATCH, more than the index searches for, so a long copy looks surer than one that begins.
    """

    token_ids: list[int]
    match: int


NOTHING = Guess([], 0)


class NgramIndex:
    """Every n-gram of a growing text, n = 1..longest, with the position that followed its latest occurrence.

    Each token is indexed once; a lookup costs at most ``longest`` dictionary reads. The text grows before the index does and shrinks after
    it, and each step may run twice. So an exception between the two leaves work for the next call, and no error.
    """

    def __init__(self, longest: int = 6) -> None:
        self.longest = longest
        self.text: list[int] = []
        self._follower: dict[tuple[int, ...], int] = {}  # n-gram -> place in the text of what followed its latest occurrence
        self._before: list[list[int | None]] = []  # what stood in the index before each token was entered
        self._entered = 0  # tokens of the text that are in the index

    def __len__(self) -> int:
        return len(self.text)

    def begin(self, tokens: list[int]) -> None:
        """Index this text; what it shares with the one before is not indexed again."""
        shared = shared_prefix_length(self.text, tokens)
        self.roll_back(shared)
        self.append(tokens[shared:])

    def append(self, tokens: Sequence[int]) -> None:
        self.text += tokens
        for end in range(self._entered, len(self.text)):
            keys = self._ending(end)
            if len(self._before) == end:
                self._before.append([self._follower.get(key) for key in keys])
            self._follower.update(dict.fromkeys(keys, end))
            self._entered = end + 1

    def roll_back(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""
        while len(self._before) > length:
            self._entered = min(self._entered, len(self._before) - 1)
            for key, place in zip(self._ending(len(self._before) - 1), self._before[-1]):
                if place is None:
                    self._follower.pop(key, None)
                else:
                    self._follower[key] = place
            self._before.pop()
        del self.text[length:]

    def _ending(self, end: int) -> list[tuple[int, ...]]:
        return [tuple(self.text[start:end]) for start in range(max(0, end - self.longest), end)]

    def guess(self, length: int, drafted: Sequence[int] = ()) -> Guess:
        """Return up to ``length`` tokens that may follow the text and ``drafted``, which is not indexed; none where nothing matches.

        Where the copied passage reaches the end of the text, it repeats itself, as a loop does.
        """
        end = [*self.text[-LONGEST_MATCH:], *drafted][-LONGEST_MATCH:]
        for n in range(min(self.longest, len(end)), 0, -1):
            place = self._follower.get(tuple(end[-n:]))
            if place is not None:
                ahead = self.text[place : place + length]
                if len(ahead) < length:
                    ahead += drafted
                source = self.text[max(0, place - LONGEST_MATCH) : place]
                match = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(end), reversed(source))))
                return Guess(list(islice(cycle(ahead), length)), match)
        return NOTHING


class NgramSession:
    """An index as the drafter, where there is no second model: a :class:`~speccascade_local.decoding.draft.Session`.

    Its rows are one-hot at the guess, so a rule that asks how sure the drafter is finds it perfectly sure. Without a guess the row is flat.
    """

    def __init__(self, n_vocab: int, n_ctx: int) -> None:
        self.n_vocab, self.n_ctx = n_vocab, n_ctx
        self._index = NgramIndex()

    @property
    def tokens(self) -> list[int]:
        return self._index.text

    def extend(self, tokens: list[int], keep: int) -> NDArray[np.float32]:
        """Append ``tokens`` and return the rows after each of the last ``keep`` of them. [keep, n_vocab]"""
        rows = np.zeros((keep, self.n_vocab), np.float32)
        for at, token in enumerate(tokens, start=keep - len(tokens)):
            self._index.append([token])
            guess = self._index.guess(1) if at >= 0 else NOTHING
            if guess.token_ids:
                rows[at] = -np.inf
                rows[at, guess.token_ids[0]] = 0
        return rows

    def roll_back(self, length: int) -> None:
        self._index.roll_back(length)
