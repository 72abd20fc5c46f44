from __future__ import annotations

import os
import signal

# Before llama.cpp is loaded: its threads sleep while they wait, or the suite crawls beside any other work on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator

import pytest
from hypothesis import settings

import speccascade_local as sc

# A shell starts background jobs with Ctrl-C ignored, and what they start inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine may be slow or busy: how long an example takes is never a reason to fail.
# In CI the examples are the same every time, so that a red run is the change's doing; everywhere else they explore.
settings.register_profile("patient", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own cache, nor does a process that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def demo() -> Iterator[sc.Runtime]:
    """The bundled pair, loaded once; on one thread, which is the fastest for models this small.

    Tests that count evaluations call ``demo.reset()`` first.
    """
    with sc.load(n_threads=1) as runtime:
        yield runtime
