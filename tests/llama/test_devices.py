"""Devices as ggml reports them, against what the system reports."""

from __future__ import annotations

import ctypes
import re

import psutil
import pytest

from speccascade_local.common.errors import ModelLoadError, SettingError
from speccascade_local.llama import backend, devices


def test_the_processor_is_there_with_the_memory_of_the_machine():
    (cpu,) = [each for each in devices.devices() if each.kind == "cpu"]
    assert cpu.name == "CPU"
    assert cpu.description
    assert cpu.total == psutil.virtual_memory().total
    assert 0 < cpu.free <= cpu.total


def test_a_device_is_found_by_its_name():
    assert devices.device("CPU").name == "CPU"
    assert devices.device("CPU") in devices.devices()


def test_an_unknown_device_is_refused_with_the_known_ones():
    for name in ("CPU0", "cpu"):
        with pytest.raises(SettingError, match=r"did you mean CPU\?"):
            devices.device(name)
    with pytest.raises(SettingError, match=r"device is 'CPU0'; llama.cpp has .*CPU here; did you mean CPU\?; choose one of these"):
        devices.device("CPU0")


def test_an_array_of_devices_ends_with_null():
    cpu = devices.device("CPU")
    for chosen in ([cpu, cpu], []):
        array = devices.device_array(chosen)
        read = (ctypes.c_void_p * (len(chosen) + 1)).from_address(array.value)
        assert list(read) == [*(each.handle for each in chosen), None]


def test_the_build_reports_its_commit_or_nothing(monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?|unknown", backend.commit() or "unknown")

    def absent(name, *types):
        raise ModelLoadError(f"no {name}")

    monkeypatch.setattr(backend, "ggml_function", absent)
    assert backend.commit() is None


def test_a_function_that_this_build_lacks_is_named():
    with pytest.raises(ModelLoadError, match="has no ggml_of_another_year; install llama-cpp-python"):
        backend.ggml_function("ggml_of_another_year", ctypes.c_int)
