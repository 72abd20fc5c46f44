"""The example window on a virtual screen. Each test drives it from a process of its own: Tk wants to be the only one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "examples" / "desktop_chat.py"

pytest.importorskip("tkinter", reason="this Python was built without Tk (Debian: apt install python3-tk)")
pytestmark = pytest.mark.skipif(not shutil.which("Xvfb"), reason="no screen to draw on (Debian: apt install xvfb)")

DRIVER = """
import sys, time, tkinter as tk
from functools import partial
from desktop_chat import Window

root = tk.Tk()
window = Window(root, *sys.argv[1:])

def until(condition, why):
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, why
        root.update()
        time.sleep(0.005)

def loaded():
    until(lambda: not window.busy, "loads")
    if window.conversation:  # drafts of a fixed length: a busy machine never stops drafting
        window.conversation.ask = partial(window.conversation.ask, block_size=4)

def ask(question, rule=0.5):
    window.alpha.set(rule)
    before = len(shown())
    window.entry.insert(0, question)
    window.ask_or_stop()
    until(lambda: not window.busy, "answers")
    return shown()[before:]

def shown():
    return window.text.get("1.0", "end-1c")

def written(origin):
    ranges = window.text.tag_ranges(origin)
    return [window.text.get(*ends) for ends in zip(ranges[::2], ranges[1::2])]
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    reading, writing = os.pipe()
    with subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1400x1000x24"], pass_fds=[writing], stderr=subprocess.DEVNULL
    ) as server:
        os.close(writing)
        with open(reading) as pipe:
            yield f":{pipe.readline().strip()}"
        server.terminate()


def said(screen: str, program: str, *pair: str) -> list[str]:
    environment = os.environ | {"DISPLAY": screen, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parent.parent)])}
    command = [sys.executable, "-c", DRIVER + program, *pair]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_window_is_a_page_or_two_of_code():
    assert len(SCRIPT.read_text().splitlines()) <= 150


@pytest.mark.slow
def test_an_answer_comes_in_colours_and_a_second_one_follows_the_first(screen):
    lines = said(
        screen,
        """
loaded()
print(window.send["text"], window.send["state"], bool(window.progress.winfo_ismapped()))
ask("Who is Buzz Aldrin?", rule=0)
print(bool(written("accepted")), bool(written("matched")), bool(written("corrected")))
ask("Who is Ada Lovelace?", rule=0.8)
print(bool(written("accepted")), len(window.conversation.messages), len(written("question")))
print(window.status["text"])
window.close()
""",
    )
    assert lines[:3] == ["Send normal False", "False True True", "True 4 2"]
    assert "calls of the expert" in lines[3]
    assert lines[3].endswith("(stop)")


@pytest.mark.slow
def test_dropped_drafts_are_shown_when_asked_for(screen):
    lines = said(
        screen,
        """
loaded()
ask("Who is Buzz Aldrin?", rule=0)
text = window.text
print(bool(written("dropped")), text.tag_cget("dropped", "elide"))
window.dropped.set(True)
print(text.tag_cget("dropped", "elide"), text.tag_cget("dropped", "overstrike"))
window.close()
""",
    )
    assert lines == ["True 1", "0 1"]


@pytest.mark.slow
def test_stop_ends_an_answer_and_the_next_one_is_whole(screen):
    lines = said(
        screen,
        """
loaded()
real = window.show
def show(chunk):
    real(chunk)
    if not chunk.finish_reason:
        window.ask_or_stop()  # the button, which says Stop by now
        print(window.send["text"])
window.show = show
post = window.post
def slowly(act, *arguments):  # so that the window has a say between two blocks
    post(act, *arguments)
    time.sleep(0.2)
window.post = slowly
ask("Who is Ada Lovelace?")
print(window.status["text"])
window.show, window.post = real, post
ask("Who is Buzz Aldrin?")
print(window.status["text"])
window.close()
""",
    )
    assert set(lines[:-2]) == {"Stop"}
    assert lines[-2].endswith("(cancelled)")
    assert lines[-1].endswith("(stop)")


@pytest.mark.slow
def test_a_new_conversation_begins_empty(screen):
    lines = said(
        screen,
        """
loaded()
ask("Who is Ada Lovelace?")
window.begin_anew()
print(repr(shown()), window.conversation.messages, window.text["state"])
ask("Who is Buzz Aldrin?")
print("Aldrin" in shown(), window.text["state"])
window.close()
""",
    )
    assert lines == ["'' [] disabled", "True disabled"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at once", "while it loads", "while it answers"])
def test_it_can_be_closed_at_any_time(screen, moment):
    begin = {
        "at once": "",
        "while it loads": "until(lambda: window.progress['value'] > 0, 'loads')",
        "while it answers": (
            "loaded()\nwindow.entry.insert(0, 'Who is Ada Lovelace?')\nwindow.ask_or_stop()\nuntil(lambda: len(shown()) > 30, 'answers')"
        ),
    }[moment]
    assert said(screen, f"{begin}\nwindow.close()\nroot.mainloop()\nprint('ended')") == ["ended"]


@pytest.mark.slow
def test_a_pair_that_cannot_be_loaded_is_told_once_and_nothing_can_be_sent(screen):
    lines = said(
        screen,
        """
loaded()
for _ in range(20):
    root.update()
    time.sleep(0.01)
print(shown().strip())
print(window.send["state"])
window.close()
""",
        "no-such-pair",
    )
    assert len(lines) == 2
    assert "no-such-pair" in lines[0]
    assert lines[1] == "disabled"
