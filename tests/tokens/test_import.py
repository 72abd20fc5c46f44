"""Importing the package does no work: it starts no process, registers no hook and allocates no more than its modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Imports the package twice: the second time, with all other modules loaded, the memory is that of its own.
PROGRAM = """
import atexit, json, os, subprocess, sys, tracemalloc
import numpy

calls = []

def recording(name, real):
    def record(*arguments, **named):
        calls.append([name, [getattr(each, "__module__", None) or repr(each) for each in (*arguments, *named.values())]])
        return real(*arguments, **named)
    return record

subprocess.Popen.__init__ = recording("Popen", subprocess.Popen.__init__)
atexit.register = recording("atexit", atexit.register)
os.register_at_fork = recording("fork", os.register_at_fork)
import speccascade_local
for name in [name for name in sys.modules if name.split(".")[0] == "speccascade_local"]:
    del sys.modules[name]
tracemalloc.start()
import speccascade_local
print(json.dumps({"calls": calls, "peak": tracemalloc.get_traced_memory()[1]}))
"""


@pytest.mark.slow
def test_an_import_starts_no_process_registers_no_hook_and_allocates_no_buffers():
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert [modules for name, modules in seen["calls"] if name == "Popen"] == []
    hooks = [modules for name, modules in seen["calls"] if name != "Popen"]
    assert not [modules for modules in hooks if any(module.startswith(("speccascade_local", "weakref")) for module in modules)]
    assert seen["peak"] < 16 * 2**20
