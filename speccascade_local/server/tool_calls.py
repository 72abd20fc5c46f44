"""Calls of functions in an answer's text, as most open models write them: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

Other ways of writing them stay text, as does what is malformed or names a function that was not offered: a client never gets a call that
the model did not make. Knows nothing of templates.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from typing import Any

_BEGIN = "<tool_call>"
_CALLS = re.compile(r"(?:\s*<tool_call>\s*\{.*?\}\s*(?:</tool_call>|$))+\s*", re.DOTALL)
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)


class CallReader:
    """Reads an answer as it comes. offered: the names of the functions that may be called; with none all of it is text."""

    def __init__(self, offered: Collection[str]) -> None:
        self._offered, self._held = offered, ""

    def feed(self, text: str) -> str:
        """What of the text so far is surely no call, and was not given yet."""
        if not self._offered:
            return text
        self._held += text
        at = self._held.find(_BEGIN)
        if at < 0:
            sizes = range(min(len(_BEGIN), len(self._held)), 0, -1)
            at = len(self._held) - next((size for size in sizes if _BEGIN.startswith(self._held[-size:])), 0)
        shown, self._held = self._held[:at], self._held[at:]
        return shown

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """At the end: the rest of the text, or the calls that it was, as OpenAI writes them."""
        rest, self._held = self._held, ""
        calls = [self._call(found) for found in _CALL.findall(rest)] if _CALLS.fullmatch(rest) else []
        whole = [call for call in calls if call is not None]
        return ("", whole) if whole and len(whole) == len(calls) else (rest, [])

    def _call(self, text: str) -> dict[str, Any] | None:
        try:
            found = json.loads(text)
        except ValueError:
            return None
        name, arguments = found.get("name"), found.get("arguments", {})
        if name not in self._offered or not isinstance(arguments, dict):
            return None
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def calls_in(text: str, offered: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """A whole answer: its text, and its calls."""
    reader = CallReader(offered)
    shown = reader.feed(text)
    rest, calls = reader.finish()
    return shown + rest, calls
