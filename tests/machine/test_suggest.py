"""Drafters for an expert among the models of this machine: ranked where they pair, with a reason where they do not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import BASE_VOCABULARY, recurrent_model, text_model, textless_model
from hypothesis import given, settings
from vocabularies import differences, our_verdict

import speccascade_local
from speccascade_local.common.errors import ModelLoadError
from speccascade_local.decoding.lengths import LONGEST
from speccascade_local.decoding.profile import SIZES, Speed
from speccascade_local.llama.model import LlamaModel
from speccascade_local.machine.plan import MeasuredModel, estimate_speedup
from speccascade_local.machine.suggest import _Vocabulary, find_obstacle, suggest
from speccascade_local.models.gguf_header import Header, read_header
from speccascade_local.models.local import models_in

DEMO = Path(speccascade_local.__file__).parent / "demo"


def header(token_bytes: int) -> Header:
    return Header(Path("m"), "llama", "Q8_0", token_bytes, token_bytes, 100, 1000, 4096)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expert counts as large: the models of these tests are all of one size."""
    monkeypatch.setattr(
        "speccascade_local.machine.suggest.read_header",
        lambda path: replace(read_header(path), **({"weights": 10**9, "token_bytes": 10**9} if path.stem == "expert" else {})),
    )


def suggested(folder: Path, expert: Path, known: tuple[MeasuredModel, ...] = ()) -> tuple[list[str], dict[str, str]]:
    found = suggest(expert, models_in({"here": folder}).models, known)
    return [each.model.name for each in found.ranked], {model.name: reason for model, reason in found.others}


# --------------------------------------------------------------------------- the verdict


@pytest.mark.slow
@given(one=differences, other=differences)
@settings(max_examples=80)
def test_a_look_at_the_files_never_rules_out_what_pairs(tmp_path_factory, one, other):
    folder = tmp_path_factory.mktemp("look")
    expert, drafter = (text_model(folder / f"{name}.gguf", **options) for name, options in (("expert", one), ("drafter", other)))
    (model,) = (each for each in models_in({"here": folder}).models if each.path == drafter)
    reason = find_obstacle(model, _Vocabulary(expert), header(10**9))
    opened = [LlamaModel(path) for path in (expert, drafter)]
    pairs = our_verdict(*opened)
    frames = [(each.tokenizer.bos_id, each.tokenizer.eos_id) for each in opened]
    for each in opened:
        each.close()
    assert not (reason and pairs)
    assert reason or pairs or frames[0] != frames[1], "only what is added to texts cannot be seen in the files"


def test_each_model_that_does_not_pair_has_its_reason(tmp_path, large):
    expert = text_model(tmp_path / "expert.gguf")
    folder = tmp_path / "models"
    folder.mkdir()
    text_model(folder / "kind.gguf", kind="llama")
    text_model(folder / "size.gguf", n_vocab=BASE_VOCABULARY + 129)
    text_model(folder / "text.gguf", texts={40: "<other>"})
    text_model(folder / "frame.gguf", add_bos=True)
    textless_model(folder / "ids.gguf")
    data = bytearray(text_model(folder / "odd.gguf").read_bytes())
    place = data.index(b"general.architecture") + 32
    data[place : place + 5] = b"xlama"
    (folder / "odd.gguf").write_bytes(data)
    cut = text_model(folder / "cut.gguf")
    cut.write_bytes(cut.read_bytes()[:-1000])
    ranked, others = suggested(folder, expert)
    assert ranked == []
    assert "its vocabulary is SPM (llama), the expert's BPE (gpt2)" in others["kind.gguf"]
    assert "it has 392 token ids, the expert 263" in others["size.gguf"]
    assert "token id 40 is '<other>' there" in others["text.gguf"]
    assert "bos_id is id 1 for the drafter, not added for the expert" in others["frame.gguf"]
    assert "its vocabulary is none (no_vocab)" in others["ids.gguf"]
    assert "xlama" in others["odd.gguf"]
    assert "cut off" in others["cut.gguf"]


@pytest.mark.slow
def test_models_without_text_pair_by_their_number_of_ids(tmp_path, large):
    expert = textless_model(tmp_path / "expert.gguf")
    recurrent_model(tmp_path / "mamba.gguf")
    textless_model(tmp_path / "wide.gguf", n_vocab=96 + 129)
    found = suggest(expert, models_in({"here": tmp_path}).models)
    assert [(each.model.name, each.rollback) for each in found.ranked] == [("mamba.gguf", "checkpoints")]
    assert "129 apart" in found.others[0][1]


