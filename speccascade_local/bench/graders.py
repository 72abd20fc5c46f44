"""Grade an answer from 0 to 1 without a model.

Grading takes bounded time whatever a model wrote: time for numbers and words is proportional to the text, and patterns are searched in a
process with limits.
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
#: Limits on the search for the patterns of one question in one answer. Useful patterns take microseconds.
SEARCH_S, SEARCH_BYTES = 10.0, 512_000_000


def exact(text: str, references: Sequence[str]) -> float:
    """Return 1 if the text is one of the references, without white space around it."""
    return float(text.strip() in {reference.strip() for reference in references})


def contains(text: str, references: Sequence[str]) -> float:
    """Return 1 if the text contains a reference, in upper or lower case."""
    return float(any(reference.strip().casefold() in text.casefold() for reference in references))


def numeric(text: str, references: Sequence[str]) -> float:
    """Return 1 if the last number of the text is the last number of a reference; commas between digits do not count."""
    number = last_number(text)
    return float(number is not None and number in {last_number(reference) for reference in references})


def regex(text: str, references: Sequence[str]) -> float:
    """Return 1 if the text matches a reference as a pattern. Raises CatalogError if the search takes longer than SEARCH_S."""
    child = LimitedChild(standalone("pattern_search"), SEARCH_BYTES)
    try:
        return float(child.ask({"patterns": list(references), "text": text}, SEARCH_S)["found"])
    except ChildError as error:
        raise CatalogError(
            f"searching for the pattern {' or '.join(references)!r:.80} in an answer of {len(text)} characters {error}; "
            "write it without a repetition inside a repetition, such as (a+)+"
        ) from None
    finally:
        child.kill()


def rouge_l(text: str, references: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence of lower-case words, for the best reference (Lin 2004, ROUGE-L)."""
    return max(_f1(_words(text), _words(reference)) for reference in references)


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    grader.__name__: grader for grader in (exact, contains, numeric, regex, rouge_l)
}


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text."""
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _f1(one: Sequence[str], other: Sequence[str]) -> float:
    common = _common_length(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, bit-parallel over the words of the other (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(other)) - 1
    row = whole  # a 0 where the length grows by one
    for word in one:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & whole
    return len(other) - row.bit_count()
