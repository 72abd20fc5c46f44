"""Numbers, files and texts that come from users and strangers: the right kind, within their range, readable, or a clear error."""

from __future__ import annotations

import math
import re
import reprlib
from numbers import Integral, Real

from .errors import SettingError

#: ASCII's control characters but newline and tab, Unicode's others, those that turn the direction of writing, and halves of characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def whole_number(name: str, value: object, low: int, high: int, other: str = "") -> int:
    """``value`` as an int in low..high. Raises SettingError; ``other`` ends its message, such as " or 'auto'"."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise SettingError(f"{name} is {value!r:.40}; it must be a whole number from {low} to {high}{other}")
    return int(value)


def finite_number(name: str, value: object, low: float, high: float, allowed: str) -> float:
    """``value`` as a finite float in low..high, which ``allowed`` says in words. Raises SettingError."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise SettingError(f"{name} is {value!r:.40}; it must be {allowed}")
    return number


def short_repr(value: object, most: int = 100) -> str:
    """A value as an error shows it: short, however large the value is."""
    try:
        return f"{_SHORT.repr(value):.{most}}"
    except Exception:  # numbers of more digits than Python writes
        return f"a {type(value).__name__}"


def printable(text: str, limit: int | None = None) -> str:
    """The text with its control characters as escapes of four digits, so that no terminal obeys them. Newline and tab stay.

    limit: most of its characters that are shown; of a longer one the middle is left out.
    """
    return _shorten(_CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", _shorten(text, limit)), limit)


def _shorten(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[-half:]}"
