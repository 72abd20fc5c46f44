"""``speccascade pull`` against a hub on this machine: what arrives, what is asked, and what can go wrong on the way."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.file_download
import local_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_hub import LocalHub

from speccascade_local.cli.verbs import pull as verb
from speccascade_local.common.errors import FetchError
from speccascade_local.models import catalog, hub_download

TOKEN = "hf_" + "s3cr3t" * 5
PULL = [sys.executable, "-m", "speccascade_local", "pull"]
DATA = {
    "sub/small-Q8_0.gguf": random.Random(1).randbytes(700_000),
    "big-00001-of-00002.gguf": random.Random(2).randbytes(500_000),
    "big-00002-of-00002.gguf": random.Random(3).randbytes(300_000),
    "adapter.bin": b"adapter",
}
MODELS = """pairs:
  p:
    drafter: {file: sub/small-Q8_0.gguf, hub: me/models}
    expert: {file: big-00001-of-00002.gguf, hub: me/models, lora: {file: adapter.bin, hub: me/models, scale: 0.5}}
"""


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub({"me/models": DATA}) as hub:
        yield hub


@pytest.fixture
def here(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A folder with a models.yaml, an empty cache, and the library set to this hub and to small pieces and no pauses."""
    models = tmp_path / "models.yaml"
    models.write_text(MODELS)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    constants = huggingface_hub.constants
    for name, value in (
        ("ENDPOINT", hub.address),
        ("HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"),
        ("DOWNLOAD_CHUNK_SIZE", 1 << 16),
        ("HF_TOKEN_PATH", str(tmp_path / "hf" / "token")),
        ("HF_HUB_DISABLE_TELEMETRY", True),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    return SimpleNamespace(models=models, cache=tmp_path / "hf" / "hub", pair=lambda: catalog.find("p", models), folder=tmp_path)


def pull(here: SimpleNamespace, *revision: str) -> None:
    verb.run("p", list(revision), here.models)


def refused(here: SimpleNamespace, *revision: str) -> str:
    with pytest.raises(FetchError) as error:
        pull(here, *revision)
    assert TOKEN not in str(error.value)
    return str(error.value)


def contents(here: SimpleNamespace) -> list[bytes]:
    models = here.pair().models
    return [path.read_bytes() for model in models.values() for source in model.sources for path in source.parts]


def partials(here: SimpleNamespace) -> list[Path]:
    return sorted(here.cache.rglob("*.incomplete"))


# --------------------------------------------------------------------------- what arrives


def test_both_models_all_shards_and_the_adapter_arrive_as_they_are_on_the_hub(here, hub, capsys):
    assert len(here.pair().missing) == 4
    pull(here)
    assert contents(here) == list(DATA.values())
    assert here.pair().missing == []
    assert hub.sent == sum(len(data) for name, data in DATA.items() if name.endswith(".gguf"))
    out = capsys.readouterr()
    assert [Path(line).read_bytes() for line in out.out.splitlines()] == list(DATA.values())
    assert partials(here) == []


def test_the_library_finds_what_was_pulled_without_a_network(here, hub, monkeypatch):
    pull(here)
    hub.broken = 500
    for name, data in DATA.items():
        found = huggingface_hub.hf_hub_download("me/models", name, cache_dir=here.cache, local_files_only=True)
        assert Path(found).read_bytes() == data


def test_where_there_are_no_links_the_files_themselves_are_put_in_place(here, hub, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    pull(here)
    assert contents(here) == list(DATA.values())
    assert not here.pair().drafter.is_symlink()
    asked = len(hub.requests)
    pull(here)
    assert len(hub.requests) == asked
    found = huggingface_hub.hf_hub_download("me/models", "adapter.bin", cache_dir=here.cache, local_files_only=True)
    assert Path(found).read_bytes() == b"adapter"


def test_what_the_library_pulled_is_there_for_the_catalog(here):
    for name in DATA:
        huggingface_hub.hf_hub_download("me/models", name, cache_dir=here.cache)
    assert here.pair().missing == []


def test_what_is_there_is_not_asked_for_again(here, hub, capsys):
    pull(here)
    asked, sent = len(hub.requests), hub.sent
    pull(here)
    assert (len(hub.requests), hub.sent) == (asked, sent)
    assert "all files are here already" in capsys.readouterr().err


def test_only_what_is_missing_is_fetched(here, hub):
    pull(here)
    lost = here.pair().models["expert"].parts[1]
    lost.resolve().unlink()
    assert here.pair().missing == [lost]
    hub.sent = 0
    pull(here)
    assert contents(here) == list(DATA.values())
    assert hub.sent == len(DATA["big-00002-of-00002.gguf"])


def test_the_token_goes_to_the_hub_and_to_nobody_else(here, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    pull(here)
    assert contents(here) == list(DATA.values())
    by_place = {(path.startswith("/storage"), token) for _, path, token in hub.requests}
    assert by_place == {(False, TOKEN), (True, "")}
    out = capsys.readouterr()
    assert TOKEN not in out.out + out.err


# --------------------------------------------------------------------------- revisions


def test_a_revision_in_models_yaml_is_the_one_that_is_fetched_and_used(here, hub):
    old = hub.commit("me/models")
    here.models.write_text(MODELS.replace("file: sub/", f"revision: {old}, file: sub/"))
    pull(here)
    assert here.pair().drafter.parts[-3] == old
    here.models.write_text(MODELS.replace("file: sub/", "revision: v9, file: sub/"))
    assert "has no revision 'v9' (404)" in refused(here)


def test_a_newer_main_is_fetched_when_main_is_asked_for_and_then_used(here, hub):
    pull(here)
    hub.repositories["me/models"]["sub/small-Q8_0.gguf"] = b"new" * 1000
    pull(here)
    assert here.pair().drafter.read_bytes() == DATA["sub/small-Q8_0.gguf"]
    pull(here, "main")
    assert here.pair().drafter.read_bytes() == b"new" * 1000
    assert here.pair().missing == []


def test_another_revision_is_fetched_beside_and_said_not_to_be_the_one_in_use(here, hub, capsys):
    pull(here)
    first = here.pair().drafter
    hub.repositories["me/models"]["sub/small-Q8_0.gguf"] = b"new" * 1000
    commit = hub.commit("me/models")
    capsys.readouterr()
    pull(here, "drafter=v1")
    out = capsys.readouterr()
    assert out.out.splitlines()[0].endswith(f"{commit}/sub/small-Q8_0.gguf")
    assert f"small-Q8_0.gguf: other verbs use the revision in models.yaml, or main; to use this one, add revision: {commit}" in out.err
    assert here.pair().drafter == first


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("small=v1", "names the role 'small'; this pair has drafter, expert"),
        ("../../x", "does not name a branch"),
        ("", "does not name a branch"),
        ("expert=", "does not name a branch"),
    ],
)
def test_a_revision_that_cannot_be_is_refused_before_the_hub_is_asked(here, hub, revision, said):
    with pytest.raises(verb.SettingError, match=said):
        pull(here, revision)
    assert hub.requests == []


# --------------------------------------------------------------------------- what goes wrong on the way


def test_a_dropped_connection_is_taken_up_where_it_broke(here, hub):
    hub.drop_after = [200_000, 300_000]
    pull(here)
    assert contents(here) == list(DATA.values())
    assert hub.sent < sum(map(len, DATA.values())) + 2 * (1 << 16)  # what was under way twice at most


def test_a_drop_loses_little_of_a_large_file(here, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10 << 20)  # as it is
    hub.repositories["me/models"]["sub/small-Q8_0.gguf"] = data = random.Random(6).randbytes(9_000_000)
    hub.drop_after = [8_000_000]
    pull(here)
    assert here.pair().drafter.read_bytes() == data
    assert hub.sent < len(data) + 800_000 + (1 << 20)
    assert huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE == 10 << 20


def test_a_size_that_is_not_the_one_in_models_yaml_is_reported(here, capsys):
    here.models.write_text(MODELS.replace("file: sub/", "size: 700001, file: sub/").replace("file: big", "size: 800000, file: big"))
    pull(here)
    told = capsys.readouterr().err
    assert "sub/small-Q8_0.gguf: 700,000 bytes on the hub, but 700,001 in models.yaml; fetching the hub's" in told
    assert told.count("in models.yaml; fetching") == 1


def test_a_second_run_goes_on_where_the_first_one_stopped(here, hub):
    hub.drop_after = [200_000, *[0] * 6]
    message = refused(here)
    come = partials(here)[0].stat().st_size
    assert come == 196_608  # whole pieces
    assert "196.6 kB of 700.0 kB are kept: the next run resumes there" in message
    assert here.pair().drafter in here.pair().missing
    hub.sent, hub.drop_after = 0, []
    pull(here)
    assert contents(here) == list(DATA.values())
    assert hub.sent == sum(len(data) for name, data in DATA.items() if name.endswith(".gguf")) - come


def test_a_server_without_ranges_is_read_from_the_start(here, hub):
    hub.drop_after = [200_000]
    hub.without_range = True
    pull(here)
    assert contents(here) == list(DATA.values())


@pytest.mark.parametrize("left", [b"x" * 100, b"x" * 900_000], ids=["too short", "too long"])
def test_a_wrong_partial_file_is_never_used(here, hub, left):
    pull(here)
    blob = here.pair().drafter.resolve()
    blob.unlink()
    blob.with_name(blob.name + ".incomplete").write_bytes(left)
    if len(left) < 700_000:
        assert "it was removed" in refused(here)
        assert partials(here) == []
    pull(here)
    assert here.pair().drafter.read_bytes() == DATA["sub/small-Q8_0.gguf"]


@pytest.mark.parametrize("served", [random.Random(4).randbytes(700_000), DATA["sub/small-Q8_0.gguf"][:-1] + b"?"], ids=["all", "one byte"])
def test_a_file_with_another_hash_is_removed_and_not_used(here, hub, served):
    hub.served_instead["small-Q8_0.gguf"] = served
    message = refused(here)
    digest, expected = (hashlib.sha256(data).hexdigest() for data in (served, DATA["sub/small-Q8_0.gguf"]))
    assert f"the SHA-256 {digest}, and the hub says {expected}; it was removed" in message
    assert here.pair().drafter in here.pair().missing
    assert partials(here) == []
    assert not list(here.cache.rglob("small-Q8_0.gguf"))
    hub.served_instead.clear()
    pull(here)
    assert contents(here) == list(DATA.values())


def test_a_file_of_another_length_is_not_used(here, hub):
    hub.served_instead["small-Q8_0.gguf"] = DATA["sub/small-Q8_0.gguf"] + b"more"
    refused(here)
    assert here.pair().drafter in here.pair().missing


def test_what_there_is_no_room_for_is_refused_before_anything_is_fetched(here, hub, monkeypatch):
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_400_000))
    assert "1.4 MB are free there, and 1.5 MB are needed; make room, or name another folder with HF_HOME" in refused(here)
    assert hub.sent == 0
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_600_000))
    pull(here)


