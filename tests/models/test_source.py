"""What a model's name in models.yaml stands for: paths, globs, shards, adapters, and files of the hub's cache."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speccascade_local.common.errors import CatalogError
from speccascade_local.models import catalog, hub_cache
from speccascade_local.models.gguf_layout import shard_names
from speccascade_local.models.source import ModelSource
from speccascade_local.runtime.load import choose

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def pair(folder: Path, expert: str, drafter: str = "ngram", **more: str) -> catalog.Pair:
    lines = [f"    {name}: {value}" for name, value in more.items()]
    path = folder / "models.yaml"
    path.write_text("\n".join(["pairs:", "  p:", f"    drafter: {drafter}", f"    expert: {expert}", *lines, ""]))
    return catalog.read_file(path)["p"]


def expert(folder: Path, written: str) -> ModelSource:
    return pair(folder, written).models["expert"]


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"GGUF")


def fetched(hub_folder: Path, name: str, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """A file as the library leaves it behind."""
    repository = hub_folder / "models--me--x"
    make(repository / "snapshots" / commit, name)
    if ref:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return repository / "snapshots" / commit / name


# --------------------------------------------------------------------------- what is said of a model


def test_all_keys_of_a_model_are_read(tmp_path):
    make(tmp_path, "e.gguf", "l.gguf", "k.gguf")
    found = expert(
        tmp_path,
        "{file: e.gguf, size: 4, licence: mit, gpu_layers: auto, device: CUDA0, cache_type: q8_0, "
        "lora: [l.gguf, {file: k.gguf, scale: 2}]}",
    )
    assert (found.path, found.file) == (tmp_path / "e.gguf", "e.gguf")
    assert (found.size, found.licence, found.gpu_layers, found.device, found.cache_type) == (4, "mit", "auto", "CUDA0", "q8_0")
    assert found.lora == ((tmp_path / "l.gguf", 1.0), (tmp_path / "k.gguf", 2.0))
    assert found.missing == []


@pytest.mark.parametrize("lora", ["l.gguf", "[l.gguf]", "{file: l.gguf}", "[{file: l.gguf, scale: 1}]"])
def test_one_adapter_may_be_written_in_four_ways(tmp_path, lora):
    assert expert(tmp_path, f"{{file: e.gguf, lora: {lora}}}").lora == ((tmp_path / "l.gguf", 1.0),)


def test_all_keys_of_a_pair_are_read(tmp_path):
    found = pair(tmp_path, "e.gguf", family="Qwen3", context="4096", source="https://x", rpc="['10.0.0.1:50052', host:65535]")
    assert (found.family, found.context, found.seen_in) == ("Qwen3", 4096, "https://x")
    assert found.rpc == ("10.0.0.1:50052", "host:65535")


def test_a_name_alone_says_nothing_more(tmp_path):
    assert expert(tmp_path, "e.gguf") == ModelSource(tmp_path / "e.gguf", "e.gguf")
    assert pair(tmp_path, "e.gguf").models.keys() == {"expert"}


def test_a_pair_made_of_paths_has_models_too(tmp_path):
    made = catalog.Pair("custom", tmp_path / "d.gguf", tmp_path / "e.gguf")
    assert {role: model.path for role, model in made.models.items()} == made.files
    assert list(made.models) == ["drafter", "expert"]


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        ("expert: {fil: e}", 3, "pairs.p.expert.file: this key is missing"),
        ("expert:\n      file: e\n      sizes: 3", 5, "pairs.p.expert.sizes: this key is not known; seen: 3"),
        ("expert:\n      file: e\n      size: 0", 5, "pairs.p.expert.size: input should be greater than 0; seen: 0"),
        ("expert:\n      file: e\n      hub: nothing", 5, "pairs.p.expert.hub: string should match pattern"),
        ("expert:\n      file: e\n      hub: ../x", 5, "pairs.p.expert.hub: string should match pattern"),
        ("expert:\n      file: e\n      hub: a/b\n      revision: ../../x", 6, "pairs.p.expert.revision: string should match pattern"),
        ("expert:\n      file: e\n      revision: main", 3, "pairs.p.expert: a revision is one of a repository, and no hub is named"),
        ("expert: {file: '*.gguf', hub: a/b}", 3, "pairs.p.expert: with hub, file is the exact name of a file in the repository"),
        ("expert: {file: ../e.gguf, hub: a/b}", 3, "pairs.p.expert: with hub, file is the exact name"),
        ("expert: {file: /e.gguf, hub: a/b}", 3, "pairs.p.expert: with hub, file is the exact name"),
        ("expert:\n      file: e\n      gpu_layers: all", 5, "pairs.p.expert.gpu_layers"),
        ("expert:\n      file: e\n      gpu_layers: -2", 5, "pairs.p.expert.gpu_layers"),
        ("expert:\n      file: e\n      cache_type: q9", 5, "pairs.p.expert.cache_type: input should be 'f32', 'f16'"),
        (
            "expert:\n      file: e\n      lora:\n        - a\n        - {file: b, scale: .inf}",
            7,
            "pairs.p.expert.lora.1.scale: input should be a finite",
        ),
        ("expert:\n      file: e\n      lora: {file: b, skale: 1}", 5, "pairs.p.expert.lora.0.skale: this key is not known; seen: 1"),
        ("expert:\n      file: e\n      lora: 3", 5, "pairs.p.expert.lora.0: this must be a file's name"),
        ("expert: e\n    context: 0", 4, "pairs.p.context: input should be greater than 0"),
        ("expert: e\n    rpc: host:1", 4, "pairs.p.rpc: input should be a valid list"),
        ("expert: e\n    rpc:\n      - host:1\n      - host", 6, "pairs.p.rpc.1: 'host' is not HOST:PORT of an RPC server"),
        ("expert: e\n    rpc: ['host:0']", 4, "pairs.p.rpc.0: the port of 'host:0' is 0"),
        (
            "expert: e\n    rpc: ['http://host:80']",
            4,
            "pairs.p.rpc.0: 'http://host:80' is not HOST:PORT of an RPC server, such as 192.168.1.7:50052; seen",
        ),
        ("expert: ngram", 2, "pairs.p: 'ngram' copies and knows nothing; only the drafter may be"),
    ],
)
def test_what_is_wrong_is_reported_with_line_and_key(tmp_path, lines, line, said):
    path = tmp_path / "m.yaml"
    path.write_text(f"pairs:\n  p:\n    {lines}\n    drafter: d\n")
    with pytest.raises(CatalogError) as error:
        catalog.read_file(path)
    assert str(error.value).startswith(f"{path}, line {line}: {said}")


def test_ngram_has_no_other_keys(tmp_path):
    with pytest.raises(CatalogError, match="drafter 'ngram' is no model, so it has no other keys"):
        pair(tmp_path, "e.gguf", drafter="{file: ngram, gpu_layers: 1}")


# --------------------------------------------------------------------------- globs and shards


def test_a_glob_stands_for_the_one_model_that_it_fits(tmp_path):
    make(tmp_path, "models/Big-7B-Q4_K_M.gguf", "models/Small-1B-Q8_0.gguf")
    found = pair(tmp_path, "'models/*7B*.gguf'", "models/*1B*")
    assert (found.expert.name, found.drafter.name) == ("Big-7B-Q4_K_M.gguf", "Small-1B-Q8_0.gguf")
    assert found.missing == []
    found.check_files()


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    make(tmp_path, "e[1].gguf", "e1.gguf")
    assert expert(tmp_path, "'e[1].gguf'").path.name == "e[1].gguf"


def test_a_glob_that_fits_several_lists_them_and_other_pairs_still_work(tmp_path):
    make(tmp_path, "a.gguf", "b.gguf")
    found = pair(tmp_path, "'*.gguf'")
    message = r"pair 'p', expert: .*\*\.gguf: 2 models match, and one is needed: a\.gguf, b\.gguf; write it more exactly"
    with pytest.raises(CatalogError, match=message):
        found.check_files()
    assert found.missing == [tmp_path / "*.gguf"]
    with pytest.raises(CatalogError, match="2 models match"):
        choose("p", None, None, tmp_path / "models.yaml")
    assert choose("p", None, None, tmp_path / "models.yaml", complete=False) == found


def test_a_long_list_of_matches_is_cut_short(tmp_path):
    make(tmp_path, *(f"{number:02}.gguf" for number in range(20)))
    assert expert(tmp_path, "'*.gguf'").problem().count(".gguf,") == 7
    assert "07.gguf and 12 more" in expert(tmp_path, "'*.gguf'").problem()


def test_a_glob_that_fits_nothing_is_reported(tmp_path):
    with pytest.raises(CatalogError, match=r"\*\.gguf: no file matches; check the pattern and its folder"):
        pair(tmp_path, "'none/*.gguf'").check_files()


def test_a_set_of_shards_is_one_model(tmp_path):
    names = shard_names("big-00001-of-00003.gguf")
    make(tmp_path, *names)
    found = expert(tmp_path, "'big-*.gguf'")
    assert found.path == tmp_path / "big-00001-of-00003.gguf"
    assert found.parts == [tmp_path / name for name in names]
    assert found.problem() == ""
    make(tmp_path, "big-00001-of-00002.gguf")
    assert "2 models match" in expert(tmp_path, "'big-*.gguf'").problem()


@given(st.integers(1, 12), st.data())
@settings(max_examples=40, deadline=None)
def test_exactly_the_shards_that_are_not_there_are_missing(tmp_path_factory, total, data):
    folder = tmp_path_factory.mktemp("shards")
    names = shard_names(f"m-00001-of-{total:05}.gguf")
    assert len(names) == total
    there = data.draw(st.sets(st.sampled_from(names)))
    make(folder, *there)
    found = expert(folder, names[0])
    absent = [name for name in names if name not in there]
    assert [path.name for path in found.missing] == absent
    problem = found.problem()
    if 0 < len(absent) < total:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        assert problem.endswith(f"{total - len(absent)} of {total} shards are there; missing: {', '.join(absent[:8])}{more}")
    else:
        assert problem == ""  # whole, or a path with nothing there, which the loader reports
    if there:
        globbed = expert(folder, "'m-*.gguf'")
        assert (globbed.path, globbed.missing) == (found.path, found.missing)


def test_a_shard_that_is_not_the_first_is_refused(tmp_path):
    make(tmp_path, *shard_names("m-00001-of-00002.gguf"))
    with pytest.raises(
        CatalogError, match=r"m-00002-of-00002\.gguf: one of several shards, but not the first; name m-00001-of-00002\.gguf"
    ):
        pair(tmp_path, "m-00002-of-00002.gguf").check_files()


def test_shards_named_on_the_command_line_are_looked_for_too(tmp_path):
    make(tmp_path, "d.gguf", "m-00001-of-00002.gguf")
    with pytest.raises(CatalogError, match=r"1 of 2 shards are there; missing: m-00002-of-00002\.gguf"):
        choose(None, tmp_path / "d.gguf", tmp_path / "m-00001-of-00002.gguf", None)


def test_an_adapter_that_is_not_there_is_reported_before_anything_is_loaded(tmp_path):
    make(tmp_path, "e.gguf")
    with pytest.raises(CatalogError, match=r"pair 'p', expert's LoRA adapter: \S*l\.gguf: no such file; check its path"):
        pair(tmp_path, "{file: e.gguf, lora: l.gguf}").check_files()


def test_a_plain_path_with_nothing_there_is_left_to_the_loader(tmp_path):
    pair(tmp_path, "nowhere.gguf").check_files()


# --------------------------------------------------------------------------- the hub's cache


def test_a_file_of_the_hub_is_found_where_main_was_last(tmp_path, hub_folder):
    fetched(hub_folder, "sub/e.gguf", OTHER, ref=None)
    path = fetched(hub_folder, "sub/e.gguf")
    found = expert(tmp_path, "{hub: me/x, file: sub/e.gguf}")
    assert (found.path, found.missing) == (path, [])


@pytest.mark.parametrize(("revision", "ref"), [("v1", "v1"), ("refs/pr/3", "refs/pr/3"), (COMMIT, None)])
def test_a_revision_is_that_branch_tag_or_commit(tmp_path, hub_folder, revision, ref):
    fetched(hub_folder, "e.gguf", OTHER)
    if ref and "/" in ref:
        (hub_folder / "models--me--x" / "refs" / ref).parent.mkdir(parents=True)
    path = fetched(hub_folder, "e.gguf", COMMIT, ref)
    assert expert(tmp_path, f"{{hub: me/x, file: e.gguf, revision: {revision}}}").path == path


def test_without_main_the_only_commit_that_has_the_file_serves(tmp_path, hub_folder):
    path = fetched(hub_folder, "e.gguf", COMMIT, ref=None)
    assert expert(tmp_path, "{hub: me/x, file: e.gguf}").path == path
    fetched(hub_folder, "e.gguf", OTHER, ref=None)
    assert expert(tmp_path, "{hub: me/x, file: e.gguf}").missing != []


def test_what_is_not_fetched_is_reported_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(CatalogError, match=r"pair 'p', expert: e\.gguf of me/x is not on this machine; fetch it: speccascade pull p"):
        pair(tmp_path, "{hub: me/x, file: e.gguf}").check_files()
    with pytest.raises(CatalogError, match=r"expert: 2 of 2 shards of e-00001-of-00002\.gguf of me/x are not on this machine; fetch it"):
        pair(tmp_path, "{hub: me/x, file: e-00001-of-00002.gguf}").check_files()
    make(tmp_path, "e.gguf")
    with pytest.raises(CatalogError, match=r"expert's LoRA adapter: l\.gguf of me/x is not on this machine; fetch it: speccascade pull p"):
        pair(tmp_path, "{file: e.gguf, lora: {file: l.gguf, hub: me/x}}").check_files()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_is_found_exactly_where_the_library_finds_it(tmp_path_factory, data):
    """With a revision; without one the library knows main only."""
    cache = tmp_path_factory.mktemp("hub")
    names, commits, refs = ["a.gguf", "s/b.gguf"], [COMMIT, OTHER, "c" * 40], ["main", "v1", "refs/pr/1"]
    repository = cache / "models--me--x"
    for commit in data.draw(st.sets(st.sampled_from(commits))):
        make(repository / "snapshots" / commit, *data.draw(st.sets(st.sampled_from(names))))
    for ref, commit in data.draw(st.dictionaries(st.sampled_from(refs), st.sampled_from(commits))).items():
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    (repository / "snapshots").mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(cache))
        for name, revision in itertools.product(names, [*commits, *refs]):
            theirs = huggingface_hub.try_to_load_from_cache("me/x", name, cache_dir=cache, revision=revision)
            ours = hub_cache.cached_file("me/x", revision, name)
            assert (str(ours) if ours.is_file() else None) == theirs


PLACES = {"HF_HUB_CACHE": "$HOME/c", "HUGGINGFACE_HUB_CACHE": "~/d", "HF_HOME": "~/h/$USER", "XDG_CACHE_HOME": "/x"}


def test_the_cache_is_where_the_library_has_it_whatever_is_set():
    program = (
        "import json, os, importlib, sys, huggingface_hub.constants as c\n"
        "from speccascade_local.models.hub_cache import cache_folder\n"
        "for environment in json.load(sys.stdin):\n"
        f"    [os.environ.pop(name, None) for name in {sorted(PLACES)}]\n"
        "    os.environ.update(environment)\n"
        "    assert str(cache_folder()) == importlib.reload(c).HF_HUB_CACHE, environment\n"
        "print('same')"
    )
    chosen = [dict(some) for n in range(len(PLACES) + 1) for some in itertools.combinations(PLACES.items(), n)]
    environment = os.environ | {"USER": "me", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], input=json.dumps(chosen), text=True, capture_output=True, env=environment
    )
    assert done.stdout == "same\n", done.stderr


def test_the_catalog_does_not_import_the_library():
    without = "import sys; sys.modules['huggingface_hub'] = None\n"
    program = f"{without}from speccascade_local.models import catalog; print(len(catalog.known_pairs()) > 12)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
