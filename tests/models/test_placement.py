"""Where a model is put: what is allowed, what reaches llama.cpp, what a GPU that is not here would get."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import llama_cpp
import pytest
from gguf_files import adapter, text_model, textless_model
from hypothesis import given
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local.cli.options import ModelOptions
from speccascade_local.common.errors import SettingError
from speccascade_local.llama import parameters
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.devices import Device, devices
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.parameters import context_parameters, gpu_layers, model_parameters
from speccascade_local.llama.session import LlamaSession
from speccascade_local.machine import profile_cache
from speccascade_local.models.gguf_layout import TENSOR_TYPES
from speccascade_local.models.placement import CACHE_TYPES, Placement

placements = st.builds(
    Placement,
    gpu_layers=st.just("auto") | st.integers(-1, 1000),
    device=st.none() | st.text(),
    cache_type=st.sampled_from(sorted(CACHE_TYPES)),
    flash_attention=st.sampled_from(["auto", "on"]),
    lora=st.lists(st.tuples(st.sampled_from([Path("a.gguf"), Path("b/c.gguf")]), st.floats(-9, 9)), max_size=2).map(tuple),
    rpc=st.lists(st.sampled_from(["host:50052", "10.0.0.1:1"]), max_size=2, unique=True).map(tuple),
)


@given(placements)
def test_json_keeps_all_of_it(placement):
    assert Placement.from_dict(json.loads(json.dumps(placement.as_dict()))) == placement


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpu_layers": -2}, r"gpu_layers \(--gpu-layers\) is -2; .* from -1 to .*, or 'auto'"),
        ({"gpu_layers": "all"}, "is 'all'"),
        ({"gpu_layers": True}, "is True"),
        ({"cache_type": "q2"}, "is 'q2'; it must be one of f32, f16"),
        ({"flash_attention": "maybe"}, "is 'maybe'; it must be auto, on or off"),
        ({"flash_attention": "off", "cache_type": "q8_0"}, "a cache of type q8_0 needs flash attention"),
        ({"lora": ((Path("a.gguf"), float("nan")),)}, "the scale of the adapter a.gguf is nan"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(wrong, said):
    with pytest.raises(SettingError, match=said):
        Placement(**wrong)


def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = textless_model(tmp_path / "m.gguf")
    with pytest.raises(SettingError, match=r"device is 'CUDA9'; llama\.cpp has CPU here"):
        LlamaModel(path, placement=Placement(device="CUDA9"))
    with pytest.raises(SettingError, match="device is 'CUDA9'"):
        sc.load(drafter=path, expert=path, placement={"drafter": Placement(device="CUDA9")})
    model = LlamaModel(path, placement=Placement(device="CPU"))
    assert model.n_vocab == 96
    model.close()


def test_the_processor_is_a_device_with_memory():
    cpu = next(device for device in devices() if device.kind == "cpu")
    assert 0 < cpu.free <= cpu.total
    assert not cpu.is_gpu


@pytest.mark.parametrize("kind", sorted(CACHE_TYPES))
def test_every_type_of_cache_can_be_computed_with(tmp_path, kind, caplog):
    caplog.set_level("DEBUG")
    model = LlamaModel(text_model(tmp_path / "m.gguf", heads=1), placement=Placement(cache_type=kind))
    context = LlamaContext(model, n_ctx=64, n_threads=1)
    rows = LlamaSession(context).extend([5, 6, 7], 3)
    assert rows.shape == (3, model.n_vocab)
    assert f"K ({kind})" in caplog.text
    context.close()
    model.close()


@pytest.mark.parametrize(
    ("placement", "has_gpu", "flash", "ubatch"),
    [
        (Placement(), False, "DISABLED", 128),
        (Placement(), True, "AUTO", 512),
        (Placement(flash_attention="on"), False, "ENABLED", 512),
        (Placement(flash_attention="off"), True, "DISABLED", 128),
        (Placement(cache_type="q8_0"), False, "ENABLED", 512),
    ],
)
def test_flash_attention_is_on_where_it_is_asked_for_or_needed(monkeypatch, placement, has_gpu, flash, ubatch):
    monkeypatch.setattr(parameters, "has_gpu", lambda: has_gpu)
    params = context_parameters(placement, n_ctx=64)
    assert params.flash_attn_type == getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    assert params.n_ubatch == ubatch


@pytest.mark.parametrize(("asked", "has_gpu", "layers"), [("auto", True, -1), (7, True, 7), (7, False, 0), ("auto", False, 0)])
def test_layers_go_to_a_gpu_only_where_there_is_one(monkeypatch, asked, has_gpu, layers):
    monkeypatch.setattr(parameters, "has_gpu", lambda: has_gpu)
    assert gpu_layers(Placement(gpu_layers=asked)) == layers
    assert model_parameters(Placement(gpu_layers=asked)).n_gpu_layers == layers


def session(placement: Placement) -> SimpleNamespace:
    model = SimpleNamespace(path=Path("m.gguf"), placement=placement, n_bytes=10)
    return SimpleNamespace(model=model, n_ctx=100)


def test_a_profile_holds_for_one_placement(monkeypatch, tmp_path):
    monkeypatch.setattr(parameters, "has_gpu", lambda: True)
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    ways = [
        Placement(gpu_layers=0),
        Placement(gpu_layers=3),
        Placement(gpu_layers=0, device="CUDA1"),
        Placement(gpu_layers=0, cache_type="q8_0"),
        Placement(gpu_layers=0, flash_attention="on"),
        Placement(gpu_layers=0, lora=((tmp_path / "a", 1.0),)),
        Placement(gpu_layers=0, lora=((tmp_path / "b", 1.0),)),
        Placement(gpu_layers=0, rpc=("host:1",)),
    ]
    plain = session(ways[0])
    keys = [profile_cache.profile_key(plain, session(way), None) for way in ways] + [
        profile_cache.profile_key(session(ways[1]), plain, None)
    ]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(ways) + 1


def test_options_of_the_command_line_become_placements_by_role():
    assert set(ModelOptions().placements().values()) == {Placement()}
    given = ModelOptions(
        gpu_layers="20", cache_type="q8_0", expert_device="CUDA0", flash_attention="on", expert_lora=["a.gguf=0.5", "b.gguf"]
    )
    found = given.placements()
    lora = ((Path("a.gguf"), 0.5), (Path("b.gguf"), 1.0))
    assert found["expert"] == Placement(20, "CUDA0", "q8_0", "on", lora)
    assert found["drafter"] == Placement(20, None, "q8_0", "on")
    found = ModelOptions(gpu_layers="-1", drafter_gpu_layers="0", drafter_cache_type="f16", cache_type="q4_0").placements()
    assert (found["drafter"], found["expert"]) == (Placement(0, cache_type="f16"), Placement(-1, cache_type="q4_0"))
    for wrong in ({"gpu_layers": "many"}, {"drafter_lora": ["a.gguf=strong"]}, {"cache_type": "f17"}):
        with pytest.raises(SettingError):
            ModelOptions(**wrong).placements()


def test_a_quantized_cache_of_the_drafter_is_warned_of(tmp_path, caplog):
    path = text_model(tmp_path / "m.gguf", heads=1)
    short = Placement(cache_type="q8_0")
    for role, warned in (("expert", False), ("drafter", True)):
        caplog.clear()
        sc.load(drafter=path, expert=path, n_ctx=64, profile=False, placement={role: short}).close()
        assert ("quantized cache of the drafter" in caplog.text) == warned


def test_a_role_that_there_is_not_is_refused():
    with pytest.raises(SettingError, match="placement names the role 'experts'; roles are drafter and expert"):
        sc.load(placement={"experts": Placement()})


def test_only_gpus_are_gpus():
    assert [Device("x", "", kind, 0, 0).is_gpu for kind in ("gpu", "integrated gpu", "cpu", "accelerator")] == [True, True, False, False]


def test_parameters_have_the_ggml_type_of_each_cache_type():
    assert {name: TENSOR_TYPES[number][0].lower() for name, number in parameters._GGML_TYPES.items()} == {
        name: name for name in CACHE_TYPES
    }


@pytest.mark.slow
def test_what_models_yaml_says_of_a_model_holds_where_the_caller_says_nothing(tmp_path):
    for name in ("small", "large"):
        text_model(tmp_path / f"{name}.gguf", heads=1)
    adapter(tmp_path / "style.gguf")
    (tmp_path / "models.yaml").write_text(
        "pairs:\n  mine:\n    drafter: {file: small.gguf, cache_type: f32}\n"
        "    expert: {file: large.gguf, cache_type: q8_0, gpu_layers: 0, lora: {file: style.gguf, scale: 0.5}}\n"
    )
    options = {"models": tmp_path / "models.yaml", "n_ctx": 64, "n_threads": 1, "profile": False}
    with sc.load("mine", **options) as runtime:
        said = {role: model.placement for role, model in runtime.models.items()}
    assert said["drafter"].cache_type == "f32"
    assert (said["expert"].cache_type, said["expert"].gpu_layers) == ("q8_0", 0)
    assert said["expert"].lora == ((tmp_path / "style.gguf", 0.5),)
    with sc.load("mine", placement=Placement(cache_type="q4_0"), **options) as runtime:
        assert {model.placement.cache_type for model in runtime.models.values()} == {"q4_0"}
        assert runtime.models["expert"].placement.lora == said["expert"].lora
