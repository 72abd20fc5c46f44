"""Function calls in a reply's text, as most open models write them: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

Other forms stay text, and so do malformed calls and calls of functions that were not offered: a client never gets a call that the model did
not make. The text is untrusted: reading takes time proportional to its length, however it is cut into pieces, and never raises.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from typing import Any, NoReturn

from .messages import MAX_DEPTH, MAX_TOOLS

#: Maximum length of a call. A longer one stays text, so that a stream holds back no more than this.
MAX_CALL_CHARACTERS = 1_000_000
_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
#: States of a block: incomplete, closed, or not a call.
_OPEN, _WHOLE, _BAD = range(3)
#: JSON between two brackets: words, numbers, signs, and strings without escapes.
_STEP = re.compile(r'[\w\s:,.+-]*(?:"[^"\\]*"[\w\s:,.+-]*){0,64}')
_STRING = re.compile(r'[^"\\]*')
_SPACE = re.compile(r"\s*")


class CallReader:
    """Reads a reply piece by piece.

    ``offered`` names the functions that may be called; without any, everything is text. ``count`` is the number of calls so far; after
    MAX_TOOLS of them everything is text.
    """

    def __init__(self, offered: Collection[str]) -> None:
        self._offered = offered
        self._block: _Block | None = None
        self._held: list[str] = []  # the block so far, or the beginning of a possible opening tag
        self._blank: list[str] = []  # white space, which is text only beside other text
        self._in_text = False
        self.count = 0

    def feed(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Read a piece. Return the text and the calls that are certain by now."""
        if not self._offered:
            return text, []
        output: list[str] = []
        calls: list[dict[str, Any]] = []
        if self._block is None:
            text, self._held = "".join([*self._held, text]), []
        begin = read = 0  # where the block begins in this text unless in the held part; up to where the text is read
        while read < len(text):
            if self._block is None:
                begin = text.find(_BEGIN, read) if self.count < MAX_TOOLS else -1
                if begin < 0:
                    begin = len(text) - self._beginning(text, read)
                    self._emit(text[read:begin], output)
                    break
                self._emit(text[read:begin], output)
                self._block, read = _Block(), begin + len(_BEGIN)
                continue
            read = self._block.read(text, read)
            if self._block.state == _OPEN:
                break
            if self._held:
                before = sum(map(len, self._held))
                text, read, begin, self._held = "".join([*self._held, text]), before + read, 0, []
            call = self._call(self._block, text, begin)
            self._block = None
            if call is None:
                self._emit(_BEGIN, output)
                read = begin + len(_BEGIN)
            else:
                calls.append(call)
                begin = read
        if begin < len(text):
            self._held.append(text[begin:])
        return "".join(output), calls

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the rest of the text, and the calls that only lack their closing tag."""
        output: list[str] = []
        calls: list[dict[str, Any]] = []
        while self._block is not None:
            block, text = self._block, "".join(self._held)
            self._block, self._held = None, []
            call = self._call(block, text, 0)
            if call is None:
                self._emit(_BEGIN, output)
                more, later = self.feed(text[len(_BEGIN) :])
                output.append(more)
                calls += later
            else:
                calls.append(call)
        if self._held:
            self._emit("".join(self._held), output)
        if not self.count:
            output += self._blank
        self._held, self._blank = [], []
        return "".join(output), calls

    def _emit(self, text: str, output: list[str]) -> None:
        """Append text, unless it is white space that so far is alone beside calls."""
        if self._in_text or (text and not text.isspace()):
            output += self._blank
            output.append(text)
            self._blank, self._in_text = [], True
        elif text:
            self._blank.append(text)

    def _beginning(self, text: str, start: int) -> int:
        """Return the number of characters at the end of a text that may begin an opening tag."""
        if self.count >= MAX_TOOLS:
            return 0
        sizes = range(min(len(_BEGIN) - 1, len(text) - start), 0, -1)
        return next((size for size in sizes if text.endswith(_BEGIN[:size])), 0)

    def _call(self, block: _Block, text: str, begin: int) -> dict[str, Any] | None:
        """Return a block as OpenAI's call, or None if it is none. Its opening tag is at ``begin`` in the text."""
        if block.size is None or block.state == _BAD:
            return None
        start = begin + len(_BEGIN)
        function = _function(text[start : start + block.size], self._offered)
        if function is None:
            return None
        self._blank, self._in_text, self.count = [], False, self.count + 1
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class _Block:
    """Finds the end of a call after its opening tag, piece by piece. ``size`` is the length of its JSON, once that is complete.

    Outside of strings neither ``<`` nor a backslash is valid. The text of an invalid call is read again from the next tag on, so two blocks
    may overlap. From there on both see the same quotes: one of them is outside of a string at the tag after that, and ends there. So no
    character is read more than a few times.
    """

    __slots__ = ("_depth", "_in_string", "_is_escaped", "_read", "_tail", "size", "state")

    def __init__(self) -> None:
        self.state = _OPEN
        self.size: int | None = None
        self._depth = self._read = 0
        self._in_string = self._is_escaped = False
        self._tail = ""

    def read(self, text: str, start: int) -> int:
        """Read from ``start``. Return where reading stopped: the end of the text or of the block."""
        at = start
        while at < len(text) and self.state == _OPEN and self.size is None:
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            match = (_STRING if self._in_string else _STEP if self._depth else _SPACE).match(text, at)
            assert match is not None
            at = match.end()
            if at < len(text):
                self._take(text[at])
                at += 1
                if self.size is not None:
                    self.size = self._read + at - start
        self._read += at - start
        if (self._read if self.size is None else self.size) > MAX_CALL_CHARACTERS:
            self.state = _BAD
        return at if self.size is None or self.state == _BAD else self._close(text, at)

    def _take(self, char: str) -> None:
        """Read a character that ends a run of others."""
        if self._in_string:
            self._in_string = self._is_escaped = char != '"'
        elif char == "{" or (char == "[" and self._depth):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                self.state = _BAD
        elif not self._depth:
            self.state = _BAD
        elif char in "]}":
            self._depth -= 1
            if not self._depth:
                self.size = 0
        elif char == '"':
            self._in_string = True
        else:
            self.state = _BAD

    def _close(self, text: str, at: int) -> int:
        """Read the closing tag, after optional white space."""
        if not self._tail:
            match = _SPACE.match(text, at)
            assert match is not None
            at = match.end()
        more = text[at : at + len(CALL_END) - len(self._tail)]
        self._tail += more
        if not CALL_END.startswith(self._tail):
            self.state = _BAD
        elif self._tail == CALL_END:
            self.state = _WHOLE
        return at + len(more)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)  # models write code with line ends into strings


def _function(text: str, offered: Collection[str]) -> dict[str, str] | None:
    """Return the name and the arguments as JSON text, or None if the text is not a call."""
    try:
        call = _DECODER.decode(text)
        name, arguments = call.get("name"), call.get("arguments")
        if not (isinstance(name, str) and name in offered and isinstance(arguments, (dict, type(None)))):
            return None
        dump = json.dumps(arguments or {}, ensure_ascii=False, allow_nan=False)
        dump.encode()  # a lone surrogate cannot be sent
    except ValueError:  # also an infinite number, or one of thousands of digits
        return None
    return {"name": name, "arguments": dump}


def calls_in(text: str, offered: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """Return the text and the calls of a whole reply."""
    reader = CallReader(offered)
    output, calls = reader.feed(text)
    rest, last = reader.finish()
    return output + rest, calls + last
