"""What ids stand for: text into ids and back, control tokens, files without text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from gguf_files import CONTROLS, ENDOFTEXT, IM_END, IM_START, byte_id, text_model
from hypothesis import given, settings
from hypothesis import strategies as st

import speccascade_local
from speccascade_local.common.errors import PromptError
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.llama.tokenizer import Tokenizer

DEMO = Path(speccascade_local.__file__).parent / "demo"


@pytest.fixture(scope="module")
def tokenizer(model: LlamaModel) -> Tokenizer:
    return model.tokenizer


@pytest.fixture(scope="module")
def demo_tokenizer() -> Iterator[Tokenizer]:
    model = LlamaModel(DEMO / "expert.gguf")
    yield model.tokenizer
    model.close()


plain_text = st.text(max_size=30) | st.lists(st.sampled_from([*CONTROLS, " the then", "\n\n", "12345", "é", "😀", "\0", "\r\n"])).map(
    "".join
)


@given(plain_text)
@settings(max_examples=100, deadline=None)
def test_the_pieces_of_a_tokenized_text_are_its_bytes(tokenizer: Tokenizer, demo_tokenizer: Tokenizer, text: str) -> None:
    for each in (tokenizer, demo_tokenizer):
        ids = each.tokenize(text, add_special=False, parse_special=False)
        assert b"".join(map(each.piece, ids)) == text.encode()
        assert all(0 <= token < each.n_vocab for token in ids)


def test_merged_and_single_bytes_stand_for_their_own_bytes(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(byte_id(byte)) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert [tokenizer.piece(token) for token in tokenizer.tokenize("the then", add_special=False, parse_special=False)] == [
        b"the",
        b" the",
        b"n",
    ]


def test_control_tokens_are_parsed_only_on_request_and_have_no_bytes(tokenizer: Tokenizer) -> None:
    text = "a<|im_end|>"
    assert tokenizer.tokenize(text, add_special=False, parse_special=True) == [byte_id(ord("a")), IM_END]
    assert not {ENDOFTEXT, IM_START, IM_END} & set(tokenizer.tokenize(text, add_special=False, parse_special=False))
    assert [tokenizer.piece(token) for token in range(3)] == [b""] * 3


def test_the_unknown_token_counts_as_a_control_token(tmp_path: Path) -> None:
    model = LlamaModel(text_model(tmp_path / "unknown.gguf", texts={200: "<unk>"}, types={200: gguf.TokenType.UNKNOWN}))
    assert model.tokenizer.control_texts == {*CONTROLS, "<unk>"}
    assert model.tokenizer.tokenize("<unk>", add_special=False, parse_special=True) == [200]
    assert 200 not in model.tokenizer.tokenize("<unk>", add_special=False, parse_special=False)
    model.close()


def test_text_that_utf8_cannot_hold_is_a_prompt_error(tokenizer: Tokenizer) -> None:
    """Such as a command line argument that was not UTF-8: Python stands in lone surrogates for its bytes."""
    with pytest.raises(PromptError):
        tokenizer.tokenize("caf\udce9", add_special=True, parse_special=True)


def test_a_piece_longer_than_any_buffer_comes_whole(tmp_path: Path) -> None:
    model = LlamaModel(text_model(tmp_path / "long.gguf", texts={200: "y" * 500}))
    assert model.tokenizer.piece(200) == b"y" * 500
    model.close()


def test_exactly_end_of_text_and_end_of_turn_end_a_text(tokenizer: Tokenizer) -> None:
    assert [token for token in range(tokenizer.n_vocab) if tokenizer.is_end(token)] == [ENDOFTEXT, IM_END]


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("add_eos", [False, True])
def test_bos_and_eos_are_added_as_the_file_says(tmp_path: Path, add_bos: bool, add_eos: bool) -> None:
    model = LlamaModel(text_model(tmp_path / "frame.gguf", add_bos=add_bos, add_eos=add_eos, bos_id=IM_START, eos_id=ENDOFTEXT))
    assert model.tokenizer.bos_id == (IM_START if add_bos else None)
    assert model.tokenizer.eos_id == (ENDOFTEXT if add_eos else None)
    assert model.tokenizer.special_texts == {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
    framed = model.tokenizer.tokenize("a", add_special=True, parse_special=False)
    assert framed == [IM_START] * add_bos + [byte_id(ord("a"))] + [ENDOFTEXT] * add_eos
    model.close()


def test_exactly_the_control_tokens_have_control_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.control_texts == frozenset(CONTROLS)


def test_a_model_without_text_works_on_ids_alone(ids_model: LlamaModel) -> None:
    assert not ids_model.tokenizer.has_text
    with pytest.raises(PromptError, match=r"ids\.gguf has token ids but no text"):
        ids_model.tokenizer.tokenize("a", add_special=True, parse_special=True)
    assert [ids_model.tokenizer.piece(token) for token in range(ids_model.n_vocab)] == [b""] * 96
    assert not any(ids_model.tokenizer.is_end(token) for token in range(ids_model.n_vocab))
    assert ids_model.tokenizer.control_texts == frozenset()
    assert ids_model.tokenizer.special_texts == {"bos_token": "", "eos_token": ""}
    session = LlamaSession(LlamaContext(ids_model, n_ctx=32, n_threads=1))
    assert session.extend([5, 95], 2).shape == (2, 96)
    session.context.close()
