"""What the set-up says before it begins, on machines where it cannot work."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing is installed."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", ["setup", "demo", "test", "check"])
def test_without_a_compiler_nothing_is_begun_and_the_way_to_one_is_told(checkout, script):
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run([checkout / "scripts" / script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "error: no C++ compiler found (looked for no-such-compiler)" in done.stderr
    assert "apt install g++" in done.stderr
    assert not (checkout / ".venv").exists()


def test_without_python_nothing_is_begun(checkout):
    done = subprocess.run([checkout / "scripts" / "setup"], env=os.environ | {"PYTHON": "/no/python"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Python 3.10 or newer is needed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_unknown_extras_are_a_usage_error(checkout):
    done = subprocess.run([checkout / "scripts" / "setup", "a b"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")
