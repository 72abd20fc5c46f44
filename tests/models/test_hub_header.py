"""Headers come from a hub on this machine, and nothing else of a file does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from gguf import GGUFWriter
from gguf_files import CHATML, text_model
from local_hub import LocalHub

from speccascade_local.common.errors import FetchError, ModelLoadError
from speccascade_local.machine.dry_run import dry_run_models
from speccascade_local.models import hub_header
from speccascade_local.models.gguf_layout import layout_of
from speccascade_local.models.hub_header import fetch_headers
from speccascade_local.models.source import FileSource

TOKEN = "hf_" + "s3cr3t" * 5
PADDING = 3_000_000


def padded(path: Path, **options: object) -> bytes:
    """A model with much behind its header: a hub's answer is worth more than the header only where there is more."""
    data = text_model(path, chat_template=CHATML, **options).read_bytes()
    return data + bytes(PADDING)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("remote")
    files = {"sub/m.gguf": padded(folder / "m.gguf"), "wide.gguf": padded(folder / "w.gguf", n_vocab=60_000)}
    writer = GGUFWriter(folder / "big.gguf", "llama")
    writer.add_string("long", "x" * (5 << 20))
    writer.add_tensor("t", np.zeros(1 << 20, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files["big.gguf"] = (folder / "big.gguf").read_bytes()
    for i in (1, 2):
        files[f"s-{i:05}-of-00002.gguf"] = padded(folder / f"s{i}.gguf", seed=i)
    files["text.gguf"] = b"a text by the name of a model" * 1000
    files["cut.gguf"] = files["sub/m.gguf"][:3000]
    files["claims.gguf"] = b"GGUF\x03\0\0\0" + bytes(8) + b"\xff" * 8 + bytes(3_000_000)
    return files


@pytest.fixture
def hub(data: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with LocalHub({"me/models": data}) as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        yield hub


def source(name: str) -> FileSource:
    return FileSource(Path("not/here"), name, "me/models")


@pytest.mark.slow
def test_a_header_is_enough_for_a_dry_run_and_the_rest_stays_where_it_is(hub, data, tmp_path):
    path = fetch_headers(source("sub/m.gguf"), tmp_path)
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(data["sub/m.gguf"])
    assert path.stat().st_size == len(data["sub/m.gguf"])
    end = layout_of(whole).data_start
    assert path.read_bytes()[:end] == data["sub/m.gguf"][:end]
    assert hub.sent <= hub_header._FIRST_RANGE < len(data["sub/m.gguf"])
    facts, others = (dry_run_models({"expert": each})["expert"] for each in (path, whole))
    assert facts.tokenizer == others.tokenizer
    assert (facts.weights, facts.cache, facts.rollback, facts.chat_template) == (others.weights, others.cache, others.rollback, CHATML)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1 << 10, 1 << 16, 1 << 20])
def test_ranges_grow_until_the_header_is_whole_and_no_byte_comes_twice(hub, data, tmp_path, monkeypatch, first):
    monkeypatch.setattr(hub_header, "_FIRST_RANGE", first)
    come: list[int] = []
    path = fetch_headers(source("wide.gguf"), tmp_path, come.append)
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(data["wide.gguf"])
    layout = layout_of(whole)
    assert layout_of(path).tensors == layout.tensors
    assert layout.data_start > 1 << 20
    assert come == sorted(set(come))
    assert hub.sent == come[-1] < 2 * layout.data_start + first
    assert len(come) <= 16


@pytest.mark.slow
def test_a_header_longer_than_the_first_range_by_far_is_asked_for_at_once(hub, data, tmp_path):
    come: list[int] = []
    path = fetch_headers(source("big.gguf"), tmp_path, come.append)
    assert layout_of(path).values["long"] == "x" * (5 << 20)
    assert come[-1] < len(data["big.gguf"])


def test_every_shard_has_a_header(hub, tmp_path):
    path = fetch_headers(source("s-00001-of-00002.gguf"), tmp_path)
    assert path.name == "s-00001-of-00002.gguf"
    assert layout_of(path.with_name("s-00002-of-00002.gguf")).n_tensors == layout_of(path).n_tensors > 0


def test_a_server_without_ranges_is_refused_before_the_file_comes(hub, tmp_path):
    hub.without_range = True
    hub.pace = 0.05
    with pytest.raises(
        FetchError, match=r"m\.gguf of me/models: the hub knows no range requests and would send all \d+ bytes.*speccascade pull"
    ):
        fetch_headers(source("sub/m.gguf"), tmp_path)
    assert hub.sent < PADDING


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text.gguf", "does not begin with GGUF"),
        ("cut.gguf", "header cannot be read|cut off"),
        ("claims.gguf", "it claims 18446744073709551615 keys"),
    ],
)
def test_what_is_no_model_is_reported_from_its_first_bytes(hub, data, tmp_path, name, reason):
    with pytest.raises(ModelLoadError, match=reason):
        fetch_headers(source(name), tmp_path)
    assert hub.sent <= hub_header._FIRST_RANGE


def test_a_header_without_end_is_given_up(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_header, "_MAX_HEADER", 2 << 20)
    with pytest.raises(ModelLoadError, match=r"big\.gguf of me/models: its header is longer than 2097152 bytes"):
        fetch_headers(source("big.gguf"), tmp_path)
    assert hub.sent <= 2 << 20


def test_the_token_goes_to_the_hub_and_not_to_where_it_leads(hub, tmp_path, monkeypatch):
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch_headers(source("sub/m.gguf"), tmp_path)
    assert {token for _, path, token in hub.requests if path.startswith("/storage")} == {""}
    assert {token for _, path, token in hub.requests if not path.startswith("/storage")} == {TOKEN}


@pytest.mark.parametrize("trouble", ["unknown file", "unknown repository", "no token", "gated", "away"])
def test_what_goes_wrong_is_said_in_a_line(hub, tmp_path, monkeypatch, trouble):
    named = source("sub/m.gguf")
    if trouble == "unknown file":
        named, reason = source("n.gguf"), "has no file 'n.gguf'"
    elif trouble == "unknown repository":
        named, reason = FileSource(Path("x"), "m.gguf", "me/none"), "no such repository"
    elif trouble == "no token":
        hub.token, reason = TOKEN, "set HF_TOKEN"
    elif trouble == "gated":
        hub.gated, reason = {"me/models"}, "accepted its terms"
    else:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("time.sleep", lambda _: None)
        reason = "no connection"
    with pytest.raises(FetchError, match=reason):
        fetch_headers(named, tmp_path)


def test_a_connection_that_drops_is_an_error_and_no_header(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.drop_after = [1000] * 20
    with pytest.raises(FetchError, match=r"m\.gguf"):
        fetch_headers(source("sub/m.gguf"), tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_no_room_is_reported(hub, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "m.gguf").symlink_to("/dev/full")
    with pytest.raises(FetchError, match=r"m\.gguf cannot be written \(No space left"):
        fetch_headers(source("sub/m.gguf"), folder)
