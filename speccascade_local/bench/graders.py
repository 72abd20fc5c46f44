"""How good an answer is, from 0 to 1, told without a model. Knows nothing of who answered.

Whatever a model wrote, grading takes bounded time: numbers and words are read in proportion to the text, patterns in a process that ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from ..common.child_process import standalone
from ..common.errors import CatalogError
from ..common.limited_child import ChildError, LimitedChild

_NUMBER = re.compile(r"(?<!\d)-?\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"\w+")
#: So long may the patterns of one question search in one answer. Useful ones take microseconds.
SEARCH_S, SEARCH_BYTES = 10.0, 512_000_000


def exact(text: str, references: Sequence[str]) -> float:
    """1 if the text is one of the references, but for white space around it."""
    return float(text.strip() in {reference.strip() for reference in references})


def contains(text: str, references: Sequence[str]) -> float:
    """1 if any reference stands in the text, in upper or lower case."""
    return float(any(reference.strip().casefold() in text.casefold() for reference in references))


def numeric(text: str, references: Sequence[str]) -> float:
    """1 if the last number of the text is the last number of a reference; commas between digits do not count."""
    found = last_number(text)
    return float(found is not None and found in {last_number(reference) for reference in references})


def regex(text: str, references: Sequence[str]) -> float:
    """1 if any reference, as a pattern, is found in the text. Raises CatalogError for patterns that take longer than SEARCH_S."""
    child = LimitedChild(standalone("pattern_search"), SEARCH_BYTES)
    try:
        return float(child.ask({"patterns": list(references), "text": text}, SEARCH_S)["found"])
    except ChildError as error:
        raise CatalogError(
            f"searching for the pattern {' or '.join(references)!r:.80} in an answer of {len(text)} characters {error}; "
            "write it without a repetition inside of a repetition, such as (a+)+"
        ) from None
    finally:
        child.kill()


def rouge_l(text: str, references: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, lower-cased; of several references the best (Lin 2004, ROUGE-L)."""
    return max(_f1(_words(text), _words(reference)) for reference in references)


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    grader.__name__: grader for grader in (exact, contains, numeric, regex, rouge_l)
}


def last_number(text: str) -> Decimal | None:
    """The number that a text ends with, in the sense that none comes after it."""
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _f1(one: Sequence[str], other: Sequence[str]) -> float:
    common = _common_length(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Of the longest common subsequence, in parallel for all words of the other by the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(other)) - 1
    row = whole  # a 0 where the length grows by one
    for word in one:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & whole
    return len(other) - row.bit_count()
