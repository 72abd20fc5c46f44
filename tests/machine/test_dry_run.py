"""A dry run finds what a real load finds, and survives whatever its child does."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from pathlib import Path

import gguf
import llama_cpp
import pytest
from gguf_files import CHATML, IM_END, IM_START, adapter, embedding_model, recurrent_model, text_model, textless_model

import speccascade_local
from speccascade_local.common.errors import ModelLoadError, PairError, SettingError
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.tokenizer import shared_vocab_size
from speccascade_local.machine import dry_run
from speccascade_local.machine.dry_run import dry_run_models
from speccascade_local.models.placement import Placement

DEMO = Path(speccascade_local.__file__).parent / "demo"


def test_facts_are_those_of_the_loaded_model(tmp_path):
    path = text_model(tmp_path / "m.gguf", chat_template=CHATML, add_bos=True)
    found = dry_run_models({"expert": path}, n_ctx=100)["expert"]
    with closing(LlamaModel(path)) as model:
        assert (found.n_vocab, found.n_ctx_train, found.weights) == (model.n_vocab, model.n_ctx_train, model.n_bytes)
        assert (found.chat_template, found.tokenizer.kind) == (CHATML, model.tokenizer.kind)
        assert found.tokenizer.end_ids == tuple(token for token in range(model.n_vocab) if model.tokenizer.is_end(token))
        texts = {token: model.tokenizer.token_text(token) for token in found.tokenizer.texts}
    assert found.tokenizer.texts == texts
    assert {IM_START, IM_END} <= texts.keys()
    assert (found.tokenizer.bos_id, found.tokenizer.eos_id, found.tokenizer.pre) == (IM_START, IM_END, "smollm")
    assert (found.tokenizer.adds_bos, found.tokenizer.adds_eos) == (True, False)
    assert (found.architecture, found.n_layers, found.n_ctx, found.path) == ("llama", 1, 100, path)


def test_sizes_are_those_of_the_loaded_model(caplog):
    found = dry_run_models({"expert": DEMO / "expert.gguf"}, n_ctx=512)["expert"]
    caplog.set_level("DEBUG")
    with closing(LlamaModel(DEMO / "expert.gguf")) as model, closing(LlamaContext(model, n_ctx=512, n_threads=1)):
        assert found.weights == model.n_bytes
    mib = 2**20
    assert f"KV buffer size = {found.cache / mib:8.2f} MiB" in caplog.text
    assert f"CPU compute buffer size = {found.compute['CPU'] / mib:8.2f} MiB" in caplog.text
    assert found.recurrent == 0


@pytest.mark.slow
def test_neither_weights_nor_a_whole_file_are_needed(tmp_path):
    """A header that was fetched alone, stretched to the size of its file, shows all but the weights."""
    path = text_model(tmp_path / "whole.gguf")
    header = path.read_bytes()[: gguf.GGUFReader(path).data_offset]
    with (tmp_path / "header.gguf").open("wb") as file:
        file.write(header)
    os.truncate(file.name, path.stat().st_size)
    both = [dry_run_models({"expert": each}, n_ctx=64)["expert"] for each in (path, Path(file.name))]
    assert both[0].cache == both[1].cache > 0
    assert both[0].weights == both[1].weights > 0


@pytest.mark.slow
def test_no_context_is_planned_beyond_what_a_model_was_trained_for(tmp_path):
    path = textless_model(tmp_path / "m.gguf", n_ctx_train=300)
    assert dry_run_models({"expert": path}, n_ctx=10**9)["expert"].n_ctx == 300
    assert dry_run_models({"expert": path})["expert"].n_ctx == 300
    assert dry_run_models({"expert": DEMO / "expert.gguf"})["expert"].n_ctx == 512


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "rollback", "refused"),
    [
        (textless_model, "tail", None),
        (recurrent_model, "checkpoints", None),
        (embedding_model, None, "an embedding model reads a text both ways and writes none"),
    ],
)
def test_the_kind_of_rollback_is_that_of_the_memory(tmp_path, write, rollback, refused):
    found = dry_run_models({"expert": write(tmp_path / "m.gguf")}, n_ctx=64)["expert"]
    assert (found.rollback, found.refused) == (rollback, refused)


@pytest.mark.slow
def test_a_pair_is_compared_as_when_it_is_loaded(tmp_path):
    large, small = text_model(tmp_path / "l.gguf", n_vocab=280), text_model(tmp_path / "s.gguf", n_vocab=270)
    found = dry_run_models({"drafter": small, "expert": large}, n_ctx=64)
    assert (found["drafter"].n_shared, found["drafter"].difference) == (270, None)
    assert (found["expert"].n_shared, found["expert"].difference) == (None, None)
    other = text_model(tmp_path / "o.gguf", texts={100: "another"})
    found = dry_run_models({"drafter": other, "expert": large}, n_ctx=64)
    with closing(LlamaModel(other)) as ours, closing(LlamaModel(large)) as theirs, pytest.raises(PairError) as error:
        shared_vocab_size(ours.tokenizer, theirs.tokenizer)
    assert (found["drafter"].n_shared, found["drafter"].difference) == (None, str(error.value))


@pytest.mark.slow
def test_the_type_of_a_cache_changes_its_size(tmp_path):
    path = text_model(tmp_path / "m.gguf", heads=1)
    sizes = {
        kind: dry_run_models({"expert": path}, n_ctx=2048, placements={"expert": Placement(cache_type=kind)})["expert"].cache
        for kind in ("f32", "f16", "q8_0")
    }
    assert sizes["f32"] == pytest.approx(2 * sizes["f16"], abs=2**20 / 50), "llama.cpp logs hundredths of a MiB"
    assert sizes["q8_0"] == pytest.approx(sizes["f16"] * 34 / 64, abs=2**20 / 50)


def test_an_error_of_llama_cpp_is_shown_in_its_words(tmp_path):
    path = textless_model(tmp_path / "m.gguf")
    changed = path.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")
    (tmp_path / "odd.gguf").write_bytes(changed)
    with pytest.raises(ModelLoadError, match=r"odd\.gguf: llama\.cpp cannot load this file: .*'blk\.0\.attn_q\.weight' not found"):
        dry_run_models({"drafter": path, "expert": tmp_path / "odd.gguf"}, n_ctx=64)


@pytest.mark.slow
def test_devices_and_adapters_are_tried_too(tmp_path):
    path = textless_model(tmp_path / "m.gguf")
    with pytest.raises(SettingError, match=r"device is 'XPU7'; llama\.cpp has CPU"):
        dry_run_models({"expert": path}, n_ctx=64, placements={"expert": Placement(device="XPU7")})
    lora = adapter(tmp_path / "lora.gguf", width=48)
    with pytest.raises(ModelLoadError, match=r"lora\.gguf: llama\.cpp cannot use this adapter"):
        dry_run_models({"expert": path}, n_ctx=64, placements={"expert": Placement(lora=((lora, 1.0),))})


BEGINS = 'import json, sys; asked = json.load(sys.stdin); print(json.dumps({"role": "expert"}), flush=True); '


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("import os; os.abort()", "killed by signal 6"),
        ("import ctypes; ctypes.string_at(0)", "killed by signal 11"),
        ("import sys; print('GGML_ASSERT(one) failed', file=sys.stderr); sys.exit(3)", r"exit code 3\): GGML_ASSERT\(one\) failed"),
        ("import sys; sys.stderr.write('x' * 50_000_000 + ' the end'); sys.exit(1)", "xxx the end"),
        ("print('garbage' * 1000)", "exit code 0"),
        ("print('[1, 2]'); print('7'); print('null'); print('{}'); print(chr(123) * 100_000)", "exit code 0"),
        (BEGINS + 'print(json.dumps({"role": "expert", "facts": {"path": 7}}))', "exit code 0"),
        (BEGINS + 'print(json.dumps({"role": "nameless", "facts": 1}))', "exit code 0"),
        ("import os; os.write(1, bytes(range(256)) * 10_000)", "exit code 0"),
        ("import sys; sys.stdin.close()", "exit code 0"),
    ],
)
def test_whatever_the_child_does_is_an_error_that_names_the_file(monkeypatch, child, said):
    monkeypatch.setattr(dry_run, "CHILD", (sys.executable, "-c", child))
    with pytest.raises(ModelLoadError, match=rf"expert\.gguf: llama\.cpp aborted on this file .*{said}"):
        dry_run_models({"expert": DEMO / "expert.gguf"})


def test_an_error_names_the_file_that_was_being_loaded(monkeypatch):
    monkeypatch.setattr(dry_run, "CHILD", (sys.executable, "-c", BEGINS + "import os; os.abort()"))
    with pytest.raises(ModelLoadError, match=r"^\S+expert\.gguf: "):
        dry_run_models({"drafter": DEMO / "drafter.gguf", "expert": DEMO / "expert.gguf"})


@pytest.mark.slow
@pytest.mark.parametrize("child", ["import time; time.sleep(600)", "import os, time; os.close(1); os.close(2); time.sleep(600)"])
def test_a_child_that_hangs_is_given_up(monkeypatch, child):
    monkeypatch.setattr(dry_run, "CHILD", (sys.executable, "-c", child))
    started = time.monotonic()
    with pytest.raises(ModelLoadError, match=r"expert\.gguf: not read within 0\.5 seconds"):
        dry_run_models({"expert": DEMO / "expert.gguf"}, timeout_s=0.5)
    assert time.monotonic() - started < 60, "it was waited for"


def test_a_child_that_cannot_be_started_is_an_error(monkeypatch):
    monkeypatch.setattr(dry_run, "CHILD", ("/no/such/python",))
    with pytest.raises(ModelLoadError, match=r"expert\.gguf: no process can be started to try it \(No such file"):
        dry_run_models({"expert": DEMO / "expert.gguf"})


def test_nothing_is_loaded_in_this_process(tmp_path, made):
    dry_run_models({"expert": textless_model(tmp_path / "m.gguf")}, n_ctx=64)
    assert not made


def test_the_folder_that_it_is_asked_in_matters_to_paths_only(tmp_path, monkeypatch):
    textless_model(tmp_path / "m.gguf")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    adapter(Path("lora.gguf"))
    adapted = Placement(lora=((Path("lora.gguf"), 1.0),))
    assert dry_run_models({"expert": Path("m.gguf")}, n_ctx=64, placements={"expert": adapted})["expert"].rollback == "tail"


@pytest.mark.skipif(not hasattr(llama_cpp, "llama_n_rs_seq"), reason="this llama.cpp keeps no snapshots")
def test_a_model_without_recurrent_memory_keeps_no_snapshots(tmp_path):
    assert dry_run_models({"expert": textless_model(tmp_path / "m.gguf")}, n_ctx=64)["expert"].rollback == "tail"
