"""No verb but ``pull`` makes a network call: each runs in a process in which that is impossible."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from command_line import as_text

from speccascade_local.cli.app import VERBS

#: Python runs it before anything else; the interpreter then reports every look-up and connection of any code.
GUARD = """\
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        raise RuntimeError(f"network: {event} {arguments!r}")

sys.addaudithook(refuse)
"""
DEMO = Path(__file__).parents[2] / "speccascade_local" / "demo"
SHORT = ("--max-tokens", "4", "--ctx", "128")
#: How each verb is run. The test below fails for a missing verb: add it here, or to those that need the network.
RUNS: dict[str, list[tuple[str, ...]]] = {
    "run": [("demo", "Hi", *SHORT), ("fetched", "Hi", *SHORT)],
    "compare": [("demo", "Hi", *SHORT)],
    "models": [(), ("fetched",)],
    "rules": [()],
    "calibrate": [("demo", "--questions", "asked.jsonl", "--out", "calibration.json", "--threads", "1")],
    "profile": [("demo", "--ctx", "64")],
    "plan": [("fetched",)],
    "chat": [("demo", *SHORT)],
    "check": [("demo",), ("fetched",), ("--suggest", str(DEMO / "expert.gguf"), "--folder", "hf")],
    "doctor": [(), ("--json",)],
    "bench": [("demo", "--per-family", "1", "--rules", "token_v3", "--alphas", "0.8", *SHORT)],
    "tune": [("demo", "--budget", "0.9", "--rules", "token_v3", "--alphas", "0.8", "--per-family", "8", "--max-tokens", "12", "--dry-run")],
}
#: Two of these listen; tests/server/test_clients.py shows that ``serve`` makes no connection.
NEEDS_THE_NETWORK = {"pull", "rpc-serve", "serve"}
MODELS = """\
pairs:
  fetched:
    drafter: {hub: me/demo, file: drafter.gguf}
    expert: {hub: me/demo, file: expert.gguf}
  absent:
    drafter: {hub: me/demo, file: nowhere.gguf}
    expert: {hub: me/demo, file: expert.gguf}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models.yaml of a pair that was fetched from a hub that no longer exists."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    (folder / "models.yaml").write_text(MODELS)
    every_seventh = (DEMO / "heldout.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[::7]
    (folder / "asked.jsonl").write_text("".join(every_seventh), encoding="utf-8")
    snapshot = folder / "hf" / "hub" / "models--me--demo" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name in ("drafter.gguf", "expert.gguf"):
        (snapshot / name).symlink_to(DEMO / name)
    return folder


def offline(folder: Path, *arguments: str, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    paths = [str(folder / "guard"), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": os.pathsep.join(paths)}
    return as_text(*arguments, stdin=b"Hi\n", cwd=folder, fresh=fresh, **environment)


@pytest.mark.slow
def test_the_package_is_loaded_without_the_network(folder):
    done = offline(folder, "run", "demo", "Hi", *SHORT, fresh=True)
    assert "network:" not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_every_verb_is_covered():
    assert RUNS.keys() | NEEDS_THE_NETWORK == VERBS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "arguments"), [(verb, arguments) for verb, runs in RUNS.items() for arguments in runs])
def test_no_other_verb_uses_the_network(folder, verb, arguments):
    done = offline(folder, verb, *arguments)
    assert "network:" not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("verb", ["run", "plan", "profile", "bench"])
def test_files_that_are_not_fetched_are_an_error_and_not_searched(folder, verb):
    done = offline(folder, verb, "absent", *(("Hi",) if verb == "run" else ()))
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "error: pair 'absent', drafter: nowhere.gguf of me/demo is not on this machine; fetch it: speccascade pull absent\n"
    )


def test_check_does_not_look_at_the_hub_unless_it_is_told_to(folder):
    done = offline(folder, "check", "absent")
    assert done.returncode == 2
    assert "network:" not in done.stdout + done.stderr
    assert "speccascade pull absent" in done.stdout + done.stderr
    assert "network: socket." in offline(folder, "check", "absent", "--remote").stderr


def test_pull_needs_no_network_for_what_is_there(folder):
    done = offline(folder, "pull", "fetched")
    assert (done.returncode, done.stderr) == (0, "fetched: all files are here already\n")


def test_the_guard_sees_a_verb_that_does(folder):
    assert "network: socket." in offline(folder, "pull", "absent").stderr
