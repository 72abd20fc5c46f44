"""Renders chat templates in a child process, with limits of time and memory.

A sandbox keeps a downloaded template from reaching anything, but not from running forever. One child (programs/chat_template.py) serves all
templates of this process. It starts on first use, and again after one that had to be killed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from ..common.child_process import standalone
from ..common.errors import PromptError
from ..common.limited_child import ChildError, LimitedChild
from ..common.validation import printable

#: The limits of a template. Published ones take milliseconds and a few megabytes.
SECONDS, MEMORY_BYTES, CHARACTERS = 10.0, 512_000_000, 10_000_000
_INSTEAD = "use a raw prompt (--raw)"
#: The longest message of a template that an error repeats, in characters.
_MAX_MESSAGE = 300


class TemplateProcess:
    """A child process that renders templates for one thread at a time."""

    def __init__(self) -> None:
        self._child: LimitedChild | None = None
        self._lock = threading.Lock()
        self._resets_in_forks = False

    def check(self, source: str) -> None:
        """Raise PromptError for a template that does not compile."""
        self._ask(source, None)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """Return the rendered text. variables: plain JSON. Raises PromptError if the template refuses them or exceeds a limit."""
        return self._ask(source, variables)

    def close(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            if self._child is not None:
                self._child.kill()

    def _ask(self, source: str, variables: Mapping[str, Any] | None) -> str:
        try:
            with self._lock:
                if self._child is None or not self._child.alive:
                    self._start()
                assert self._child
                reply: dict[str, str] = self._child.ask({"source": source, "variables": variables}, SECONDS)
        except ChildError as error:
            raise PromptError(f"the chat template in the model file {error}; {_INSTEAD}") from error
        if "broken" in reply:
            raise PromptError(
                f"the chat template in the model file does not compile: {printable(reply['broken'], _MAX_MESSAGE)}; {_INSTEAD}"
            )
        if "refused" in reply:
            reason = printable(reply["refused"], _MAX_MESSAGE)
            raise PromptError(f"the model's chat template refuses these messages: {reason}; check the roles and their order, or {_INSTEAD}")
        return reply["text"]

    def _start(self) -> None:
        if hasattr(os, "register_at_fork") and not self._resets_in_forks:
            os.register_at_fork(after_in_child=self._reset)
            self._resets_in_forks = True
        self._child = LimitedChild([*standalone("chat_template"), str(SECONDS), str(CHARACTERS)], MEMORY_BYTES)

    def _reset(self) -> None:
        """Forget the child in a fork, where both processes would read each other's answers."""
        self._child, self._lock = None, threading.Lock()


#: The one of this process.
renderer = TemplateProcess()
