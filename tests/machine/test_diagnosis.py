"""From facts to findings: nothing where all is well, and for each fault its own."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from speccascade_local.common import pip
from speccascade_local.machine.diagnosis import Problem, diagnose
from speccascade_local.machine.hardware import Memory, Processors
from speccascade_local.machine.inspection import Build, DeviceFacts, Inspection
from speccascade_local.machine.installation import Extra, Folder
from speccascade_local.machine.trial import Trial

FEATURES = ("AVX", "AVX2", "FMA", "F16C", "AVX512", "REPACK")
WELL = Inspection(
    speccascade="0.1.0",
    versions={"python": "3.12.0", "platform": "Linux"},
    missing=(),
    extras=(Extra("calibrate", ()),),
    catalog_problem="",
    build=Build(commit="0c1e570", features=FEATURES, gpu=False, rpc=False, mmap=True, repacking=True),
    devices=(DeviceFacts("CPU", "Some CPU", "cpu", 8, 8),),
    graphics_cards=(),
    processors=Processors("Some CPU", 4, 8, 8, None, 7.9, frozenset({"avx", "avx2", "fma", "f16c", "avx512f"})),
    threads=4,
    memory=Memory(16 << 30, 8 << 30, None, 0, 0),
    folders=(Folder("measured speeds", Path("/c/p"), True, 10, ""),),
    environment={},
    trial=Trial(True, 0.5, "Ada Lovelace"),
)


def test_where_all_is_well_nothing_is_found():
    assert diagnose(WELL) == ()
    fine = replace(WELL, processors=replace(WELL.processors, quota=4.0), environment={"OMP_THREAD_LIMIT": "4"})
    assert diagnose(replace(fine, build=replace(WELL.build, features=()))) == ()  # such as a build that reports nothing


@pytest.mark.parametrize(
    ("crash", "why", "has_fix"),
    [
        ("SIGILL", "instructions that this processor does not have", True),
        ("SIGSEGV", "this build of llama.cpp is at fault", True),
        ("SIGKILL", "more memory than there is", False),
        ("", "exit code 3", True),
    ],
)
def test_a_pair_that_does_not_answer_is_broken(crash, why, has_fix):
    (finding,) = diagnose(replace(WELL, trial=Trial(False, 1.0, reason=f"{crash or 'exit code 3'}", crash=crash)))
    assert finding.broken
    assert finding.what.startswith(f"the bundled pair does not answer: {crash or 'exit code 3'}")
    assert why in finding.what
    assert bool(finding.fix) is has_fix
    assert not has_fix or "-DGGML_NATIVE=on" in finding.fix


HINTS = {
    "a missing extra": (
        replace(WELL, extras=(Extra("hub", ("huggingface-hub>=1,<2",)),)),
        "'hub' is not installed",
        "'huggingface-hub>=1,<2'",
    ),
    "a folder": (replace(WELL, folders=(Folder("speeds", Path("/c/p"), False, 0, "/c: Read-only"),)), "/c/p cannot be written", ""),
    "instructions": (
        replace(WELL, build=replace(WELL.build, features=("AVX", "AVX2", "FMA", "F16C"))),
        "has AVX512, which this build",
        "-DGGML_NATIVE=on",
    ),
    "a card": (replace(WELL, graphics_cards=("NVIDIA",)), "a graphics card (NVIDIA)", "-DGGML_CUDA=on"),
    "another card": (replace(WELL, graphics_cards=("AMD",)), "a graphics card (AMD)", "-DGGML_HIP=on"),
    "apple": (replace(WELL, graphics_cards=("Apple",)), "a graphics card (Apple)", "-DGGML_METAL=on"),
    "a quota": (replace(WELL, processors=replace(WELL.processors, quota=1.5)), "allows 1.5 processors' time, and 4", "--threads 1"),
    "a small quota": (replace(WELL, processors=replace(WELL.processors, quota=0.5)), "allows 0.5 processors' time", "--threads 1"),
    "load": (replace(WELL, processors=replace(WELL.processors, load=8.1)), "load 8.1 on 8 processors", "profile --refresh"),
    "openmp": (replace(WELL, environment={"OMP_THREAD_LIMIT": "2"}), "OMP_THREAD_LIMIT is 2", "unset OMP_THREAD_LIMIT"),
    "swap": (replace(WELL, memory=replace(WELL.memory, swap_used=3 << 30, swap_total=4 << 30)), "3.2 GB are swapped out", ""),
}


@pytest.mark.parametrize("name", HINTS)
def test_what_could_be_better_is_a_hint_with_the_command_that_fixes_it(name):
    facts, what, fix = HINTS[name]
    (finding,) = diagnose(facts)
    assert not finding.broken
    assert what in finding.what
    assert fix in finding.fix


def test_a_card_that_is_used_is_no_finding_and_one_thread_is_never_too_many():
    assert diagnose(replace(WELL, graphics_cards=("NVIDIA",), build=replace(WELL.build, gpu=True))) == ()
    assert diagnose(replace(WELL, threads=1, processors=replace(WELL.processors, quota=0.5))) == ()


def test_what_is_broken_comes_first():
    found = diagnose(replace(HINTS["swap"][0], missing=("numpy<3",), catalog_problem="models.yaml:3: no such key"))
    assert [each.broken for each in found] == [True, True, False]
    assert found[0] == Problem(True, "needed and not installed: numpy<3", pip.pip("install", "numpy<3"))
    assert found[1].what == "models.yaml:3: no such key"


def test_a_command_is_one_that_a_shell_reads_as_it_is_meant():
    words = shlex.split(pip.rebuild("-DGGML_RPC=on -DGGML_CUDA=on", windows=False))
    assert words[:4] == ["CMAKE_ARGS=-DGGML_RPC=on -DGGML_CUDA=on", sys.executable, "-m", "pip"]
    assert words[-1].startswith("llama-cpp-python==0.3.")
    assert shlex.split(pip.pip("install", "a>=1,<2", windows=False))[-1] == "a>=1,<2"


def test_power_shell_gets_its_own(monkeypatch):
    monkeypatch.setattr(sys, "executable", r"C:\Program Files\py\python.exe")
    command = pip.rebuild("-DGGML_CUDA=on", windows=True)
    assert command.startswith('$env:CMAKE_ARGS = "-DGGML_CUDA=on"; & "C:\\Program Files\\py\\python.exe" -m pip install ')
    assert pip.pip("install", "a<2", windows=True).endswith('install "a<2"')
