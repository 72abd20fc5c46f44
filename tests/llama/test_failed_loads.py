"""Loads that fail, in every way that a user can cause, leak no memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

READER = Path(__file__).parents[1] / "support" / "failing_loads.py"
#: As little as that would be a fiftieth of one of the models that were loaded each time.
ALLOWED = 500_000


@pytest.mark.slow
def test_twenty_failed_loads_leave_as_much_memory_as_one(tmp_path):
    ran = subprocess.run([sys.executable, READER, tmp_path], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *failures, grown = ran.stdout.split()
    assert len(failures) == 20
    assert set(failures) == {"ModelLoadError", "PairError", "SettingError", "SessionError", "KeyboardInterrupt"}
    assert int(grown) < ALLOWED
