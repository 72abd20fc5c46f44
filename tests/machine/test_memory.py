"""What a pair needs is what it takes, and what is advised where it does not fit, fits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import llama_cpp
import psutil
import pytest
from gguf_files import hollow_model, shaped_model, text_model, textless_model
from hypothesis import assume, given
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local.common.errors import ModelLoadError, SettingError
from speccascade_local.llama.devices import Device
from speccascade_local.llama.parameters import model_parameters
from speccascade_local.machine import hardware
from speccascade_local.machine.dry_run import ModelPlan, TokenizerFacts
from speccascade_local.machine.memory import choose_layers, free_memory, layers_that_fit, memory_need, require_fit
from speccascade_local.models.gguf_header import Layers
from speccascade_local.models.placement import Placement
from speccascade_local.runtime import load

GROWTH = Path(__file__).parents[1] / "support" / "memory_growth.py"
NO_TEXT = TokenizerFacts(0, "", None, None, False, False, (), {})


def dry_run_of(layers: Layers, *, cache: int = 4000, n_ctx: int = 1000, recurrent: int = 0, gpu: int = 0, **changed) -> ModelPlan:
    facts = {
        "path": Path("m.gguf"),
        "n_ctx": n_ctx,
        "architecture": "llama",
        "description": "",
        "n_layers": len(layers.blocks),
        "n_vocab": 10,
        "n_ctx_train": 10**6,
        "n_parameters": 1,
        "n_experts": 0,
        "weights": layers.input + sum(layers.blocks) + layers.output,
        "cache": cache,
        "recurrent": recurrent,
        "compute": {"CPU": 50, "CUDA0": gpu} if gpu else {"CPU": 50},
        "output": 30,
        "other": 20,
        "rollback": "tail",
        "refused": None,
        "chat_template": None,
        "tokenizer": NO_TEXT,
    }
    return ModelPlan(**{**facts, **changed})


sizes = st.integers(0, 10_000)
all_layers = st.builds(Layers, sizes, st.lists(sizes, min_size=1, max_size=40).map(tuple), sizes)


@given(all_layers, sizes, sizes, st.integers(0, 500), st.integers(-1, 45), st.integers(1, 4000), st.integers(1, 7))
def test_nothing_is_lost_between_the_two_memories(layers, cache, recurrent, gpu, count, n_ctx, timelines):
    model = dry_run_of(layers, cache=cache, recurrent=recurrent, gpu=gpu)
    alone, split = memory_need(model, n_ctx, timelines=timelines), memory_need(model, n_ctx, layers, count, timelines)
    for part in ("cache", "recurrent state", "computing", "logits"):
        assert split.own.get(part, 0) + split.gpu.get(part, 0) == alone.own[part]
    assert split.own["weights"] + split.gpu.get("weights", 0) >= alone.own["weights"], "a tied embedding is held twice"
    assert (split.gpu_bytes > 0) <= (count != 0)


@pytest.mark.parametrize("timelines", [2, 7])
def test_each_text_needs_a_memory_of_its_own_and_the_weights_are_there_once(timelines):
    model = dry_run_of(LAYERS["expert"], recurrent=300)
    one, several = memory_need(model, 1000).own, memory_need(model, 1000, timelines=timelines).own
    assert {part for part, size in several.items() if size == timelines * one[part] > 0} >= {"cache", "recurrent state"}
    assert {part: several[part] for part in ("weights", "computing")} == {part: one[part] for part in ("weights", "computing")}


def test_a_context_that_fits_one_text_is_refused_for_several(tmp_path, monkeypatch):
    path = hollow_model(tmp_path / "large.gguf", width=4096, layers=8, ffn=4096)
    monkeypatch.setattr(load, "free_memory", lambda: 2_600_000_000)
    monkeypatch.setattr(load, "LlamaModel", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))  # it would be loaded now
    with pytest.raises(KeyboardInterrupt):
        sc.load(drafter="ngram", expert=path, n_ctx=2048)
    with pytest.raises(ModelLoadError, match="cache"):
        sc.load(drafter="ngram", expert=path, n_ctx=2048, timelines=7)
    with pytest.raises(SettingError, match="timelines is 8"):
        sc.load(drafter="ngram", expert=path, timelines=8)


@given(all_layers, sizes, st.integers(0, 500), st.integers(0, 60_000))
def test_as_many_layers_as_fit_and_no_more(layers, cache, gpu, free):
    model = dry_run_of(layers, cache=cache, gpu=gpu)
    count = layers_that_fit(model, 1000, layers, free)
    assert -1 <= count <= len(layers.blocks)
    if count:
        assert memory_need(model, 1000, layers, count).gpu_bytes <= free
    if count != -1:
        assert memory_need(model, 1000, layers, count + 1).gpu_bytes > free * 0.95


def gpus(*free: int) -> list[Device]:
    return [Device("CPU", "", "cpu", 10**12, 10**12), *(Device(f"CUDA{i}", "", "gpu", size, size) for i, size in enumerate(free))]


SMALL, LARGE = Layers(100, (100,) * 8, 100), Layers(1000, (1000,) * 20, 1000)
PAIR = {"drafter": dry_run_of(SMALL, cache=0), "expert": dry_run_of(LARGE, cache=0)}
LAYERS = {"drafter": SMALL, "expert": LARGE}


@pytest.mark.parametrize(
    ("free", "drafter", "expert"),
    [
        ([], 0, 0),
        ([10**9], -1, -1),
        ([11_000], -1, 9),  # 900 of the drafter; of what is left 95 %
        ([900], 8, 0),
        ([50], 0, 0),
        ([5_500, 5_500], -1, 9),  # llama.cpp spreads over both
    ],
)
def test_the_drafter_goes_first_and_the_expert_takes_what_is_left(free, drafter, expert):
    found = choose_layers(dict.fromkeys(PAIR, Placement()), PAIR, LAYERS, 1000, gpus(*free))
    assert (found["drafter"].gpu_layers, found["expert"].gpu_layers) == (drafter, expert)


def test_weights_that_are_kept_in_another_order_are_not_mapped_too():
    models = {**PAIR, "drafter": replace(PAIR["drafter"], reordered=True)}
    found = choose_layers(dict.fromkeys(PAIR, Placement()), models, {}, 1000, gpus())
    assert (found["drafter"].mapped, found["expert"].mapped) == (False, True)
    modes = [model_parameters(each).load_mode for each in (found["drafter"], found["expert"])]
    assert modes == [llama_cpp.LLAMA_LOAD_MODE_NONE, llama_cpp.llama_model_default_params().load_mode]


def test_layers_that_were_asked_for_are_kept_and_counted_first():
    asked = {"drafter": Placement(), "expert": Placement(gpu_layers=11)}
    found = choose_layers(asked, PAIR, LAYERS, 1000, gpus(11_500))
    assert (found["drafter"].gpu_layers, found["expert"].gpu_layers) == (4, 11)


def test_a_device_of_its_own_leaves_the_others_alone():
    asked = {"drafter": Placement(device="CUDA1"), "expert": Placement(device="CUDA0")}
    found = choose_layers(asked, PAIR, LAYERS, 1000, gpus(5_500, 500))
    assert (found["drafter"].gpu_layers, found["expert"].gpu_layers) == (4, 5)
    found = choose_layers({**asked, "drafter": Placement(device="CPU")}, PAIR, LAYERS, 1000, gpus(5_500, 500))
    assert (found["drafter"].gpu_layers, found["expert"].gpu_layers) == (0, 5)


def test_too_many_layers_for_a_gpu_are_refused():
    placements = {"drafter": Placement(gpu_layers=0), "expert": Placement(gpu_layers=-1)}
    needs = {role: memory_need(PAIR[role], 1000, LAYERS[role], placements[role].gpu_layers) for role in PAIR}
    require_fit(needs, placements, 1000, 10**9, gpus(21_000))
    with pytest.raises(ModelLoadError, match=r"need 0\.02 MB of memory on CUDA0 .*--gpu-layers auto"):
        require_fit(needs, placements, 1000, 10**9, gpus(20_999))


@given(all_layers, st.integers(1, 10_000), st.integers(256, 100_000), st.integers(0, 2 * 10**9))
def test_what_is_advised_fits(layers, each_token, n_ctx, free):
    cache = each_token * n_ctx
    model = dry_run_of(layers, cache=cache, n_ctx=n_ctx)
    need, placements = memory_need(model, n_ctx), {"expert": Placement()}
    assume(need.own_bytes > free)
    with pytest.raises(ModelLoadError) as error:
        require_fit({"expert": need}, placements, n_ctx, free, [])
    text = str(error.value)
    context = re.search(r"--ctx (\d+)", text)
    if context:
        assert 256 <= int(context[1]) < n_ctx
        assert memory_need(model, int(context[1])).own_bytes <= free
        assert memory_need(model, int(context[1]) + 256).own_bytes > free
    if "--cache-type q8_0" in text:
        assert memory_need(replace(model, cache=round(cache * 17 / 32)), n_ctx).own_bytes <= free + 1
    if "smaller models" in text:
        assert memory_need(model, 256).own_bytes > free


def test_a_pair_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path, monkeypatch, made):
    path = text_model(tmp_path / "m.gguf")
    asked = {"drafter": path, "expert": path, "profile": False, "n_ctx": 2048}
    monkeypatch.setattr(load, "free_memory", lambda: 2_000_000)
    with pytest.raises(ModelLoadError, match=r"these models need \S+ [MG]B of memory at a context of 2048 tokens, and 2\.00 MB are free"):
        sc.load(**asked)
    assert not made
    sc.load(**asked, check_memory=False).close()
    monkeypatch.setattr(load, "free_memory", lambda: 10**9)
    sc.load(**asked).close()


def test_a_model_of_nearly_a_terabyte_is_refused_at_once(tmp_path, made):
    path = hollow_model(tmp_path / "huge.gguf", width=16384, layers=100, ffn=65536)
    with pytest.raises(
        ModelLoadError, match=r"these models need 18\d\d\.\d\d GB of memory at a context of 8192 tokens.* What would fit: smaller models"
    ):
        sc.load(drafter=path, expert=path, n_ctx=8192)
    assert not made


@pytest.mark.slow
def test_a_context_that_does_not_fit_names_one_that_does(tmp_path, monkeypatch):
    path = hollow_model(tmp_path / "large.gguf", width=4096, layers=8, ffn=4096)
    monkeypatch.setattr(load, "free_memory", lambda: 2_600_000_000)
    with pytest.raises(ModelLoadError) as error:
        sc.load(drafter="ngram", expert=path, n_ctx=8192)
    largest = int(re.search(r"a context of (\d+) tokens \(--ctx \1\)", str(error.value))[1])
    assert 1024 <= largest < 8192
    monkeypatch.setattr(load, "LlamaModel", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))  # it would be loaded now
    with pytest.raises(KeyboardInterrupt):
        sc.load(drafter="ngram", expert=path, n_ctx=largest)


@pytest.mark.slow
def test_more_context_than_a_model_was_trained_for_is_refused_with_the_size(tmp_path, made):
    large, small = textless_model(tmp_path / "l.gguf", n_ctx_train=512), textless_model(tmp_path / "s.gguf", n_ctx_train=300)
    with pytest.raises(sc.SettingError, match=r"n_ctx \(--ctx\) is 301; .* from 1 to 300, which is what the models were trained for"):
        sc.load(drafter=small, expert=large, n_ctx=301)
    assert not made
    with sc.load(drafter=small, expert=large, profile=False) as runtime:
        assert runtime.n_ctx == 300


def test_a_containers_limit_counts(tmp_path):
    assert 0 < free_memory() <= psutil.virtual_memory().total
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    (group / "memory.current").write_text("700\n")
    (group / "memory.stat").write_text("anon 300\ninactive_file 100\n")
    (group / "memory.max").write_text("1000\n")
    assert hardware.memory(tmp_path).available == 400
    (group / "memory.current").write_text("5000\n")
    assert hardware.memory(tmp_path).available == 0
    (group / "memory.max").write_text("max\n")
    assert hardware.memory(tmp_path).available > 400


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "n_ctx"),
    [
        ({"width": 512, "layers": 6, "ffn": 1536, "vocab": 1000}, 1024),
        ({"width": 256, "layers": 4, "ffn": 512, "vocab": 60_000}, 1024),
        ({"width": 768, "layers": 3, "ffn": 2048, "vocab": 5_000}, 512),
        ({"width": 384, "layers": 8, "ffn": 1024, "vocab": 20_000}, 2048),
    ],
)
def test_the_need_is_what_a_process_grows_by(tmp_path, shape, n_ctx):
    """Within a tenth, of models of 20 to 130 MB, their contexts full."""
    path = shaped_model(tmp_path / "m.gguf", **shape)
    ran = subprocess.run([sys.executable, GROWTH, path, str(n_ctx)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["need"] == pytest.approx(found["grown"], rel=0.1), found