def test_the_expert_itself_and_what_is_as_large_are_none(tmp_path):
    expert = shutil.copy(DEMO / "expert.gguf", tmp_path / "expert.gguf")
    (tmp_path / "link.gguf").symlink_to(expert)
    shutil.copy(DEMO / "expert.gguf", tmp_path / "twin.gguf")
    shutil.copy(DEMO / "drafter.gguf", tmp_path / "small.gguf")
    ranked, others = suggested(tmp_path, expert)
    assert ranked == ["small.gguf"]
    assert list(others) == ["twin.gguf"]
    assert "as large as the expert" in others["twin.gguf"]


def test_an_expert_that_is_none_is_an_error(tmp_path):
    (tmp_path / "text.gguf").write_text("a text")
    for name in ("text.gguf", "gone.gguf"):
        with pytest.raises(ModelLoadError, match=name):
            suggest(tmp_path / name, ())


def test_a_model_that_was_deleted_stops_nothing(tmp_path):
    shutil.copy(DEMO / "drafter.gguf", tmp_path / "small.gguf")
    shutil.copy(DEMO / "drafter.gguf", tmp_path / "gone.gguf")
    models = models_in({"here": tmp_path}).models
    (tmp_path / "gone.gguf").unlink()
    steps: list[float] = []
    found = suggest(DEMO / "expert.gguf", models, on_step=steps.append)
    assert [each.model.name for each in found.ranked] == ["small.gguf"]
    assert "gone.gguf" in found.others[0][1]
    assert steps == sorted(steps)
    assert steps[-1] == 1


@pytest.mark.slow
def test_as_many_are_dry_run_as_were_asked_for_and_failures_do_not_count(tmp_path, monkeypatch):
    for name in "abcde":
        text_model(tmp_path / f"{name}.gguf", add_bos=name in "ab")
    expert = text_model(tmp_path / "expert.gguf")
    monkeypatch.setattr(
        "speccascade_local.machine.suggest.read_header", lambda path: replace(read_header(path), weights=10**9, token_bytes=10**9)
    )
    found = suggest(expert, models_in({"here": tmp_path}).models, limit=2)
    assert [each.model.name for each in found.ranked] == ["c.gguf", "d.gguf"]
    assert [model.name for model in found.untried] == ["e.gguf"]
    assert [model.name for model, _ in found.others] == ["a.gguf", "b.gguf"]


# --------------------------------------------------------------------------- the order


@pytest.mark.slow
def test_the_fastest_beside_the_expert_comes_first(tmp_path, monkeypatch):
    sizes = {"b": 4 * 10**8, "a": 10**8, "c": 5 * 10**7, "expert": 10**9}
    for name in sizes:
        text_model(tmp_path / f"{name}.gguf")
    monkeypatch.setattr(
        "speccascade_local.machine.suggest.read_header",
        lambda path: replace(read_header(path), weights=sizes[path.stem], token_bytes=sizes[path.stem]),
    )
    found = suggest(tmp_path / "expert.gguf", models_in({"here": tmp_path}).models)
    assert [each.model.name for each in found.ranked] == ["c.gguf", "a.gguf", "b.gguf"]
    assert [each.ratio for each in found.ranked] == [20, 10, 2.5]
    assert found.ranked[0].speedup > found.ranked[2].speedup


def test_without_a_measurement_the_speed_is_leviathans_formula():
    """2211.17192, theorem 3.8: (1 - a^(g+1)) / ((1 - a) (g c + 1)), at the best g."""
    for ratio in (2, 4, 10, 50):
        low, high = estimate_speedup(header(10**9 // ratio), header(10**9), (), 4096)
        for found, kept in ((low, 0.5), (high, 0.95)):
            best = max((1 - kept ** (g + 1)) / ((1 - kept) * (g / ratio + 1)) for g in range(LONGEST + 1))
            assert found == pytest.approx(max(1.0, best), rel=1e-6)


def test_with_measurements_it_differs_from_the_formula():
    seconds = tuple(0.1 * (1 + 0.1 * n) for n in range(len(SIZES)))
    known = [MeasuredModel(10**9, Speed(threads=1, batch_threads=1, depths=(0,), seconds=(seconds,), prompt_s=0.01))]
    assert estimate_speedup(header(10**8), header(10**9), known, 4096) != estimate_speedup(header(10**8), header(10**9), (), 4096)
