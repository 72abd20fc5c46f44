"""The cost-scaled demonstration models answer as the small ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scale_pair
from scale_pair import Shape

import speccascade_local as sc
from speccascade_local.llama.model import LlamaModel
from speccascade_local.models import catalog

ROOT = Path(__file__).parents[2]
FILES = catalog.bundled_pair()
SHAPES = {"expert": Shape(width=512, layers=7, ffn=1024), "drafter": Shape(width=192, layers=3, ffn=320)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("scaled")
    for name, shape in SHAPES.items():
        scale_pair.write(scale_pair.read(getattr(FILES, name)), shape, out / f"{name}.gguf", np.random.default_rng(0))
    return out


@pytest.mark.parametrize("name", SHAPES)
def test_a_scaled_model_has_the_logits_of_the_small_one_and_the_size_of_a_large_one(folder, name):
    difference, spread = scale_pair.largest_difference(getattr(FILES, name), folder / f"{name}.gguf")
    assert difference < 0.02 * spread
    assert (folder / f"{name}.gguf").stat().st_size > 3 * getattr(FILES, name).stat().st_size
    model = LlamaModel(folder / f"{name}.gguf")
    assert model.chat_template == LlamaModel(getattr(FILES, name)).chat_template
    model.close()


@pytest.mark.slow
def test_a_scaled_pair_answers_as_the_bundled_one(folder, demo):
    messages = [{"role": "user", "content": "What is 17 plus 25?"}]
    with sc.load(drafter=folder / "drafter.gguf", expert=folder / "expert.gguf", n_threads=1, profile=False) as scaled:
        for settings in ({"block_size": 0}, {"rule": "never"}, {"rule": "strict", "block_size": 5}):
            assert scaled.chat(messages, max_tokens=40, **settings).text == demo.chat(messages, max_tokens=40, **settings).text


def script(*arguments: str) -> subprocess.CompletedProcess:
    small = [f"--{name}-{part}={getattr(shape, part)}" for name, shape in SHAPES.items() for part in ("width", "layers", "ffn")]
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "measure" / "scale_pair.py", *small, *arguments], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_the_script_writes_other_quantizations_and_tells_how_far_they_are(tmp_path):
    ran = script("--quantization", "Q4_0", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert "largest difference of a logit" in ran.stdout
    assert (tmp_path / "expert.gguf").stat().st_size < 0.7 * 7 * (4 * 512 * 512 + 3 * 512 * 1024)
    model = LlamaModel(tmp_path / "expert.gguf")
    assert "Q4_0" in model.description
    model.close()


@pytest.mark.slow
def test_a_random_pair_agrees_in_part_and_has_as_many_ids_as_asked_for(tmp_path):
    ran = script("--random", "2048", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    with sc.load(drafter=tmp_path / "drafter.gguf", expert=tmp_path / "expert.gguf", n_threads=1, profile=False) as runtime:
        assert runtime.n_vocab == 2048
        stats = runtime.generate([5, 6, 7], rule="strict", temperature=1, seed=0, block_size=5, max_tokens=60).stats
    assert 0.1 < stats.accepted / stats.tested < 0.98


@pytest.mark.slow
def test_the_script_makes_a_drafter_whose_drafts_nobody_wants(tmp_path):
    ran = script("--hopeless", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    with sc.load(drafter=tmp_path / "drafter.gguf", expert=tmp_path / "expert.gguf", n_threads=1, profile=False) as runtime:
        stats = runtime.chat([{"role": "user", "content": "Who is Mozart?"}], rule="strict", block_size=5, max_tokens=40).stats
    assert stats.accepted < 0.1 * stats.drafted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--expert-width", "100"], "must be a multiple of"), (["--expert-layers", "2"], "is smaller than")],
    ids=["width", "layers"],
)
def test_sizes_that_cannot_be_are_refused(tmp_path, arguments, said):
    ran = script(*arguments, str(tmp_path))
    assert ran.returncode == 1
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
