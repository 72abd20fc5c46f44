"""Which two files may answer as one, and that nothing outside the ids that both have is ever emitted."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf_files import ENDOFTEXT, IM_END, IM_START, text_model, textless_model
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import SMALL, WIDE, differences, our_verdict

import speccascade_local as sc
from speccascade_local.common.errors import PairError, PromptError
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.llama.tokenizer import Tokenizer, shared_vocab_size

Opener = Callable[..., Tokenizer]


@pytest.fixture
def text(tmp_path: Path) -> Iterator[Opener]:
    """Opens models with a text vocabulary; closed after the test."""
    yield from opener(text_model, tmp_path)


@pytest.fixture
def textless(tmp_path: Path) -> Iterator[Opener]:
    """Opens models without a text vocabulary; closed after the test."""
    yield from opener(textless_model, tmp_path)


def opener(write: Callable[..., Path], folder: Path) -> Iterator[Opener]:
    opened: list[LlamaModel] = []

    def open_model(**options: object) -> Tokenizer:
        opened.append(LlamaModel(write(folder / f"{write.__name__}-{len(opened)}.gguf", **options)))
        return opened[-1].tokenizer

    yield open_model
    for model in opened:
        model.close()


def assert_refused(one: Tokenizer, other: Tokenizer, message: str, reverse: str) -> None:
    """Either way round, and with advice."""
    with pytest.raises(PairError, match=message):
        shared_vocab_size(one, other)
    with pytest.raises(PairError, match=reverse + r".*; choose a drafter of the same model family"):
        shared_vocab_size(other, one)


# --------------------------------------------------------------------------- accepted


def test_two_models_of_one_vocabulary_share_all_of_it(text: Opener) -> None:
    assert shared_vocab_size(text(seed=1, heads=1), text(seed=2, heads=2)) == SMALL


def test_sizes_up_to_128_apart_share_the_smaller_one(text: Opener) -> None:
    small, wide = text(n_vocab=SMALL), text(n_vocab=WIDE)
    assert shared_vocab_size(small, wide) == shared_vocab_size(wide, small) == SMALL


@pytest.mark.parametrize("token", range(5))
def test_the_first_five_ids_may_be_named_differently(text: Opener, token: int) -> None:
    assert shared_vocab_size(text(), text(texts={token: "<other>"})) == SMALL


def test_texts_beyond_the_smaller_vocabulary_do_not_matter(text: Opener) -> None:
    assert shared_vocab_size(text(n_vocab=SMALL + 1), text(n_vocab=SMALL + 2, texts={SMALL + 1: "anything"})) == SMALL + 1


def test_bos_and_eos_ids_that_are_not_added_may_differ(text: Opener) -> None:
    assert shared_vocab_size(text(bos_id=IM_START, eos_id=IM_END), text(bos_id=ENDOFTEXT, eos_id=ENDOFTEXT)) == SMALL


def test_bos_and_eos_that_both_add_may_be_the_same_ids(text: Opener) -> None:
    frame = {"add_bos": True, "add_eos": True, "bos_id": ENDOFTEXT, "eos_id": IM_END}
    assert shared_vocab_size(text(**frame), text(**frame)) == SMALL


@pytest.mark.parametrize(("one", "other"), [(96, 96), (96, 96 + 128)])
def test_vocabularies_without_text_compare_by_size_alone(textless: Opener, one: int, other: int) -> None:
    assert shared_vocab_size(textless(n_vocab=one), textless(n_vocab=other)) == min(one, other)


# --------------------------------------------------------------------------- refused


def test_different_kinds_of_vocabulary_are_refused_by_name(text: Opener, textless: Opener) -> None:
    bpe, spm, none = text(), text(kind="llama"), textless(n_vocab=SMALL)
    assert_refused(
        bpe, spm, r"drafter's vocabulary is byte-level BPE, the expert's SentencePiece", "is SentencePiece .*the expert's byte-level BPE"
    )
    assert_refused(bpe, none, "drafter's vocabulary is byte-level BPE, the expert's no text", "is no text, the expert's byte-level BPE")


@pytest.mark.parametrize("which", ["bos", "eos"])
def test_a_frame_that_only_one_model_adds_is_refused(text: Opener, which: str) -> None:
    adding = text(**{f"add_{which}": True, f"{which}_id": IM_END})
    assert_refused(
        adding,
        text(),
        rf"{which}_id is id {IM_END} for the drafter, not added for the expert",
        rf"{which}_id is not added for the drafter, id {IM_END} for the expert",
    )


@pytest.mark.parametrize("which", ["bos", "eos"])
def test_frames_of_different_ids_are_refused(text: Opener, which: str) -> None:
    one, other = (text(**{f"add_{which}": True, f"{which}_id": token}) for token in (ENDOFTEXT, IM_END))
    assert_refused(one, other, rf"{which}_id is id 0 for the drafter, id 2 for the expert", rf"{which}_id is id 2 .*, id 0 ")


@pytest.mark.parametrize("kind", ["text", "textless"])
def test_sizes_129_apart_are_refused_with_both_sizes(request: pytest.FixtureRequest, kind: str) -> None:
    open_model: Opener = request.getfixturevalue(kind)
    small, wide = open_model(n_vocab=SMALL), open_model(n_vocab=WIDE + 1)
    assert_refused(
        small,
        wide,
        rf"drafter has {SMALL} token ids, the expert {WIDE + 1}: 129 apart, allowed are 128",
        rf"drafter has {WIDE + 1} token ids, the expert {SMALL}: 129 apart",
    )


def test_ids_from_5_on_must_mean_the_same(text: Opener) -> None:
    assert_refused(
        text(), text(texts={5: "<other>"}), "token id 5 is 'Ă' for the drafter and '<other>' for the expert", "token id 5 is '<other>'"
    )


@given(tokens=st.sets(st.integers(5, SMALL - 1), min_size=1, max_size=4))
@settings(max_examples=10, deadline=None)
def test_the_first_id_of_a_different_text_is_named_with_both_texts(tmp_path_factory: pytest.TempPathFactory, tokens: set[int]) -> None:
    folder = tmp_path_factory.mktemp("pair")
    plain = LlamaModel(text_model(folder / "plain.gguf"))
    changed = LlamaModel(text_model(folder / "changed.gguf", texts={token: f"changed_{token}" for token in tokens}))
    with pytest.raises(PairError) as error:
        shared_vocab_size(plain.tokenizer, changed.tokenizer)
    first = min(tokens)
    text = plain.tokenizer.token_text(first)
    assert f"token id {first} is {text!r} for the drafter and 'changed_{first}' for the expert" in str(error.value)
    plain.close()
    changed.close()


@pytest.mark.slow
def test_a_refused_pair_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, freed = llama_cpp.llama_model_free, []

    def free(handle: int) -> None:
        freed.append(handle)
        real(handle)

    monkeypatch.setattr(llama_cpp, "llama_model_free", free)
    with pytest.raises(PairError):
        sc.load(drafter=text_model(tmp_path / "bpe.gguf"), expert=text_model(tmp_path / "spm.gguf", kind="llama"))
    gc.collect()
    assert len(freed) == len(set(freed)) == 2


# --------------------------------------------------------------------------- the same verdict as llama.cpp's


def upstream_pairs(target: LlamaModel, draft: LlamaModel) -> bool:
    """Return the verdict of llama.cpp's own programs (common_speculative_are_compatible), which is not in the library."""
    ours, theirs = (llama_cpp.llama_model_get_vocab(model.handle) for model in (target, draft))
    if llama_cpp.llama_vocab_type(ours) != llama_cpp.llama_vocab_type(theirs):
        return False
    for adds, special in (
        (llama_cpp.llama_vocab_get_add_bos, llama_cpp.llama_vocab_bos),
        (llama_cpp.llama_vocab_get_add_eos, llama_cpp.llama_vocab_eos),
    ):
        if adds(ours) != adds(theirs) or (adds(ours) and special(ours) != special(theirs)):
            return False
    sizes = [llama_cpp.llama_vocab_n_tokens(vocab) for vocab in (ours, theirs)]
    if abs(sizes[0] - sizes[1]) > 128:
        return False
    text = llama_cpp.llama_vocab_get_text
    return all(text(ours, token) == text(theirs, token) for token in range(5, min(sizes)))


