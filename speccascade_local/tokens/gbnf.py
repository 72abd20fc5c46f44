"""Rewrites llama.cpp's grammar notation, GBNF, for llguidance.

llguidance's own converter has two faults. Literals take the longest match, so ``("a" | "ab") "bc"`` does not allow "abc". An alternative
may begin that can never end. Here a token is allowed exactly if the text stays the beginning of a sentence, as in llama.cpp, whose own
engine ends the process at a token too many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NoReturn

from ..common.errors import SettingError
from .lark import Characters, Choice, Concatenation, Node, Reference, Repetition, to_lark


def from_gbnf(text: str) -> str:
    """Return a grammar in GBNF in llguidance's form. Raises SettingError, which names the place that cannot be read.

    Left recursion is allowed; alternatives that can never end are dropped.
    """
    if not isinstance(text, str) or not text.strip():
        raise SettingError(f"grammar is {text!r:.40}; it must be a text in GBNF with a rule named root")
    return _rewrite(text)


@lru_cache(maxsize=4)
def _rewrite(text: str) -> str:
    """Return the grammar; cached, because the same settings are checked and used several times."""
    try:
        return to_lark(_Reader(text).rules())
    except RecursionError:
        raise SettingError("the grammar is not valid GBNF: it is nested too deeply; give its parts rules of their own") from None


_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANKS = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:\s|#[^\r\n]*)*")
_REPETITION = re.compile(r"[*+?]|\{\s*([0-9]{1,9})\s*(?:(,)\s*([0-9]{0,9})\s*)?\}")
_CHARACTER = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([trn\\\"\[\]]))|([^\\])", re.DOTALL)
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
_ANY = Characters(((0, 0x10FFFF),))


class _Reader:
    """A parser of GBNF that reads a text from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._references: dict[str, int] = {}  # rule -> where it is first referred to

    def rules(self) -> dict[str, Node]:
        """Return every rule by its name."""
        rules: dict[str, Node] = {}
        self._skip(_BLANK_LINES)
        while self._at < len(self._text):
            start = self._at
            name = self._name()
            if name in rules:
                self._fail(f"rule {name!r} is defined twice", start)
            self._skip(_BLANKS)
            self._expect("::=")
            self._skip(_BLANK_LINES)
            rules[name] = self._choice(_BLANKS)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self._fail("a rule, or the end of a line, was expected here")
            self._skip(_BLANK_LINES)
        if "root" not in rules:
            raise SettingError("the grammar is not valid GBNF: it has no rule named root; give its first rule that name")
        for name, place in self._references.items():
            if name not in rules:
                self._fail(f"there is no rule named {name!r:.40}", place)
        return rules

    def _choice(self, blanks: re.Pattern[str]) -> Node:
        parts = [self._sequence(blanks)]
        while self._peek() == "|":
            self._at += 1
            self._skip(_BLANK_LINES)
            parts.append(self._sequence(blanks))
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _sequence(self, blanks: re.Pattern[str]) -> Node:
        parts: list[Node] = []
        while (part := self._part()) is not None:
            self._skip(blanks)
            while repetition := _REPETITION.match(self._text, self._at):
                part = self._repetition(part, repetition)
                self._skip(blanks)
            parts.append(part)
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _part(self) -> Node | None:
        start = self._at
        following = self._peek()
        if following == '"':
            return Concatenation(tuple(Characters(((code, code),)) for code in self._until('"')))
        if following == "[":
            return self._set()
        if following == "(":
            self._at += 1
            self._skip(_BLANK_LINES)
            group = self._choice(_BLANK_LINES)
            self._expect(")")
            return group
        if following == ".":
            self._at += 1
            return _ANY
        if _NAME.match(self._text, start):
            name = self._name()
            self._references.setdefault(name, start)
            return Reference(name)
        return None

    def _repetition(self, part: Node, repetition: re.Match[str]) -> Node:
        counts = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(repetition[0])
        if counts is None:
            least = int(repetition[1])
            most = least if not repetition[2] else int(repetition[3]) if repetition[3] else None
            if most is not None and most < least:
                self._fail(f"{repetition[0]} asks for at most {most} and at least {least}")
            counts = least, most
        self._at = repetition.end()
        return Repetition(part, *counts)

    def _set(self) -> Characters:
        start = self._at
        negated = self._text.startswith("[^", start)
        self._at += negated
        ranges: list[tuple[int, int]] = []
        characters = self._until("]")
        for first in characters:
            last = first
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = next(characters)
            if last < first:
                self._fail("a range of characters ends before it begins", start)
            ranges.append((first, last))
        if not ranges and not negated:
            self._fail("this set of characters is empty", start)
        return Characters(tuple(ranges), negated) if ranges else _ANY

    def _until(self, closing: str) -> Iterator[int]:
        """Yield the code points of the characters after this one, and read the closing one."""
        start = self._at
        self._at += 1
        while self._peek() != closing:
            character = _CHARACTER.match(self._text, self._at)
            if not character:
                if self._peek() == "\\":
                    self._fail("unknown escape")
                self._fail(f"{self._text[start]} is not closed", start)
            *codes, escaped, plain = character.groups()
            code = next((int(digits, 16) for digits in codes if digits), None)
            code = ord(_ESCAPES.get(escaped, escaped) if escaped else plain) if code is None else code
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                self._fail("this is not a character")
            self._at = character.end()
            yield code
        self._at += 1

    def _name(self) -> str:
        name = _NAME.match(self._text, self._at)
        if not name:
            self._fail("a rule's name was expected here")
        self._at = name.end()
        return name[0]

    def _expect(self, what: str) -> None:
        if not self._text.startswith(what, self._at):
            self._fail(f"{what} was expected here")
        self._at += len(what)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, blanks: re.Pattern[str]) -> None:
        match = blanks.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _fail(self, reason: str, place: int | None = None) -> NoReturn:
        place = self._at if place is None else place
        line = self._text.count("\n", 0, place) + 1
        raise SettingError(f"the grammar is not valid GBNF: {reason}, in line {line} at {self._text[place : place + 20]!r}")
