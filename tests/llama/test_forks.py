"""What a process that was forked from one with loaded models may do, each in a process of its own: threads and forks do not mix."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest

import speccascade_local as sc

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

#: Two threads: a fork with one would work by luck.
BEGIN = """
import multiprocessing, os, signal, sys, threading
import speccascade_local as sc

QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]

def ask(runtime):
    return runtime.chat(QUESTION, max_tokens=8, block_size=3, rule="strict").text

def forked(act):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            print("child:", act(), flush=True)
        except sc.SpeccascadeError as error:
            print("child:", type(error).__name__, error, flush=True)
        sys.exit(0)  # with all that is done at the end of a process
    print("status", os.waitpid(child, 0)[1])
"""


def output_of(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BEGIN + program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    "act", ["ask(runtime)", "runtime.reset()", "next(stream)", "sc.load(n_threads=2, profile=False)", "sc.Conversation(runtime).ask('Hi')"]
)
def test_a_fork_of_a_process_with_a_runtime_is_refused_instead_of_hanging_and_the_parent_goes_on(act):
    lines = output_of(f"""
with sc.load(n_threads=2, profile=False) as runtime:
    before = ask(runtime)
    stream = runtime.stream(runtime.chat_ids(QUESTION), block_size=3)
    forked(lambda: {act})
    print(ask(runtime) == before)
""")
    assert lines[0].startswith("child: SessionError this process (")
    assert "multiprocessing.get_context('spawn')" in lines[0]
    assert lines[1:] == ["status 0", "True"]


@pytest.mark.slow
def test_a_fork_while_another_thread_generates_is_refused_though_that_thread_held_the_locks():
    lines = output_of("""
with sc.load(n_threads=2, profile=False) as runtime:
    held, done = threading.Event(), threading.Event()
    worker = threading.Thread(target=lambda: runtime.chat(QUESTION, block_size=3, on_chunk=lambda _: held.set() or done.wait(60)))
    worker.start()
    held.wait(60)
    with runtime._turns._block:
        forked(lambda: ask(runtime))
    done.set()
    worker.join()
""")
    assert lines[0].startswith("child: SessionError this process (")
    assert lines[1] == "status 0"


@pytest.mark.slow
def test_a_fork_may_close_and_drop_what_it_cannot_use():
    lines = output_of("""
with sc.load(n_threads=2, profile=False) as runtime:
    before = ask(runtime)
    with runtime._turns._block:
        forked(lambda: runtime.close() or "closed")
    print(ask(runtime) == before)
""")
    assert lines == ["child: closed", "status 0", "True"]


@pytest.mark.slow
def test_a_fork_from_before_anything_was_loaded_loads_for_itself():
    lines = output_of("""
def load_and_ask():
    with sc.load(n_threads=2, profile=False) as runtime:
        return ask(runtime)
forked(load_and_ask)
print("parent:", load_and_ask())
""")
    assert lines[0].removeprefix("child: ") == lines[2].removeprefix("parent: ") != ""
    assert lines[1] == "status 0"


@pytest.mark.slow
def test_a_spawned_process_loads_for_itself(tmp_path):
    program = tmp_path / "spawning.py"
    program.write_text(
        BEGIN
        + """
def load_and_ask(_):
    with sc.load(n_threads=1, profile=False) as runtime:
        return ask(runtime)

if __name__ == "__main__":
    with sc.load(n_threads=1, profile=False) as runtime:
        before = ask(runtime)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(load_and_ask, [0]) == [before])
"""
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=240)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_runtime_that_is_sent_to_another_process_or_copied_says_what_to_do_instead(demo, send):
    with pytest.raises(sc.SessionError, match="load the pair there"):
        send(demo)