def test_what_has_come_already_needs_no_room_again(here, hub, monkeypatch):
    hub.drop_after = [200_000, *[0] * 6]
    refused(here)
    hub.drop_after = []
    need = sum(map(len, DATA.values())) - partials(here)[0].stat().st_size
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=need - 1))
    assert "make room" in refused(here)
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=need))
    pull(here)


@pytest.mark.slow
def test_a_disk_that_fills_up_on_the_way_is_reported_and_what_has_come_stays(here, hub):
    limited = (
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); sys.argv = {[*PULL[2:], 'p']!r}; "
    )
    done = run([sys.executable, "-c", limited + "runpy.run_module('speccascade_local', run_name='__main__')"], here)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(
        r"error: .*no room for sub/small-Q8_0\.gguf \(File too large\); make room, .*300\.0 kB of 700\.0 kB are kept",
        done.stderr,
    )
    assert len(done.stderr.splitlines()) == 2  # what it fetches, and the error
    pull(here)
    assert contents(here) == list(DATA.values())


def test_a_cache_that_cannot_be_written_is_reported(here, hub, monkeypatch):
    (here.folder / "file").write_text("in the way")
    monkeypatch.setenv("HF_HOME", str(here.folder / "file" / "hf"))
    assert "cannot be written (Not a directory); change that, or name another folder with HF_HOME" in refused(here)
    assert hub.sent == 0