@pytest.mark.slow
@given(one=differences, other=differences, same=st.sampled_from(["add_bos", "add_eos", "bos_id", "eos_id", "n_vocab", "texts", "kind", ""]))
@settings(max_examples=150)
def test_every_verdict_is_llama_cpps(tmp_path_factory: pytest.TempPathFactory, one: dict, other: dict, same: str) -> None:
    if same in one:
        other = {**other, same: one[same]}
    folder = tmp_path_factory.mktemp("verdict")
    models = [LlamaModel(text_model(folder / f"{i}.gguf", **options)) for i, options in enumerate((one, other))]
    assert our_verdict(*models) == our_verdict(*reversed(models)) == upstream_pairs(*models)
    for model in models:
        model.close()


WAYS = [
    ({}, {}, True),
    ({"kind": "gpt2"}, {"kind": "llama"}, False),
    ({"pre": "smollm"}, {"pre": "qwen2"}, True),
    ({"add_bos": True}, {"add_bos": False}, False),
    ({"add_bos": True, "bos_id": 0}, {"add_bos": True, "bos_id": 1}, False),
    ({"add_bos": False, "bos_id": 0}, {"add_bos": False, "bos_id": 1}, True),
    ({"add_eos": True}, {"add_eos": False}, False),
    ({"add_eos": True, "eos_id": 0}, {"add_eos": True, "eos_id": 2}, False),
    ({"add_eos": False, "eos_id": 0}, {"add_eos": False, "eos_id": 2}, True),
    ({"n_vocab": SMALL}, {"n_vocab": WIDE}, True),
    ({"n_vocab": SMALL}, {"n_vocab": WIDE + 1}, False),
    ({}, {"texts": {4: "<x>"}}, True),
    ({}, {"texts": {5: "<x>"}}, False),
    ({}, {"texts": {SMALL - 1: "<x>"}}, False),
    ({"n_vocab": SMALL}, {"n_vocab": WIDE, "texts": {SMALL: "<x>"}}, True),
    ({"texts": {9: b"\xff"}}, {"texts": {9: b"\xfe"}}, False),
    ({"texts": {9: ""}}, {"texts": {9: "[EMPTY_9]"}}, True),
    ({"types": {9: gguf.TokenType.CONTROL}}, {}, True),
    ({"chat_template": "a"}, {"chat_template": "b"}, True),
]


