"""A chat template and its variables to text, whatever the template does: in a process of its own, with limits of time and memory.

A sandbox keeps a downloaded template from reaching anything, but not from working for ever. One process (programs/chat_template.py) serves all templates
of this one. It starts when first needed, and again after one that had to be killed. Knows nothing of messages.
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

#: What a template may take. Published ones take milliseconds and a few megabytes.
SECONDS, MEMORY_BYTES, CHARACTERS = 10.0, 512_000_000, 10_000_000
_INSTEAD = "use a raw prompt (--raw)"
#: Characters of what a template says about itself that an error repeats.
_MOST_SAID = 300


class TemplateProcess:
    """The process, and whose turn it is to ask it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: LimitedChild | None = None

    def check(self, source: str) -> None:
        """Raises PromptError for a template that does not compile."""
        self._ask(source, None)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """What the template makes of variables, which are plain JSON. Raises PromptError where it refuses them, or exceeds a limit."""
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
                    self._child = LimitedChild([*standalone("chat_template"), str(SECONDS), str(CHARACTERS)], MEMORY_BYTES)
                reply: dict[str, str] = self._child.ask({"source": source, "variables": variables}, SECONDS)
        except ChildError as error:
            raise PromptError(f"the chat template in the model file {error}; {_INSTEAD}") from error
        if "broken" in reply:
            raise PromptError(f"the chat template in the model file does not compile: {printable(reply['broken'], _MOST_SAID)}; {_INSTEAD}")
        if "refused" in reply:
            said = printable(reply["refused"], _MOST_SAID)
            raise PromptError(f"the model's chat template refuses these messages: {said}; check the roles and their order, or {_INSTEAD}")
        return reply["text"]


#: The one of this process. A fork must not share it: two would read each other's answers.
renderer = TemplateProcess()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renderer.__init__)  # type: ignore[misc]
