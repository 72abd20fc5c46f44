"""The build and the machine as llama.cpp and the system report them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf_files import text_model

from speccascade_local.llama import backend
from speccascade_local.llama.backend import extra_buffers_are_safe, physical_cores
from speccascade_local.llama.model import LlamaModel
from speccascade_local.programs.dry_run import LogLines

AVX512 = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | "


AMX = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | "


@pytest.mark.parametrize(
    ("info", "safe"),
    [
        (AVX512, True),
        (AMX, False),
        (AMX.replace("AMX_INT8 = 1", "AMX_INT8 = 0"), True),
        ("CPU : NEON = 1 | ARM_FMA = 1 | ", True),
        ("", True),
    ],
)
def test_repacking_is_unsafe_exactly_where_the_build_has_amx(info: str, safe: bool) -> None:
    assert extra_buffers_are_safe(info) is safe


def test_the_build_reports_its_instruction_sets() -> None:
    info = backend.system_info()
    assert " = 1" in info
    assert info == info.strip()


@pytest.mark.parametrize(
    ("physical", "logical", "allowed", "expected"), [(8, 16, 16, 8), (8, 16, 3, 3), (None, 4, 4, 4), (None, None, 1, 1), (2, 4, 1, 1)]
)
def test_threads_stay_within_physical_cores_and_within_what_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, logical: int | None, allowed: int, expected: int
) -> None:
    monkeypatch.setattr(backend.psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(os, "cpu_count", lambda: logical)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(allowed)), raising=False)
    assert physical_cores() == expected


@pytest.mark.slow
def test_a_vocabulary_of_odd_tokens_fills_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp writes a line for each: a million of them took a minute and more to go through Python's log."""
    count = 30_000
    path = text_model(tmp_path / "empty.gguf", n_vocab=count, texts=dict.fromkeys(range(300, count), ""))
    log_lines, lines = LogLines(), []
    monkeypatch.setattr(backend, "_listeners", [log_lines.take, lines.append])
    with caplog.at_level(logging.DEBUG, logger="speccascade_local"):
        LlamaModel(path).close()
    assert len(lines) > count - 1000
    assert len(caplog.records) < 11_000
    assert len(log_lines) < 500
    assert any("model buffer size" in line for line in log_lines.since(0))


def test_the_log_of_llama_cpp_goes_to_the_debug_log(files: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="speccascade_local"):
        LlamaModel(files.text).close()
    assert any(record.getMessage().startswith("llama.cpp: ") for record in caplog.records)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG, logging.INFO}
