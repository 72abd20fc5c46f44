"""The scripts at the top: help, refusals, what they announce, and machines where the set-up cannot work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [".ci/run", ".ci/install-screens", "scripts/check", "scripts/demo", "scripts/setup", "scripts/test"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing is installed."""
    for folder in (".ci", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture
def stubs(checkout: Path) -> Path:
    """A folder to be the whole PATH: the few commands that the scripts call, apt-get as a line on stderr, and no browser, Xvfb or Tk."""
    folder = checkout / "stubs"
    folder.mkdir()
    for command in ("bash", "dirname", "sed", "env"):
        (folder / command).symlink_to(shutil.which(command))
    write_script(folder / "apt-get", 'echo "apt-get $*" >&2')
    write_script(folder / "id", "echo 0")
    write_script(folder / "python3", "exit 1")
    for script in ("setup", "test", "check"):
        write_script(checkout / "scripts" / script, f'echo "{script} $*"')
    return folder


def write_script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def run(checkout: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([checkout / script, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how_to_call_the_script_and_what_it_installs(checkout, script, option):
    finished = run(checkout, script, option)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert f"  {script}" in finished.stdout
    assert "--help" in finished.stdout
    assert any(word in finished.stdout.lower() for word in ("installs", "downloads"))
    assert not any(line.startswith("#") or "set -euo" in line for line in finished.stdout.splitlines())
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("arguments", [["--nonsense"], ["nonsense"]])
@pytest.mark.parametrize("script", [".ci/run", ".ci/install-screens", "scripts/check", "scripts/setup"])
def test_unknown_arguments_are_a_usage_error_that_says_what_is_allowed(checkout, script, arguments):
    finished = run(checkout, script, *arguments)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith(f"error: unknown argument: {arguments[0]}; allowed: ")
    assert "--help" in finished.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("arguments", [["a b"], ["test", "dev"], ["test,nonsense"]])
def test_unknown_extras_are_refused_with_the_names_of_all(checkout, arguments):
    finished = run(checkout, "scripts/setup", *arguments)
    assert finished.returncode == 2
    assert "calibrate, hub, docs, serve, test, dev, mutate, train" in finished.stderr


def test_the_demo_and_the_tests_hand_their_arguments_on(checkout, stubs):
    commands = checkout / ".venv" / "bin"
    commands.mkdir(parents=True)
    write_script(commands / "python", 'echo "$*"')
    write_script(commands / "speccascade", f'exec "{sys.executable}" -m speccascade_local "$@"')
    write_script(checkout / "scripts" / "setup", "exit 0")
    shutil.copy(ROOT / "scripts" / "test", checkout / "scripts" / "test")
    assert run(checkout, "scripts/test", "-k", "x y", "tests/cli").stdout.endswith(" -k x y tests/cli\n")
    refused = run(checkout, "scripts/demo", "--nonsense")
    assert refused.returncode == 2
    assert "--nonsense" in refused.stderr


def test_system_packages_are_named_before_they_are_installed(checkout, stubs):
    finished = run(checkout, ".ci/run", PATH=str(stubs), PYTHON="python3")
    assert finished.returncode == 0, finished.stderr
    announcement, *calls = finished.stderr.splitlines()
    assert announcement == (
        "installing system packages with apt-get: chromium xvfb python3-tk; to skip this, run .ci/run --no-system-packages"
    )
    assert calls == ["apt-get update -q", "apt-get install -q -y --no-install-recommends chromium xvfb python3-tk"]
    assert finished.stdout.splitlines() == ["setup test,dev", "test ", "check "]


def test_system_packages_can_be_declined(checkout, stubs):
    finished = run(checkout, ".ci/run", "--no-system-packages", PATH=str(stubs))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == ["setup test,dev", "test ", "check "]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["setup", "demo", "test", "check"])
def test_without_a_compiler_nothing_begins_and_the_error_names_one(checkout, script):
    finished = run(checkout, f"scripts/{script}", CXX="no-such-compiler")
    assert finished.returncode == 1
    assert "error: no C++ compiler found (looked for no-such-compiler)" in finished.stderr
    assert "apt install g++" in finished.stderr
    assert not (checkout / ".venv").exists()


def test_without_python_nothing_begins(checkout):
    finished = run(checkout, "scripts/setup", PYTHON="/no/python")
    assert finished.returncode == 1
    assert "Python 3.10 or newer is needed" in finished.stderr
    assert not (checkout / ".venv").exists()
