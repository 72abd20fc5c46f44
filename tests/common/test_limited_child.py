"""A child process that does endless, large or deadly work, by programs that do just that."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil
import pytest

from speccascade_local.common import limited_child
from speccascade_local.common.errors import UnwantedError
from speccascade_local.common.limited_child import ChildError, LimitedChild

#: Does what each line asks for, in Python, and answers with its value.
PROGRAM = """
import json, sys, time
for line in sys.stdin:
    print(json.dumps({"value": eval(json.loads(line)["code"])}), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    child = LimitedChild([sys.executable, str(program)], 300_000_000)
    yield child
    child.kill()


def test_it_answers_one_request_after_the_other(child: LimitedChild) -> None:
    assert [child.ask({"code": f"{n} * 7"}, 60)["value"] for n in range(3)] == [0, 7, 14]
    assert child.alive
    assert 1_000_000 < child.resident_bytes < 300_000_000


@pytest.mark.parametrize(
    ("code", "seconds", "said"),
    [
        ("time.sleep(3600)", 0.2, r"does not finish within 0.2 seconds"),
        ("len('a' * 1_000_000_000) and time.sleep(3600)", 60, r"needs more than 300 MB of memory"),
        ("__import__('os')._exit(7)", 60, r"brought down its process \(exit code 7\)"),
        ("__import__('os').kill(__import__('os').getpid(), 11)", 60, r"brought down its process \(signal 11\)"),
    ],
)
def test_what_exceeds_a_limit_or_dies_is_an_error_and_the_process_is_gone(
    child: LimitedChild, code: str, seconds: float, said: str
) -> None:
    pid = child.process.pid
    with pytest.raises(ChildError, match=said):
        child.ask({"code": code}, seconds)
    assert not child.alive
    assert not psutil.pid_exists(pid)


def test_who_gives_up_waits_no_longer_and_the_work_ends(child: LimitedChild) -> None:
    gone = threading.Event()
    threading.Timer(0.1, gone.set).start()
    with pytest.raises(UnwantedError):
        child.ask({"code": "time.sleep(3600)"}, 3600, gone.is_set)
    assert not child.alive


@pytest.mark.slow
def test_an_interruption_at_any_line_leaves_no_answer_for_the_next_request_and_no_process(child: LimitedChild) -> None:
    """Interrupt each line of asking and ending once. A child that still runs owes an answer: it is not asked again, and ends if dropped."""
    command, hit = child.process.args, set[tuple[str, int]]()

    def interrupt_somewhere(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        if frame.f_code.co_filename != limited_child.__file__:
            return None
        place = frame.f_code.co_name, frame.f_lineno
        if event == "line" and place not in hit:
            hit.add(place)
            sys.settrace(None)
            raise KeyboardInterrupt
        return interrupt_somewhere

    interrupted, pids = True, []
    while interrupted:
        other = LimitedChild(command, 300_000_000)
        pids.append(other.process.pid)
        sys.settrace(interrupt_somewhere)
        try:
            other.ask({"code": "1"}, 60)
            with pytest.raises(ChildError):
                other.ask({"code": "time.sleep(3600)"}, 0.05)
            interrupted = False
        except KeyboardInterrupt:
            assert not other.alive or other.ask({"code": "2"}, 60) == {"value": 2}
        finally:
            sys.settrace(None)
        del other
    assert len(hit) > 15
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_program_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(ChildError, match="cannot be started"):
        LimitedChild(["/nowhere/program"], 1)


def test_one_that_is_dropped_ends(child: LimitedChild) -> None:
    other = LimitedChild(child.process.args, 300_000_000)
    pid = other.process.pid
    assert other.ask({"code": "1"}, 60) == {"value": 1}
    del other
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_neither_uses_nor_ends_it(child: LimitedChild) -> None:
    assert child.ask({"code": "1"}, 60) == {"value": 1}
    pid = os.fork()
    if pid == 0:
        alive = child.alive
        child.kill()
        os._exit(int(alive))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert child.ask({"code": "2"}, 60) == {"value": 2}
