"""Numbers and files that come from users: the right kind, within their range, readable, or a clear error."""

from __future__ import annotations

import math
from numbers import Integral, Real
from pathlib import Path

from .errors import CatalogError, SettingError


def whole_number(name: str, value: object, low: int, high: int, other: str = "") -> int:
    """``value`` as an int in low..high. Raises SettingError, which tells what ``other`` is allowed besides."""
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


def text_of(path: Path) -> str:
    """What a file says. Raises CatalogError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from error
    except UnicodeDecodeError as error:
        raise CatalogError(
            f"{path}: not UTF-8 text: byte {error.object[error.start]:#04x} at position {error.start}; "
            "convert it first, for example with iconv"
        ) from error
