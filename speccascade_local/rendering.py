"""A chat template and its variables to text, whatever the template does: in a process of its own, with limits of time and memory.

A sandbox keeps a downloaded template from reaching anything, but not from working for ever: loops in loops, macros that call themselves
twice, one multiplication that fills the memory. No count of steps bounds all of that; a process that can be ended does, on every
system and from any thread. One such process (sandbox.py) serves all templates of this one. It is started when first needed, again after
one that had to be ended, and ends by itself when nobody can ask any more. Knows nothing of messages.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil

from .checks import printable
from .errors import PromptError
from .programs import command, is_frozen

#: What a template may take. Published ones take milliseconds and a few megabytes.
SECONDS, MEMORY_BYTES, CHARACTERS = 10.0, 512_000_000, 10_000_000
_BETWEEN_LOOKS_S = 0.02
_PROGRAM = Path(__file__).with_name("sandbox.py")
#: It finds the modules that this process finds, and none that lies in the folder it happens to be started in.
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); del sys.argv[:2]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
#: Characters of what a template says in an error.
_MOST_SAID = 300
_INSTEAD = "use a raw prompt (--raw)"


class Renderer:
    """The process, and whose turn it is to ask it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def check(self, source: str) -> None:
        """Raises PromptError for a template that does not compile."""
        self._ask(source, None)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """What the template makes of variables, which are plain JSON. Raises PromptError where it refuses them, or exceeds a limit."""
        return self._ask(source, variables)

    def close(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            self._end()

    def _ask(self, source: str, variables: Mapping[str, Any] | None) -> str:
        request = json.dumps({"source": source, "variables": variables})
        with self._lock:
            try:
                reply = self._exchanged(request)
            except BaseException:  # Ctrl-C too: what it would answer later belongs to no question
                self._end()
                raise
        if "broken" in reply:
            raise PromptError(f"the chat template in the model file does not compile: {printable(reply['broken'], _MOST_SAID)}; {_INSTEAD}")
        if "refused" in reply:
            said = printable(reply["refused"], _MOST_SAID)
            raise PromptError(f"the model's chat template refuses these messages: {said}; check the roles and their order, or {_INSTEAD}")
        return reply["text"]

    def _exchanged(self, request: str) -> dict[str, str]:
        child = self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        begun = time.monotonic()
        with _memory_watched(child) as exceeded, contextlib.suppress(BrokenPipeError):
            child.stdin.write(request + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
            if answer.endswith("\n"):
                return cast("dict[str, str]", json.loads(answer))
        code = child.wait()
        if exceeded:
            reason = f"needs more than {MEMORY_BYTES // 1_000_000} MB of memory"
        elif time.monotonic() - begun >= SECONDS:
            reason = f"does not come to an end within {SECONDS:g} seconds"
        else:
            reason = f"brought down the process that renders it (exit code {code})"
        raise PromptError(f"the chat template in the model file {reason}, which no honest template does; {_INSTEAD}")

    def _running(self) -> subprocess.Popen[str]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end()
        own_group: dict[str, Any] = {"start_new_session": True}  # Ctrl-C in the terminal is not meant for it
        if sys.platform == "win32":
            own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        try:
            self._child = subprocess.Popen(
                [*_start(), str(SECONDS), str(CHARACTERS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                **own_group,
            )
        except OSError as error:
            raise PromptError(
                f"the chat template is rendered in a process of its own, and {sys.executable or 'Python'} cannot be started: {error}; "
                f"{_INSTEAD}"
            ) from error
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            with self._child:  # closes its pipes and waits
                self._child = None


def _start() -> list[str]:
    if is_frozen():
        return command("sandbox")
    return [sys.executable, "-I", "-c", _START, json.dumps([os.path.abspath(entry) for entry in sys.path]), str(_PROGRAM)]


@contextmanager
def _memory_watched(child: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Within the block the process is killed when it takes too much; what is yielded then holds how many bytes that were."""
    done, exceeded = threading.Event(), list[int]()

    def watch() -> None:
        with contextlib.suppress(psutil.Error):  # it has ended by itself
            process = psutil.Process(child.pid)
            while not done.wait(_BETWEEN_LOOKS_S):
                taken = process.memory_info().rss
                if taken > MEMORY_BYTES:
                    exceeded.append(taken)
                    child.kill()
                    return

    watcher = threading.Thread(target=watch, name="template memory", daemon=True)
    watcher.start()
    try:
        yield exceeded
    finally:
        done.set()
        watcher.join()


#: The one of this process. A fork must not share it: two would read each other's answers.
renderer = Renderer()
atexit.register(renderer.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renderer.__init__)  # type: ignore[misc]
