"""The verdict on a pair, found without loading it."""

from __future__ import annotations

import json
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf_files import CHATML, embedding_model, recurrent_model, text_model, textless_model

import speccascade_local
from speccascade_local.common.errors import PairError, SettingError
from speccascade_local.decoding.profile import SIZES, Speed
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.tokenizer import shared_vocab_size
from speccascade_local.machine.check import EXIT_CODES, NamedFile, PairReport, check
from speccascade_local.machine.dry_run import dry_run_models
from speccascade_local.machine.findings import Finding
from speccascade_local.machine.plan import MeasuredModel, estimate_pair
from speccascade_local.models.gguf_header import read_header
from speccascade_local.models.placement import Placement

DEMO = Path(speccascade_local.__file__).parent / "demo"
PATHS = {"drafter": DEMO / "drafter.gguf", "expert": DEMO / "expert.gguf"}


def named(files: dict[str, Path]) -> dict[str, NamedFile]:
    return {role: NamedFile(path, str(path)) for role, path in files.items()}


PAIR = named(PATHS)


def grades(checked: PairReport) -> dict[str, str]:
    return {finding.about: finding.grade for finding in checked.findings}


def text_of(checked: PairReport, about: str) -> str:
    (found,) = [finding.text for finding in checked.findings if finding.about == about]
    return found


def speed(seconds: float) -> Speed:
    return Speed(
        threads=1,
        batch_threads=1,
        depths=(0,),
        seconds=(tuple(seconds * (1 + 0.2 * (n - 1)) for n in SIZES),),
        prompt_s=seconds / 4,
    )


def test_a_good_pair_is_a_yes_with_nothing_to_know():
    checked = check("demo", PAIR)
    assert checked.answer == "yes"
    assert set(grades(checked).values()) == {"well", "note"}
    assert checked.of("note") == [finding for finding in checked.findings if finding.about == "speed"]
    assert "speccascade profile" in text_of(checked, "speed")
    assert checked.n_ctx == 512


def test_nothing_is_loaded_and_no_context_made_in_this_process(monkeypatch):
    for name in ("llama_model_load_from_file", "llama_init_from_model"):
        monkeypatch.setattr(llama_cpp, name, lambda *_: pytest.fail("loaded"))
    assert check("demo", PAIR).answer == "yes"


def test_the_first_difference_is_what_loading_the_pair_would_say(tmp_path):
    files = {
        "drafter": text_model(tmp_path / "d.gguf", chat_template=CHATML),
        "expert": text_model(tmp_path / "e.gguf", texts={77: "<other>"}, chat_template=CHATML),
    }
    models = {role: LlamaModel(path) for role, path in files.items()}
    with pytest.raises(PairError) as error:
        shared_vocab_size(models["drafter"].tokenizer, models["expert"].tokenizer)
    for model in models.values():
        model.close()
    checked = check("p", named(files))
    assert checked.answer == "no"
    assert text_of(checked, "vocabulary") == str(error.value)
    assert "token id 77 is" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "answer", "grade", "said"),
    [(recurrent_model, "yes, but", "warning", "checkpoint"), (embedding_model, "no", "no", "encoder|embedding")],
)
def test_how_the_expert_rolls_back_decides(tmp_path, make, answer, grade, said):
    files = {"drafter": textless_model(tmp_path / "d.gguf"), "expert": make(tmp_path / "e.gguf")}
    checked = check("p", named(files))
    assert checked.answer == answer
    assert grades(checked)["expert: rollback"] == grade
    assert grades(checked)["drafter: rollback"] == "well"
    assert any(word in text_of(checked, "expert: rollback") for word in said.split("|"))


def test_a_file_that_is_damaged_or_not_there_is_a_no_with_its_name(tmp_path):
    (tmp_path / "cut.gguf").write_bytes((DEMO / "expert.gguf").read_bytes()[:100_000])
    for name in ("cut.gguf", "gone.gguf"):
        checked = check("p", named({**PATHS, "expert": tmp_path / name}))
        assert (checked.answer, grades(checked)) == ("no", {"files": "no"})
        assert name in text_of(checked, "files")
        assert checked.as_dict()["memory"] == {}


def test_a_file_that_llama_cpp_alone_refuses_is_a_no(tmp_path):
    data = bytearray((DEMO / "expert.gguf").read_bytes())
    place = data.index(b"general.architecture") + 32
    data[place : place + 5] = b"xlama"
    (tmp_path / "odd.gguf").write_bytes(data)
    checked = check("p", named({**PATHS, "expert": tmp_path / "odd.gguf"}))
    assert checked.answer == "no"
    assert "xlama" in text_of(checked, "files")


def test_a_file_is_called_by_its_name_in_messages_and_facts(tmp_path):
    (tmp_path / "cut.gguf").write_bytes((DEMO / "expert.gguf").read_bytes()[:100_000])
    checked = check("p", {**PAIR, "expert": NamedFile(tmp_path / "cut.gguf", "me/models/e.gguf")})
    assert text_of(checked, "files").startswith("me/models/e.gguf: ")
    assert str(tmp_path) not in json.dumps(checked.as_dict())
    checked = check("p", {**PAIR, "expert": NamedFile(PATHS["expert"], "me/models/e.gguf")})
    assert checked.models["expert"].path == Path("me/models/e.gguf")


