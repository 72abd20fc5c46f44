"""Exceptions at chosen places of the package, as Ctrl-C or a signal handler raises them: at every line, or at every bytecode."""

from __future__ import annotations

import ast
import dis
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import speccascade_local

PACKAGE = Path(speccascade_local.__file__).parent
#: The interpreter checks for signals only after a call, at a backward jump and when a function begins.
_LOOKS = ("CALL", "JUMP_BACKWARD", "RESUME")


class Point(NamedTuple):
    """The ``nth`` pass of a place. ``offset`` is that of the bytecode, -1 for a whole line."""

    file: str
    line: int
    offset: int
    nth: int


class Tracer:
    """Counts the places that a thread passes in some modules, and raises KeyboardInterrupt at one of them.

    Places are lines, or ``by_bytecode`` those where the interpreter checks for signals.
    """

    def __init__(self, modules: tuple[str, ...], at: Point | None = None, *, by_bytecode: bool = False) -> None:
        self._files = {str(PACKAGE / f"{name}.py") for name in modules}
        self._at, self._by_bytecode = at, by_bytecode
        self.passes: Counter[tuple[str, int, int]] = Counter()

    def __call__(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = self._by_bytecode, not self._by_bytecode
        before = -1

        def follow(frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
            nonlocal before
            if event == "opcode":
                if (before, frame.f_lasti) in signal_checks(frame.f_code):
                    self._reach(frame.f_code.co_filename, frame.f_lineno, frame.f_lasti)
                before = frame.f_lasti
            elif event == "line":
                line, last, before = frame.f_lineno, before, frame.f_lineno
                if last not in deaf_lines(frame.f_code.co_filename).get(line, ()):
                    self._reach(frame.f_code.co_filename, line, -1)
            return follow

        return follow

    def _reach(self, file: str, line: int, offset: int) -> None:
        self.passes[file, line, offset] += 1
        if self._at == (file, line, offset, self.passes[file, line, offset]):
            raise KeyboardInterrupt

    def points(self) -> list[Point]:
        """Return the first and the last pass of each place."""
        return [Point(*place, nth) for place, count in self.passes.items() for nth in sorted({1, count})]

    @contextmanager
    def tracing(self) -> Iterator[Tracer]:
        """Trace this thread inside the block."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield self
        finally:
            sys.settrace(before)


@cache
def signal_checks(code: Any) -> set[tuple[int, int]]:
    """Return pairs of bytecodes, by offset, between which the interpreter checks for signals.

    An exception there belongs to the first of them, so both must be covered by the same handler.
    """
    bytecode = dis.Bytecode(code)
    entries = bytecode.exception_entries  # type: ignore[attr-defined]  # since Python 3.11

    def handler(offset: int) -> int | None:
        return next((each.target for each in entries if each.start <= offset < each.end), None)

    places = [(each.offset, each.opname) for each in bytecode]
    looking = [offset for offset, name in places if name.startswith(_LOOKS)]
    return {(before, after) for before in looking for after, _ in places if handler(before) == handler(after)}


@cache
def deaf_lines(file: str) -> dict[int, range]:
    """Return lines at which no signal arrives if the previous line was in a range: locks are acquired and released unchecked.

    These are with statements, which come again after their bodies, and a ``try:`` that begins such a body.
    """
    blocks = [node for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))) if isinstance(node, ast.With)]
    left = {node.lineno: range(node.body[0].lineno, (node.end_lineno or 0) + 1) for node in blocks}
    return left | {node.body[0].lineno: range(node.lineno, node.lineno + 1) for node in blocks if isinstance(node.body[0], ast.Try)}