def test_a_file_too_large_for_plain_http_is_reported_with_what_fetches_it(here, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "MAX_HTTP_DOWNLOAD_SIZE", 600_000)
    assert "sub/small-Q8_0.gguf of me/models has 700.0 kB" in refused(here)
    assert refused(here).endswith("fetch it with the hub's own tool, which uses the same cache: hf download me/models sub/small-Q8_0.gguf")
    assert hub.sent == 0


def test_two_at_once_do_not_write_into_one_file(here, hub):
    hub.pace = 0.01
    file = hub_download.describe_files(here.pair().models["drafter"].sources)[0]
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda _: hub_download.fetch(file, lambda doing, done: None), range(2)))
    assert file.path.read_bytes() == DATA["sub/small-Q8_0.gguf"]
    assert hub.sent == len(DATA["sub/small-Q8_0.gguf"])


@pytest.mark.slow
def test_ctrl_c_keeps_what_has_come_for_the_next_run(here, hub):
    hub.repositories["me/models"]["sub/small-Q8_0.gguf"] = data = random.Random(5).randbytes(25_000_000)
    hub.stand_still_after = 22_000_000
    process = subprocess.Popen([*PULL, "p"], cwd=here.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert hub.standing_still.wait(60)
    while not partials(here) or partials(here)[0].stat().st_size < 10_000_000:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "interrupted; the same command resumes the download" in err
    assert "Traceback" not in err
    come, hub.sent = partials(here)[0].stat().st_size, 0
    pull(here)
    assert here.pair().drafter.read_bytes() == data
    assert hub.sent == len(data) - come + 800_000


# --------------------------------------------------------------------------- what the hub refuses


def test_a_refused_token_is_told_and_never_shown(here, hub, monkeypatch):
    hub.token = "another"
    assert "me/models: no such repository on http://127.0.0.1" in refused(here)
    assert "or set HF_TOKEN to a token that may read it" in refused(here)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "(401), or a private one; check its name, or whether your token may read it" in refused(here)


def test_a_token_that_no_header_can_carry_is_not_shown_either(here, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN + "\x01é")
    refused(here)


def test_a_gated_repository_is_reported_with_what_to_do(here, hub, monkeypatch):
    hub.gated = {"me/models"}
    message = refused(here)
    assert "only to those who accepted its terms (403)" in message
    assert f"see {hub.address}/me/models, accept them, make a token and set HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "accept them with the account of your token" in refused(here)


def test_a_repository_that_is_not_there_is_named(here):
    here.models.write_text(MODELS.replace("me/models", "me/nothing"))
    assert "me/nothing: no such repository" in refused(here)


def test_a_file_that_is_not_there_is_reported_with_the_nearest(here, hub):
    here.models.write_text(MODELS.replace("sub/small-Q8_0", "sub/small-Q4_0"))
    message = refused(here)
    assert "me/models has no file 'sub/small-Q4_0.gguf' at revision main; nearest there: sub/small-Q8_0.gguf" in message
    assert hub.sent == 0
    here.models.write_text(MODELS.replace("00001-of-00002", "00001-of-00003"))
    assert "has no file 'big-00001-of-00003.gguf'" in refused(here)


def test_a_hub_that_is_out_of_order_is_reported(here, hub):
    hub.broken = 503
    assert "the hub answered 503; try again later" in refused(here)


def test_no_network_is_reported(here, hub, monkeypatch):
    gone = "http://127.0.0.1:9"
    for name, value in (("ENDPOINT", gone), ("HUGGINGFACE_CO_URL_TEMPLATE", gone + "/{repo_id}/resolve/{revision}/{filename}")):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    assert re.search(r"me/models: no connection to http://127\.0\.0\.1:9 \(.*\); check the network", refused(here))


@pytest.mark.slow
def test_offline_mode_is_respected(here):
    done = run([*PULL, "p"], here, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set, so nothing is fetched; unset it first" in done.stderr


@pytest.mark.slow
def test_an_address_that_is_no_hub_is_reported(here, hub):
    done = run([*PULL, "p"], here, HF_ENDPOINT=hub.address + "/storage")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("digest", ["../../../../evil", "", "x" * 40, "A" * 40])
def test_a_hub_without_a_hash_gets_nothing_written(here, monkeypatch, digest):
    monkeypatch.setattr(local_hub, "_git_hash", lambda data: digest)
    assert "does not report size and hash of adapter.bin of me/models as a hub does; check HF_ENDPOINT" in refused(here)
    assert not here.cache.exists()


def test_without_the_library_the_command_that_installs_it_is_reported(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused(here).endswith("-m pip install 'speccascade-local[hub]'")


@pytest.mark.parametrize("version", ["0.36.2", "1.19.5", "3.0.0"])
def test_another_version_of_the_library_is_refused(here, monkeypatch, version):
    monkeypatch.setattr(huggingface_hub, "__version__", version)
    assert f"huggingface_hub {version} is installed, and at least 1.20 and less than 3 is needed" in refused(here)


def test_a_pair_of_local_files_has_nothing_to_fetch(here, hub, capsys):
    here.models.write_text("pairs: {p: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf}}")
    pull(here)
    assert "all files are here already" in capsys.readouterr().err
    here.models.write_text("pairs: {p: {drafter: bundled:drafter.gguf, expert: nowhere.gguf}}")
    with pytest.raises(catalog.CatalogError, match=r"names no hub repository .*nowhere\.gguf"):
        pull(here)
    assert hub.requests == []


def test_what_is_still_missing_is_reported(here, capsys):
    here.models.write_text("pairs: {p: {drafter: {file: sub/small-Q8_0.gguf, hub: me/models}, expert: nowhere.gguf}}")
    pull(here)
    assert re.search(r"still missing: \S*nowhere\.gguf", capsys.readouterr().err)


# --------------------------------------------------------------------------- any course of events


@pytest.mark.slow
@given(st.lists(st.integers(0, 600_000), max_size=12), st.booleans())
@settings(max_examples=15, deadline=None)
def test_whatever_is_dropped_the_file_is_whole_or_absent(tmp_path_factory, drops, ranges):
    data = DATA["big-00001-of-00002.gguf"]
    with pytest.MonkeyPatch.context() as patch, LocalHub({"me/models": DATA}) as hub:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
        patch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
        hub.drop_after, hub.without_range = list(drops), not ranges
        source = hub_download.FileSource(Path(), "big-00001-of-00002.gguf", "me/models")
        file = hub_download.describe_files([source])[0]
        for _ in range(len(drops) + 1):
            try:
                hub_download.fetch(file, lambda doing, done: None)
            except FetchError:
                assert not file.path.exists()
            else:
                assert file.path.read_bytes() == data
                return
        pytest.fail("with a server that drops no more, it never arrived")


def run(command: list[str], here: SimpleNamespace, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=here.folder, env=os.environ | environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
