"""Models are found where their owners keep them, each once, and nothing that is none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import text_model, textless_model

from speccascade_local.models import local
from speccascade_local.models.local import HUB, LLAMA_CPP, LM_STUDIO, OLLAMA, known_places, models_in

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS", "LLAMA_CACHE")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and no variable that leads elsewhere."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(local, "OLLAMA_SERVICE", tmp_path / "service")
    return tmp_path


def put(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return text_model(path, **options)


def other_file(path: Path, *, kind: str = "model", architecture: str = "llama", tensors: int = 1) -> Path:
    """A GGUF file that is no model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    for i in range(tensors):
        writer.add_tensor(f"t{i}", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def in_hub(cache: Path, owner: str, name: str, file: str, *, revision: str = "abc", **options: object) -> Path:
    """As the hub's client leaves it: a link in a snapshot to a blob."""
    repository = cache / f"models--{owner}--{name}"
    blob = put(repository / "blobs" / "0123", **options)
    link = repository / "snapshots" / revision / file
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def in_ollama(store: Path, name: str, digit: str, *, layers: list[dict] | None = None, model: Path | None = None) -> Path:
    digest = digit * 64
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, blob) if model else None
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    kinds = [("license", "f" * 64), ("model", digest), ("template", "e" * 64)]
    found = (
        layers if layers is not None else [{"mediaType": f"application/vnd.ollama.image.{k}", "digest": f"sha256:{d}"} for k, d in kinds]
    )
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": found}))
    return blob


def names(places: dict[str, Path]) -> list[str]:
    return [model.name for model in models_in(places).models]


# --------------------------------------------------------------------------- a folder


def test_a_folder_is_searched_to_its_depth_and_names_are_paths_in_it(tmp_path):
    put(tmp_path / "b.gguf", n_vocab=300)
    put(tmp_path / "deep" / "er" / "A.GGUF")
    textless_model(tmp_path / "ids.gguf")
    (tmp_path / "readme.md").write_text("GGUF")
    found = models_in({"here": tmp_path})
    assert [model.name for model in found.models] == ["b.gguf", "deep/er/A.GGUF", "ids.gguf"]
    assert [(model.architecture, model.tokenizer, model.n_tokens, model.place) for model in found.models] == [
        ("llama", "gpt2", 300, "here"),
        ("llama", "gpt2", 263, "here"),
        ("llama", "no_vocab", 0, "here"),
    ]
    assert all(model.path.is_file() for model in found.models)
    assert found.troubles == ()


def test_what_is_no_model_of_its_own_is_left_out(tmp_path):
    put(tmp_path / "mmproj-model-f16.gguf")
    put(tmp_path / "x.mmproj-Q8_0.gguf")
    other_file(tmp_path / "lora.gguf", kind="adapter")
    other_file(tmp_path / "matrix.gguf", kind="imatrix")
    other_file(tmp_path / "eyes.gguf", architecture="clip")
    other_file(tmp_path / "vocabulary.gguf", tensors=0)
    assert models_in({"here": tmp_path}) == local.LocalModels((), ())


def test_a_model_in_parts_is_its_first_and_all_of_them_must_be_there(tmp_path):
    for i in (1, 2, 3):
        put(tmp_path / f"big-{i:05}-of-00003.gguf")
        put(tmp_path / f"torn-{i:05}-of-00003.gguf")
    other_file(tmp_path / "empty-first-00001-of-00002.gguf", tensors=0)
    put(tmp_path / "empty-first-00002-of-00002.gguf")
    (tmp_path / "torn-00002-of-00003.gguf").unlink()
    found = models_in({"here": tmp_path})
    assert [model.name for model in found.models] == ["big-00001-of-00003.gguf", "empty-first-00001-of-00002.gguf"]
    (trouble,) = found.troubles
    assert "torn-00001-of-00003.gguf: 1 of its shards are missing, the first is torn-00002-of-00003.gguf" in trouble


