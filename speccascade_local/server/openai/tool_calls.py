"""Calls of functions in an answer's text, as most open models write them: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

Other ways of writing them stay text, as does what is malformed or names a function that was not offered: a client never gets a call that
the model did not make. What a model writes is untrusted: reading takes time in proportion to the text, however it is cut into pieces,
and nothing in it raises. Knows nothing of templates.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from typing import Any, NoReturn

from .messages import MAX_DEPTH, MAX_TOOLS

#: The longest call that is read. A longer one stays text, so a stream holds back no more than this.
MAX_CALL_CHARACTERS = 1_000_000
_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
#: Whether a block goes on, came to its closing tag, or cannot be a call.
_OPEN, _WHOLE, _BAD = range(3)
#: What stands in JSON between two brackets: words, numbers, signs, and strings without escapes.
_STEP = re.compile(r'[\w\s:,.+-]*(?:"[^"\\]*"[\w\s:,.+-]*){0,64}')
_STRING = re.compile(r'[^"\\]*')
_SPACE = re.compile(r"\s*")


class CallReader:
    """Reads an answer as it comes. offered: the names of the functions that may be called; with none all of it is text.

    count: how many calls were read; behind MAX_TOOLS of them all is text.
    """

    def __init__(self, offered: Collection[str]) -> None:
        self._offered = offered
        self._block: _Block | None = None
        self._held: list[str] = []  # the block so far, or the beginning of what may be an opening tag
        self._blank: list[str] = []  # white space, which is text only where other text is beside it
        self._in_text = False
        self.count = 0

    def feed(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """What is surely text, and the calls that are surely calls, of all that came and was not given yet."""
        if not self._offered:
            return text, []
        shown: list[str] = []
        calls: list[dict[str, Any]] = []
        if self._block is None:
            text, self._held = "".join([*self._held, text]), []
        begun = read = 0  # where in this text the block begins, if not in what is held; up to where the text is read
        while read < len(text):
            if self._block is None:
                begun = text.find(_BEGIN, read) if self.count < MAX_TOOLS else -1
                if begun < 0:
                    begun = len(text) - self._beginning(text, read)
                    self._show(text[read:begun], shown)
                    break
                self._show(text[read:begun], shown)
                self._block, read = _Block(), begun + len(_BEGIN)
                continue
            read = self._block.read(text, read)
            if self._block.state == _OPEN:
                break
            if self._held:
                before = sum(map(len, self._held))
                text, read, begun, self._held = "".join([*self._held, text]), before + read, 0, []
            call = self._call(self._block, text, begun)
            self._block = None
            if call is None:
                self._show(_BEGIN, shown)
                read = begun + len(_BEGIN)
            else:
                calls.append(call)
                begun = read
        if begun < len(text):
            self._held.append(text[begun:])
        return "".join(shown), calls

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """At the end: the rest of the text, and the calls that only lack their closing tag."""
        shown: list[str] = []
        calls: list[dict[str, Any]] = []
        while self._block is not None:
            block, text = self._block, "".join(self._held)
            self._block, self._held = None, []
            call = self._call(block, text, 0)
            if call is None:
                self._show(_BEGIN, shown)
                more, found = self.feed(text[len(_BEGIN) :])
                shown.append(more)
                calls += found
            else:
                calls.append(call)
        if self._held:
            self._show("".join(self._held), shown)
        if not self.count:
            shown += self._blank
        self._held, self._blank = [], []
        return "".join(shown), calls

    def _show(self, text: str, shown: list[str]) -> None:
        """Text, unless it is white space that so far stands alone beside calls."""
        if self._in_text or (text and not text.isspace()):
            shown += self._blank
            shown.append(text)
            self._blank, self._in_text = [], True
        elif text:
            self._blank.append(text)

    def _beginning(self, text: str, start: int) -> int:
        """How many characters at the end of a text may begin an opening tag."""
        if self.count >= MAX_TOOLS:
            return 0
        sizes = range(min(len(_BEGIN) - 1, len(text) - start), 0, -1)
        return next((size for size in sizes if text.endswith(_BEGIN[:size])), 0)

    def _call(self, block: _Block, text: str, begun: int) -> dict[str, Any] | None:
        """The call that a block is, as OpenAI writes it. begun: where its opening tag stands in the text."""
        if block.size is None or block.state == _BAD:
            return None
        start = begun + len(_BEGIN)
        function = _function(text[start : start + block.size], self._offered)
        if function is None:
            return None
        self._blank, self._in_text, self.count = [], False, self.count + 1
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class _Block:
    """Finds the end of what stands behind an opening tag, piece by piece. size: characters up to the end of its JSON, once that came.

    Outside of a string neither ``<`` nor a backslash may stand. So of two blocks that begin within each other one ends soon: of the quotes
    between any two places both see equally many, hence one of them is outside of a string where the next tag begins. No character is
    read more than a few times, although what is no call is read again from the next tag on.
    """

    __slots__ = ("_depth", "_in_string", "_is_escaped", "_read", "_tail", "size", "state")

    def __init__(self) -> None:
        self.state = _OPEN
        self.size: int | None = None
        self._depth = self._read = 0
        self._in_string = self._is_escaped = False
        self._tail = ""

    def read(self, text: str, start: int) -> int:
        """Read on from there; up to where was read, which is the end of the text or of the block."""
        at = start
        while at < len(text) and self.state == _OPEN and self.size is None:
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            found = (_STRING if self._in_string else _STEP if self._depth else _SPACE).match(text, at)
            assert found is not None
            at = found.end()
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
        """What ends a run of other characters."""
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
        """Read the closing tag, which only white space may stand before."""
        if not self._tail:
            found = _SPACE.match(text, at)
            assert found is not None
            at = found.end()
        more = text[at : at + len(CALL_END) - len(self._tail)]
        self._tail += more
        if not CALL_END.startswith(self._tail):
            self.state = _BAD
        elif self._tail == CALL_END:
            self.state = _WHOLE
        return at + len(more)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)  # not strict: models write code with its line ends into strings


def _function(text: str, offered: Collection[str]) -> dict[str, str] | None:
    """Name and arguments, which are JSON again; None where the text is no JSON of a call."""
    try:
        found = _DECODER.decode(text)
        name, arguments = found.get("name"), found.get("arguments")
        if not (isinstance(name, str) and name in offered and isinstance(arguments, (dict, type(None)))):
            return None
        written = json.dumps(arguments or {}, ensure_ascii=False, allow_nan=False)
        written.encode()  # a lone surrogate cannot be sent
    except ValueError:  # also a number beyond every float, or of thousands of digits
        return None
    return {"name": name, "arguments": written}


def calls_in(text: str, offered: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """A whole answer: its text, and its calls."""
    reader = CallReader(offered)
    shown, calls = reader.feed(text)
    rest, last = reader.finish()
    return shown + rest, calls + last