@pytest.mark.parametrize(("one", "other", "pairs"), WAYS, ids=[f"{one} {other}" for one, other, _ in WAYS])
def test_one_way_to_differ_at_a_time(tmp_path: Path, one: dict, other: dict, pairs: bool) -> None:
    models = [LlamaModel(text_model(tmp_path / f"{i}.gguf", **options)) for i, options in enumerate((one, other))]
    assert our_verdict(*models) == our_verdict(*reversed(models)) == upstream_pairs(*models) == pairs
    for model in models:
        model.close()


def test_stored_texts_that_are_not_utf8_are_compared_as_bytes(text: Opener) -> None:
    assert_refused(
        text(texts={9: b"\xff"}), text(texts={9: b"\xfe"}), r"id 9 is b'\\xff' for the drafter and b'\\xfe'", r"id 9 is b'\\xfe'"
    )


# --------------------------------------------------------------------------- through a whole pair


@pytest.fixture(scope="module")
def widths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wide model nearly always prefers an id that the small one does not have."""
    folder = tmp_path_factory.mktemp("widths")
    return {
        "small": text_model(folder / "small.gguf", n_vocab=SMALL, seed=1),
        "wide": text_model(folder / "wide.gguf", n_vocab=WIDE, seed=2, loud_from=SMALL),
    }


@pytest.fixture(scope="module", params=["wide drafter", "wide expert"])
def pair(request: pytest.FixtureRequest, widths: dict[str, Path]) -> Iterator[sc.Runtime]:
    roles = ("wide", "small") if request.param == "wide drafter" else ("small", "wide")
    with sc.load(drafter=widths[roles[0]], expert=widths[roles[1]], n_ctx=128, n_threads=1) as runtime:
        yield runtime


PROMPT = list(range(20, 40))


def test_the_wide_model_alone_leaves_the_shared_vocabulary(widths: dict[str, Path]) -> None:
    """Guards the test below, which says nothing about a model that prefers shared ids anyway."""
    model = LlamaModel(widths["wide"])
    session = LlamaSession(LlamaContext(model, n_ctx=32, n_threads=1))
    preferred = session.extend(PROMPT, len(PROMPT)).argmax(axis=1)
    assert np.mean(preferred >= SMALL) > 0.9
    session.context.close()
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("rule", "block_size"), [("strict", 5), ("never", 5), ("strict", 0), ("token_v3:0.5", 3)])
def test_a_pair_of_different_widths_emits_shared_ids_only(pair: sc.Runtime, rule: str, block_size: int, temperature: float) -> None:
    assert pair.n_vocab == SMALL
    emitted = [
        token
        for seed in range(3)
        for token in pair.generate(PROMPT, rule=rule, block_size=block_size, temperature=temperature, max_tokens=30, seed=seed).token_ids
    ]
    assert emitted
    assert max(emitted) < SMALL


@pytest.mark.slow
def test_a_prompt_may_hold_shared_ids_only(pair: sc.Runtime) -> None:
    with pytest.raises(PromptError, match=rf"token id {SMALL}; the ids that both models have are 0 to {SMALL - 1}"):
        pair.generate([5, SMALL])


@pytest.mark.slow
def test_models_without_text_answer_ids_with_ids(tmp_path: Path) -> None:
    paths = [textless_model(tmp_path / f"{seed}.gguf", seed=seed) for seed in range(2)]
    with sc.load(drafter=paths[0], expert=paths[1], n_ctx=64, n_threads=1) as runtime:
        reply = runtime.generate([5, 6, 7], max_tokens=12)
        assert len(reply.token_ids) == 12
        assert reply.text == ""
        alone = runtime.generate([5, 6, 7], max_tokens=12, block_size=0)
        assert runtime.generate([5, 6, 7], max_tokens=12, rule="strict").token_ids == alone.token_ids
