"""A file is tried once; after it, what was asked, or the cache changed, again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest
from gguf_files import adapter, textless_model

from speccascade_local.common.errors import ModelLoadError
from speccascade_local.machine import dry_run
from speccascade_local.machine.dry_run import dry_run_models, plan_models
from speccascade_local.models.placement import Placement


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """The files that were given to a child process, call by call."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def counted(files, **asked):
        calls.append(sorted(path.name for path in files.values()))
        return dry_run_models(files, **asked)

    monkeypatch.setattr(dry_run, "dry_run_models", counted)
    return calls


def plans(*paths: Path, n_ctx: int | None = 64, placement: Placement | None = None):
    files = dict(zip(("expert", "drafter"), paths))
    return plan_models(files, n_ctx=n_ctx, placements=dict.fromkeys(files, placement or Placement()))


def same(one, other):
    """But for what the child measured."""
    return [replace(each, other=0) for each in one.values()] == [replace(each, other=0) for each in other.values()]


@pytest.mark.slow
def test_the_cache_returns_what_the_dry_run_found(tmp_path, tried):
    a, b = textless_model(tmp_path / "a.gguf"), textless_model(tmp_path / "b.gguf", seed=1)
    first = plans(a)
    assert plans(a) == first
    assert tried == [["a.gguf"]]
    assert plans(a, b)["expert"] == first["expert"]
    assert tried == [["a.gguf"], ["b.gguf"]], "the one that is known is not tried again"
    assert plans(b, a)["expert"].path == b


@pytest.mark.slow
@pytest.mark.parametrize("change", ["context", "placement", "file", "version", "adapter"])
def test_a_change_of_anything_that_matters_is_tried_again(tmp_path, tried, monkeypatch, change):
    path, lora = textless_model(tmp_path / "a.gguf"), adapter(tmp_path / "lora.gguf")
    adapted = Placement(lora=((lora, 1.0),))
    plans(path, placement=adapted)
    asked = {"placement": adapted}
    if change == "context":
        asked["n_ctx"] = 128
    elif change == "placement":
        asked["placement"] = Placement(lora=adapted.lora, cache_type="f32")
    elif change == "version":
        monkeypatch.setattr(dry_run, "llama_cpp_version", lambda: "9.9.9")
    else:
        changed = path if change == "file" else lora
        os.utime(changed, ns=(1, changed.stat().st_mtime_ns + 1))
    plans(path, **asked)
    assert len(tried) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["written over", "put in its place"])
def test_a_file_that_is_replaced_is_tried_again_though_its_size_and_its_time_stay(tmp_path, tried, how):
    path = textless_model(tmp_path / "a.gguf")
    plans(path)
    before, other = path.stat(), textless_model(tmp_path / "b.gguf", seed=1)
    assert other.stat().st_size == before.st_size
    if how == "written over":
        path.write_bytes(other.read_bytes())
    else:
        other.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    plans(path)
    assert len(tried) == 2


@pytest.mark.slow
def test_a_damaged_cache_file_is_ignored(tmp_path, tried):
    path = textless_model(tmp_path / "a.gguf")
    first = plans(path)
    (kept,) = (platformdirs.user_cache_path("speccascade") / "dry_runs").iterdir()
    for times, damage in enumerate([b"", b"{}", b"not json", b"[" * 100_000, b"\xff\xfe", b'{"path": 7}'], start=2):
        kept.write_bytes(damage)
        assert same(plans(path), first)
        assert len(tried) == times


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, tried, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = textless_model(tmp_path / "a.gguf")
    assert same(plans(path), plans(path))
    assert len(tried) == 2


@pytest.mark.slow
def test_a_refused_file_is_not_cached(tmp_path, tried):
    path = textless_model(tmp_path / "a.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="not found"):
            plans(path)
    assert len(tried) == 2
    path.write_bytes(whole)
    assert plans(path)["expert"].rollback == "tail"
