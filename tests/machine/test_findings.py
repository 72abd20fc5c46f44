"""What is well with a pair, what is to be known, and what forbids it: from facts alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.machine import findings
from speccascade_local.machine.dry_run import ModelPlan, TokenizerFacts
from speccascade_local.models.placement import CACHE_TYPES, QUANTIZED, Placement

TEXTS = {0: "<end>", 1: "<bos>", 2: "<eos>", 3: "<turn>"}
TOKENIZER = TokenizerFacts(kind=2, pre="smollm", bos_id=1, eos_id=2, adds_bos=False, adds_eos=False, end_ids=(0, 2), texts=TEXTS)
MODEL = ModelPlan(
    path=Path("m.gguf"),
    n_ctx=256,
    architecture="llama",
    description="llama 1B Q8_0",
    n_layers=2,
    n_vocab=300,
    n_ctx_train=2048,
    n_parameters=10**9,
    n_experts=0,
    weights=10**9,
    cache=10**7,
    recurrent=0,
    compute={"CPU": 10**6},
    output=10**5,
    other=10**5,
    rollback="tail",
    refused=None,
    chat_template="{{ messages }}",
    tokenizer=TOKENIZER,
    n_shared=300,
)

tokenizers = st.builds(
    TokenizerFacts,
    kind=st.just(2),
    pre=st.sampled_from(["", "smollm", "qwen2"]),
    bos_id=st.sampled_from([None, 0, 1]),
    eos_id=st.sampled_from([None, 0, 2]),
    adds_bos=st.booleans(),
    adds_eos=st.booleans(),
    end_ids=st.lists(st.integers(0, 9), max_size=7, unique=True).map(lambda ids: tuple(sorted(ids))),
    texts=st.just(TEXTS),
)


def grades(found):
    return {finding.about: finding.grade for finding in found}


@given(ours=tokenizers, theirs=tokenizers)
def test_a_tokenizer_is_warned_of_exactly_where_it_differs(ours, theirs):
    found = grades(findings.tokenizers(ours, theirs))
    assert (found.get("pre-type") == "warning") == (ours.pre != theirs.pre)
    assert (found.get("special ids") == "warning") == ((ours.bos_id, ours.eos_id) != (theirs.bos_id, theirs.eos_id))
    assert (found.get("end ids") == "warning") == (set(ours.end_ids) != set(theirs.end_ids))
    assert set(found.values()) <= {"warning", "well"}


@given(tokenizer=tokenizers)
def test_the_same_tokenizer_is_well(tokenizer):
    assert set(grades(findings.tokenizers(tokenizer, tokenizer)).values()) <= {"well"}


def test_what_differs_is_named_with_both_sides_and_written_out():
    ours = replace(TOKENIZER, pre="", bos_id=None, end_ids=(0, 3))
    texts = {each.about: each.text for each in findings.tokenizers(ours, TOKENIZER)}
    assert texts["pre-type"].startswith("not named for the drafter, smollm for the expert")
    assert texts["special ids"] == "BOS is none for the drafter, 1 '<bos>' for the expert"
    assert texts["end ids"] == "only the drafter ends a text at 3 '<turn>'; only the expert ends a text at 2 '<eos>': the expert's count"
    many = replace(TOKENIZER, end_ids=tuple(range(4, 11)))
    (text,) = [each.text for each in findings.tokenizers(many, TOKENIZER) if each.about == "end ids"]
    assert "4, 5, 6, 7 and 3 more" in text


@pytest.mark.parametrize(
    ("changes", "kind", "grade", "said"),
    [
        ({}, 2, "well", "300 ids in common, with the same texts"),
        ({"n_vocab": 310}, 2, "well", "the drafter has 310, the expert 300"),
        ({}, 0, "warning", "by number alone"),
        ({"n_shared": None, "difference": "token id 7 is 'a' for the drafter"}, 2, "no", "token id 7 is 'a' for the drafter"),
    ],
)
def test_the_vocabularys_verdict(changes, kind, grade, said):
    expert = replace(MODEL, tokenizer=replace(TOKENIZER, kind=kind))
    found = findings.vocabulary(replace(MODEL, **changes), expert)
    assert found.grade == grade
    assert said in found.text


@pytest.mark.parametrize(
    ("ours", "theirs", "grade"),
    [("a", "a", "well"), ("a\n", "a", "well"), ("a", "b", "warning"), (None, "a", "warning"), ("a", None, "warning"), (None, None, "note")],
)
def test_the_chat_templates(ours, theirs, grade):
    found = findings.chat_templates(replace(MODEL, chat_template=ours), replace(MODEL, chat_template=theirs))
    assert (found.about, found.grade) == ("chat template", grade)


@pytest.mark.parametrize(
    ("rollback", "refused", "grade", "said"),
    [
        ("tail", None, "well", "drops the tail"),
        ("snapshots", None, "well", "2.0 MB in all"),
        ("checkpoints", None, "warning", "a checkpoint of its state, 2.0 MB,"),
        (None, "a diffusion model does not write from left to right", "no", "a diffusion model"),
        (None, None, "no", "cannot forget"),
    ],
)
def test_each_way_to_roll_back(rollback, refused, grade, said):
    found = findings.rollback("expert", replace(MODEL, rollback=rollback, refused=refused, recurrent=2_000_000, state=2_000_000))
    assert (found.about, found.grade) == ("expert: rollback", grade)
    assert said in found.text


@given(small=st.integers(1, 10**12), large=st.integers(1, 10**12))
def test_a_ratio_below_four_is_warned_of(small, large):
    found = findings.size(small, large)
    assert (found.grade == "warning") == (large / small < findings.MIN_RATIO)
    assert ("larger one" in found.text) == (large < small)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_a_quantized_cache_of_the_drafter_is_warned_of(cache_type):
    assert bool(list(findings.drafter_cache(Placement(cache_type=cache_type)))) == (cache_type in QUANTIZED)


def test_a_mixture_of_experts_is_warned_of():
    assert not list(findings.mixture(MODEL))
    (found,) = findings.mixture(replace(MODEL, n_experts=64))
    assert found.grade == "warning"
    assert "a mixture of 64" in found.text


def test_every_line_of_a_verdict_is_explained_in_the_documents():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "pairs.md").read_text(encoding="utf-8")
    sources = [(root / "speccascade_local" / "machine" / name).read_text(encoding="utf-8") for name in ("findings.py", "check.py")]
    found = (re.findall(r'Finding\(\s*(?:"\w+"|grade|[^,]+),\s*"([a-z -]+)"', source) for source in sources)
    subjects = {"rollback"}.union(*found)
    assert subjects >= {"vocabulary", "chat template", "memory", "speed", "files", "context", "size", "experts", "cache"}
    for about in subjects:
        assert f"**{about}.**" in page, about