def test_a_file_of_several_names_is_found_once(tmp_path):
    original = put(tmp_path / "z" / "model.gguf")
    (tmp_path / "a.gguf").symlink_to(original)
    (tmp_path / "again").symlink_to(tmp_path / "z")
    assert names({"here": tmp_path}) == ["a.gguf"]
    assert names({"one": tmp_path, "other": tmp_path / "z"}) == ["a.gguf"]


def test_links_that_lead_back_end_the_search_and_dead_ones_are_reported(tmp_path):
    put(tmp_path / "m" / "model.gguf")
    (tmp_path / "m" / "back").symlink_to(tmp_path)
    (tmp_path / "dead.gguf").symlink_to(tmp_path / "gone")
    (tmp_path / "ring.gguf").symlink_to(tmp_path / "ring.gguf")
    found = models_in({"here": tmp_path})
    assert [model.name for model in found.models] == ["m/model.gguf"]
    assert len(found.troubles) == 2
    assert "dead.gguf" in found.troubles[0]
    assert "ring.gguf" in found.troubles[1]


def test_what_cannot_be_read_is_reported_and_stops_nothing(tmp_path):
    put(tmp_path / "good.gguf")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("a text, by the name of a model")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "good.gguf").read_bytes()[:200])
    found = models_in({"here": tmp_path, "gone": tmp_path / "gone"})
    assert [model.name for model in found.models] == ["good.gguf"]
    assert [trouble.split(":")[0].split("/")[-1] for trouble in found.troubles] == ["cut.gguf", "empty.gguf", "text.gguf", "gone"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    put(tmp_path / "good.gguf")
    found = models_in({"here": tmp_path})
    assert [model.name for model in found.models] == ["good.gguf"]
    assert "pipe.gguf" in found.troubles[0]


# --------------------------------------------------------------------------- other programs


@pytest.mark.parametrize(
    ("variable", "value", "cache"),
    [
        (None, "", ".cache/huggingface/hub"),
        ("XDG_CACHE_HOME", "cache", "cache/huggingface/hub"),
        ("HF_HOME", "hf", "hf/hub"),
        ("HUGGINGFACE_HUB_CACHE", "old", "old"),
        ("HF_HUB_CACHE", "hub", "hub"),
    ],
)
def test_the_hubs_cache_is_where_its_variables_say(home, monkeypatch, variable, value, cache):
    if variable:
        monkeypatch.setenv(variable, str(home / value))
    link = in_hub(home / cache, "Qwen", "Qwen2.5-0.5B-GGUF", "sub/qwen-q4_k_m.gguf")
    assert known_places() == {HUB: home / cache}
    (model,) = models_in(known_places()).models
    assert (model.name, model.path, model.place) == ("Qwen/Qwen2.5-0.5B-GGUF/sub/qwen-q4_k_m.gguf", link, HUB)


def test_a_file_in_two_snapshots_of_the_hub_is_found_once_and_half_loaded_ones_are_not(home):
    cache = home / ".cache/huggingface/hub"
    first = in_hub(cache, "a", "b-c", "m.gguf", revision="1")
    second = cache / "models--a--b-c" / "snapshots" / "2" / "m.gguf"
    second.parent.mkdir()
    second.symlink_to(os.path.realpath(first))
    (cache / "models--a--b-c" / "blobs" / "99.incomplete").write_bytes(b"GGUF")
    found = models_in(known_places())
    assert [model.name for model in found.models] == ["a/b-c/m.gguf"]
    assert found.troubles == ()


@pytest.mark.parametrize("folder", [".lmstudio/models", ".cache/lm-studio/models"])
def test_lm_studios_folder_now_and_before(home, folder):
    put(home / folder / "bartowski" / "Llama-3.2-1B-GGUF" / "llama.gguf")
    places = known_places()
    assert places == {LM_STUDIO: home / folder}
    assert names(places) == ["bartowski/Llama-3.2-1B-GGUF/llama.gguf"]


def test_lm_studios_folder_by_its_pointer_and_by_its_settings(home):
    put(home / "there" / "models" / "o" / "n" / "m.gguf")
    (home / ".lmstudio-home-pointer").write_text(f"{home / 'there'}\n")
    assert known_places() == {LM_STUDIO: home / "there" / "models"}
    put(home / "elsewhere" / "o" / "n" / "m.gguf")
    (home / "there" / "settings.json").write_text(json.dumps({"downloadsFolder": str(home / "elsewhere")}))
    assert known_places() == {LM_STUDIO: home / "elsewhere"}
    for damaged in ("[", "[]", '{"downloadsFolder": 3}', "{}"):
        (home / "there" / "settings.json").write_text(damaged)
        assert known_places() == {LM_STUDIO: home / "there" / "models"}


def test_ollamas_models_are_named_as_it_names_them(home, monkeypatch):
    store = home / "ollama"
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    model, other = put(home / "m.gguf"), put(home / "n.gguf", seed=1)
    blob = in_ollama(store, "registry.ollama.ai/library/llama3.2/1b", "a", model=model)
    in_ollama(store, "registry.ollama.ai/someone/qwen/latest", "b", model=other)
    in_ollama(store, "hf.co/bartowski/Llama-3.2-GGUF/Q4_K_M", "a")
    in_ollama(store, "registry.ollama.ai/library/pictures/1b", "c", layers=[{"mediaType": "application/vnd.ollama.image.projector"}])
    found = models_in(known_places())
    assert [(model.name, model.place) for model in found.models] == [
        ("hf.co/bartowski/Llama-3.2-GGUF:Q4_K_M", OLLAMA),
        ("someone/qwen:latest", OLLAMA),
    ]
    assert found.models[0].path == blob
    shutil.rmtree(store / "manifests" / "hf.co")
    assert [model.name for model in models_in(known_places()).models] == ["llama3.2:1b", "someone/qwen:latest"]
    assert found.troubles == ()


def test_ollamas_damaged_manifests_are_reported_and_never_lead_out_of_its_folder(home, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(home))
    put(home / "secret.gguf")
    layer = {"mediaType": "application/vnd.ollama.image.model"}
    in_ollama(home, "r/library/out/1", "a", layers=[{**layer, "digest": "sha256:/../../secret.gguf"}])
    in_ollama(home, "r/library/gone/1", "d")
    in_ollama(home, "r/library/odd/1", "b", layers=[[]])
    for name, text in (("list", "[1]"), ("half", "{"), ("binary", "\ud800")):
        path = home / "manifests/r/library" / name / "1"
        path.parent.mkdir(parents=True)
        path.write_bytes(text.encode(errors="surrogatepass"))
    (home / "manifests/r/library/.DS_Store").touch()
    (home / "manifests/r/library/odd/.DS_Store").touch()
    found = models_in(known_places())
    assert found.models == ()
    assert len(found.troubles) == 6
    assert all("not one of Ollama's manifests" in trouble for trouble in found.troubles if "sha256-dd" not in trouble)


@pytest.mark.parametrize("variable", ["LLAMA_CACHE", "XDG_CACHE_HOME", None])
def test_llama_cpps_own_cache(home, monkeypatch, variable):
    monkeypatch.setattr("sys.platform", "linux")
    folder = {"LLAMA_CACHE": home / "x", "XDG_CACHE_HOME": home / "x" / "llama.cpp", None: home / ".cache" / "llama.cpp"}[variable]
    if variable:
        monkeypatch.setenv(variable, str(home / "x"))
    put(folder / "ggml-org_model.gguf")
    assert known_places() == {LLAMA_CPP: folder}
    assert names(known_places()) == ["ggml-org_model.gguf"]


def test_ollamas_service_keeps_its_own(home):
    in_ollama(home / "service", "registry.ollama.ai/library/llama3.2/1b", "a", model=put(home / "m.gguf"))
    assert names(known_places()) == ["llama3.2:1b"]
    (home / ".ollama" / "models").mkdir(parents=True)
    assert known_places() == {OLLAMA: home / ".ollama" / "models"}


def test_places_that_are_not_there_are_none(home):
    assert known_places() == {}


def test_a_place_that_may_not_be_looked_into_is_reported(home, monkeypatch):
    folder = home / "closed"
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    real = os.stat

    def stat(path, *args, **kwargs):
        if str(path).startswith(str(folder)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)  # root may look anywhere
    assert known_places() == {OLLAMA: folder}
