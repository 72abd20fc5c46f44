"""``speccascade doctor`` as its users meet it, on an installation that is well and on ones that are broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import llama_cpp
import psutil
import pytest
from command_line import as_text

from speccascade_local.llama.backend import extra_buffers_are_safe, system_info
from speccascade_local.machine import inspection


def doctor(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return as_text("doctor", *arguments, cwd=cwd, **environment)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    home = tmp_path_factory.mktemp("home")
    done = doctor("--json", HOME=str(home), XDG_CACHE_HOME=str(home / "cache"), HF_TOKEN="hf_thisissecret", HF_HOME=str(home / "hf"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert "hf_thisissecret" not in done.stdout
    assert str(home) not in done.stdout
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_report_says_what_other_sources_say(report):
    assert report["broken"] is False
    assert report["trial"]["works"] is True
    assert report["memory"]["total"] == psutil.virtual_memory().total
    assert report["versions"]["llama-cpp-python"] == llama_cpp.__version__
    assert report["build"]["repacking"] is extra_buffers_are_safe(system_info())
    assert report["build"]["rpc"] is llama_cpp.llama_supports_rpc()
    assert all(f"{name} = " in system_info() for name in report["build"]["features"])
    assert len(report["build"]["features"]) == system_info().count(" = ") - system_info().count(" = 0")
    assert [device["name"] for device in report["devices"]].count("CPU") == 1
    assert report["folders"][0]["path"].startswith("~")


def test_what_is_off_in_a_build_is_no_feature_of_it(monkeypatch):
    info = "CUDA : ARCHS = 890 | CPU : SSE3 = 1 | AMX_INT8 = 1 | AVX512 = 0 | REPACK = 1 | "
    monkeypatch.setattr(inspection, "system_info", lambda: info)
    assert inspection.read_build().features == ("ARCHS", "SSE3", "AMX_INT8", "REPACK")
    assert inspection.read_build().repacking is False


@pytest.mark.slow
def test_every_fact_has_its_line_at_80_columns(report):
    done = doctor(COLUMNS="80")
    assert done.returncode == 0
    for name in ("llama.cpp", "repacking", "device", "processor", "threads", "memory", "measurements", "bundled pair"):
        assert any(line.startswith(name + " ") for line in done.stdout.splitlines()), name
    assert done.stdout.splitlines()[-1] in ("all is well", "nothing is broken")
    assert "answers" in done.stdout


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_a_hint(tmp_path):
    (tmp_path / "cache").write_text("")
    done = doctor(XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0
    assert "hint: measurements: " in done.stdout
    assert "Not a directory" in done.stdout
    assert done.stdout.endswith("nothing is broken\n")


def test_a_child_that_crashes_is_reported_and_does_not_take_the_doctor_with_it(tmp_path):
    crash = "import os, signal, sys\nif 'speccascade_local.programs.trial' in sys.orig_argv: os.kill(os.getpid(), signal.SIGILL)\n"
    (tmp_path / "sitecustomize.py").write_text(crash)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"), str(Path(inspection.__file__).parent.parent))))
    done = doctor(PYTHONPATH=path)
    assert done.returncode == 1
    assert "broken: the bundled pair does not answer: the process was ended by SIGILL" in done.stdout
    assert f'  CMAKE_ARGS="-DGGML_NATIVE=on" {sys.executable} -m pip install ' in done.stdout
    assert "all is well" not in done.stdout
    assert "nothing is broken" not in done.stdout


@pytest.mark.slow
def test_a_models_yaml_that_cannot_be_read_is_broken(tmp_path):
    (tmp_path / "models.yaml").write_text("pairs: {a: {drafter: x}}\n")
    done = doctor("--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (done.returncode, report["broken"]) == (1, True)
    assert "models.yaml" in report["findings"][0]["what"]
