"""A LoRA that is applied gives the logits of a model that has it in its weights."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf_files import adapter, merged_model, text_model, textless_model

import speccascade_local as sc
from speccascade_local.common.errors import ModelLoadError, SessionError
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.models.placement import Placement

TOKENS = [5, 17, 80, 3, 3, 41]


def rows(path: Path, *lora: tuple[Path, float]) -> np.ndarray:
    with closing(LlamaModel(path, placement=Placement(lora=lora))) as model, closing(LlamaContext(model, n_ctx=32, n_threads=1)) as context:
        return LlamaSession(context).extend(TOKENS, len(TOKENS)).copy()


@pytest.mark.parametrize("scale", [1.0, 0.25, -1.5])
def test_logits_are_those_of_merged_weights(tmp_path, scale):
    plain, lora = textless_model(tmp_path / "plain.gguf"), adapter(tmp_path / "lora.gguf")
    merged = rows(merged_model(tmp_path / "merged.gguf", scale=scale))
    np.testing.assert_allclose(rows(plain, (lora, scale)), merged, atol=1e-3)
    assert np.abs(rows(plain) - merged).max() > 0.1, "else the adapter does nothing"


def test_several_adapters_add_up(tmp_path):
    plain = textless_model(tmp_path / "plain.gguf")
    lora = adapter(tmp_path / "lora.gguf")
    np.testing.assert_allclose(rows(plain, (lora, 0.5), (lora, 0.5)), rows(plain, (lora, 1.0)), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 48}, "incorrect shape"),
        ({"architecture": "gemma"}, "arch mismatch"),
        ({"kind": "something"}, "expect adapter.type to be 'lora'"),
    ],
)
def test_an_adapter_of_another_model_is_refused_and_nothing_is_left(tmp_path, made, freed, changed, message):
    plain, lora = textless_model(tmp_path / "plain.gguf"), adapter(tmp_path / "lora.gguf", **changed)
    with pytest.raises(ModelLoadError, match=rf"lora\.gguf: llama\.cpp cannot use this adapter: .*{message}.* made for this model"):
        rows(plain, (lora, 1.0))
    assert freed == made
    assert made


def test_a_model_in_place_of_an_adapter_is_refused(tmp_path):
    plain = textless_model(tmp_path / "plain.gguf")
    with pytest.raises(ModelLoadError, match=r"plain\.gguf: llama\.cpp cannot use this adapter: .*adapter"):
        rows(plain, (plain, 1.0))


def test_a_return_code_is_not_lost(tmp_path, monkeypatch):
    plain, lora = textless_model(tmp_path / "plain.gguf"), adapter(tmp_path / "lora.gguf")
    monkeypatch.setattr(llama_cpp, "llama_set_adapters_lora", lambda *_: -1)
    with pytest.raises(SessionError, match="llama_set_adapters_lora returned -1"):
        rows(plain, (lora, 1.0))


@pytest.mark.slow
def test_either_model_of_a_pair_may_have_one(tmp_path):
    model, lora = text_model(tmp_path / "model.gguf", heads=1), adapter(tmp_path / "lora.gguf")
    asked = {"drafter": model, "expert": model, "n_ctx": 64, "profile": False}
    for role in ("drafter", "expert"):
        with sc.load(**asked, placement={role: Placement(lora=((lora, 1.0),))}) as runtime:
            assert [name for name, each in runtime.models.items() if each.adapters] == [role]
    with pytest.raises(ModelLoadError, match=r"absent\.gguf: no such file"):
        sc.load(**asked, placement={"drafter": Placement(lora=((tmp_path / "absent.gguf", 1.0),))})
