"""Checks numbers from users, and makes values and texts safe and short to print."""

from __future__ import annotations

import math
import re
import reprlib
from numbers import Integral, Real

from .errors import SettingError

#: Control characters of ASCII but newline and tab, those of Unicode, marks that change the direction of writing, and lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def whole_number(name: str, value: object, low: int, high: int, other: str = "") -> int:
    """Return ``value`` as an int in low..high. Raises SettingError; ``other`` ends its message, such as " or 'auto'"."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise SettingError(f"{name} is {value!r:.40}; it must be a whole number from {low} to {high}{other}")
    return int(value)


def finite_number(name: str, value: object, low: float, high: float, allowed: str) -> float:
    """Return ``value`` as a finite float in low..high. Raises SettingError, whose message describes the range as ``allowed``."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise SettingError(f"{name} is {value!r:.40}; it must be {allowed}")
    return number


def short_repr(value: object, most: int = 100) -> str:
    """Return a short text of a value of any size, for errors."""
    try:
        return f"{_SHORT.repr(value):.{most}}"
    except Exception:  # a number with more digits than Python prints
        return f"a {type(value).__name__}"


def printable(text: str, limit: int | None = None) -> str:
    """Return the text with its control characters as four-digit escapes, so that no terminal obeys them. Newline and tab stay.

    Of a text of more than ``limit`` characters the middle is left out.
    """
    return _shorten(_CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", _shorten(text, limit)), limit)


def _shorten(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[-half:]}"
