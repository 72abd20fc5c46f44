"""The bundled pair in a child process, and children that fail in every way."""

from __future__ import annotations

import json
import sys

import pytest

from speccascade_local.machine.trial import try_bundled_pair


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.slow
def test_the_bundled_pair_answers(demo):
    found = try_bundled_pair()
    assert (found.works, found.reason, found.crash) == (True, "", "")
    demo.reset()
    whole = demo.chat([{"role": "user", "content": "Who is Ada Lovelace?"}], rule="strict", temperature=0).text
    assert whole.startswith(found.answer)
    assert "Lovelace" in found.answer


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGABRT", "SIGKILL"])
def test_a_crash_is_reported_with_its_signal(name):
    found = try_bundled_pair(
        child(f"import os, sys, signal; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.{name})")
    )
    assert not found.works
    assert found.crash == name
    assert found.reason == f"the process was ended by {name}: last words"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "the process ended with exit code 3: without a message"),
        ("raise RuntimeError('no such library')", "the process ended with exit code 1: RuntimeError: no such library"),
        ("print('hello')", "the process ended with exit code 0: without a message"),
        ("print('[]')", "the process ended with exit code 0: without a message"),
        (f"print({json.dumps({'answer': '', 'error': 'out of memory'})!r})", "out of memory"),
        (f"print({json.dumps({'answer': '%%%', 'error': ''})!r})", "says '%%%', which is not the answer that it was trained on"),
    ],
)
def test_other_failures_are_reported_with_their_last_line(code, reason):
    found = try_bundled_pair(child(code))
    assert (found.works, found.crash) == (False, "")
    assert found.reason.endswith(reason)


def test_a_child_that_hangs_is_ended():
    found = try_bundled_pair(child("import time; time.sleep(60)"), timeout_s=0.3)
    assert (found.works, found.reason) == (False, "no answer within 0.3 s")