def test_a_drafter_that_copies_from_the_text_has_nothing_to_fit():
    checked = check("p", {"expert": PAIR["expert"]})
    assert checked.answer == "yes"
    assert "copied from the text" in text_of(checked, "vocabulary")


# --------------------------------------------------------------------------- context and memory


@pytest.mark.slow
def test_memory_is_that_of_the_dry_run_at_the_context_that_would_be_used():
    checked = check("demo", PAIR, n_ctx=256)
    assert checked.n_ctx == 256
    models = dry_run_models(PATHS, n_ctx=256)
    for role, model in models.items():
        need = checked.needs[role]
        assert need.own_bytes == pytest.approx(model.total, rel=0.2, abs=2e6), "the plan's own memory is measured again each time"
        assert (need.own["weights"], need.own["cache"]) == (model.weights, model.cache)
    assert check("demo", PAIR, n_ctx=512).needs["expert"].own["cache"] == 2 * checked.needs["expert"].own["cache"]


def test_a_context_beyond_what_was_trained_is_a_no_and_one_that_is_none_an_error():
    checked = check("demo", PAIR, n_ctx=513)
    assert checked.answer == "no"
    assert "513 tokens were asked for (--ctx); the models were trained for 512" in text_of(checked, "context")
    for wrong in (0, -1, 2**31):
        with pytest.raises(SettingError, match="n_ctx"):
            check("demo", PAIR, n_ctx=wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("must_fit", "answer", "grade"), [(True, "no", "no"), (False, "yes, but", "warning")])
def test_models_that_do_not_fit_are_a_no_unless_memory_is_not_checked(monkeypatch, must_fit, answer, grade):
    monkeypatch.setattr("speccascade_local.machine.check.free_memory", lambda: 1_000_000)
    checked = check("demo", PAIR, must_fit=must_fit)
    assert (checked.answer, grades(checked)["memory"]) == (answer, grade)
    assert "1.00 MB are free" in text_of(checked, "memory")
    assert "What would fit" in text_of(checked, "memory")


@pytest.mark.slow
def test_a_quantized_cache_is_smaller_and_warned_of_for_the_drafter_only():
    usual = check("demo", PAIR)
    expert = check("demo", PAIR, placements={"expert": Placement(cache_type="q8_0")})
    assert expert.answer == "yes"
    assert expert.needs["expert"].own["cache"] < usual.needs["expert"].own["cache"]
    drafter = check("demo", PAIR, placements={"drafter": Placement(cache_type="q8_0")})
    assert (drafter.answer, grades(drafter)["cache"]) == ("yes, but", "warning")


def test_an_unknown_device_is_an_error():
    with pytest.raises(SettingError, match="device is 'CUDA9'"):
        check("demo", PAIR, placements={"expert": Placement(device="CUDA9")})


# --------------------------------------------------------------------------- speed


def test_the_speed_is_that_of_plan():
    measured = [MeasuredModel(10**6, speed(0.001)), MeasuredModel(10**8, speed(0.1))]
    checked = check("demo", PAIR, measured=measured)
    assert checked.plan == estimate_pair(*(read_header(PATHS[role]) for role in ("drafter", "expert")), measured, 512)
    low, high = checked.plan.speedup
    assert text_of(checked, "speed").startswith(f"{low:.1f} to {high:.1f} ×")


def test_a_pair_that_is_hardly_faster_at_best_is_warned_of():
    checked = check("demo", {"drafter": PAIR["expert"], "expert": PAIR["expert"]}, measured=[MeasuredModel(10**6, speed(0.001))])
    assert grades(checked)["size"] == grades(checked)["speed"] == "warning"
    assert checked.plan.speedup[1] < 1.1


# --------------------------------------------------------------------------- the answer


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ([], "yes"),
        (["well", "note"], "yes"),
        (["well", "warning"], "yes, but"),
        (["warning", "no", "well"], "no"),
    ],
)
def test_the_worst_finding_decides(given, answer):
    checked = PairReport("p", tuple(Finding(grade, "x", "y") for grade in given))
    assert checked.answer == answer
    assert checked.as_dict()["exit_code"] == EXIT_CODES[answer] == ["yes", "yes, but", "no"].index(answer)


def test_everything_goes_into_json():
    checked = check("demo", PAIR, measured=[MeasuredModel(10**6, speed(0.001))])
    found = json.loads(json.dumps(checked.as_dict()))
    assert (found["pair"], found["answer"], found["exit_code"], found["n_ctx"]) == ("demo", "yes", 0, 512)
    assert found["models"]["expert"]["tokenizer"]["pre"] == "smollm"
    assert found["models"]["drafter"]["chat_template"].startswith("{%")
    assert found["memory"]["expert"]["own"]["weights"] == found["models"]["expert"]["weights"]
    assert found["free"]["memory"] > 0
    assert np.isclose(found["plan"]["speedup"], checked.plan.speedup).all()
    assert {finding["grade"] for finding in found["findings"]} <= {"well", "warning"}
