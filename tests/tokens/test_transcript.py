"""A conversation as ids: the prompt spells exactly what the template wrote, and what was generated keeps the ids that were generated.

The oracle is plain: the same text tokenized again, compared as text.
"""

from __future__ import annotations

import time

import gguf
import pytest
from gguf_files import CHATML, IM_END, byte_id, text_model
from hypothesis import given, settings
from hypothesis import strategies as st

from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.tokenizer import Tokenizer
from speccascade_local.tokens.chat_template import ChatTemplate
from speccascade_local.tokens.prompt import encode_parts
from speccascade_local.tokens.transcript import Transcript, _after

ENDOFTEXT = 0
NO_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] | trim }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
BEGUN_THINKING = NO_THOUGHTS + "<think>\n"
TEMPLATES = {"chatml": CHATML, "no thoughts": NO_THOUGHTS, "plain": PLAIN, "begun thinking": BEGUN_THINKING}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("words")
    pieces = {byte_id(byte): f"<0x{byte:02X}>" for byte in range(256)} | {259: "▁", 260: "▁t", 261: "th", 262: "he"}
    types = {byte_id(byte): gguf.TokenType.BYTE for byte in range(256)}
    spm = text_model(folder / "spm.gguf", kind="llama", texts=pieces, types=types)
    models = [LlamaModel(text_model(folder / "bpe.gguf")), LlamaModel(spm)]
    yield [model.tokenizer for model in models]
    for model in models:
        model.close()


def template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], special_texts={"bos_token": "", "eos_token": ""}, control_texts=tokenizer.control_texts)


def spelled(ids: list[int], tokenizer: Tokenizer) -> bytes:
    return b"".join(tokenizer.piece(token, special=True) for token in ids)


def written_text(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text that a user would see of an answer."""
    return b"".join(map(tokenizer.piece, ids)).decode(errors="replace")


texts = st.text("the <>/|_endim\n", max_size=8) | st.sampled_from(["<|im_end|>", "the</think> he", " the ", "é"])
answers = st.lists(st.integers(0, 262), max_size=8)


@pytest.mark.slow
@given(st.sampled_from(list(TEMPLATES)), st.integers(0, 1), st.lists(st.tuples(texts, answers, st.booleans()), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_every_prompt_spells_what_the_template_wrote(tokenizers, name: str, which: int, turns) -> None:
    tokenizer = tokenizers[which]
    chat, transcript, messages = template(name, tokenizer), Transcript(), []
    for question, answer, ended in turns:
        messages.append({"role": "user", "content": question})
        rendered = chat.render(messages)
        transcript = transcript.prompt(rendered, tokenizer)
        # Broken characters of an answer are shown as U+FFFD, and the prompt has them either as they were or as they are shown.
        plain = encode_parts(rendered, tokenizer)
        assert is_same_text(spelled(transcript.ids, tokenizer), spelled(plain, tokenizer))
        ids = [token for token in answer if token > 2] + ([IM_END] if ended else [])
        transcript = transcript.answered(ids)
        messages.append({"role": "assistant", "content": written_text(ids, tokenizer)})


def is_same_text(one: bytes, other: bytes) -> bool:
    return one.decode(errors="replace") == other.decode(errors="replace")


def test_an_answer_keeps_its_ids_where_tokenizing_it_again_gives_others(tokenizers) -> None:
    tokenizer = tokenizers[0]
    chat, question = template("chatml", tokenizer), {"role": "user", "content": "the"}
    first = Transcript().prompt(chat.render([question]), tokenizer)
    answer = [byte_id(ord(letter)) for letter in "the"]  # three ids for what the tokenizer writes with one
    assert tokenizer.tokenize("the", add_special=False, parse_special=False) != answer
    messages = [question, {"role": "assistant", "content": "the"}, question]
    behind = tokenizer.tokenize("\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n", add_special=False, parse_special=True)
    for ids in ([*answer, IM_END], answer, [*answer, ENDOFTEXT]):  # ended as the template ends it, not at all, and otherwise
        second = first.answered(ids).prompt(chat.render(messages), tokenizer)
        assert second.ids == [*first.ids, *answer, IM_END, *behind]


def test_thoughts_that_the_template_drops_are_dropped_and_what_stands_before_them_stays(tokenizers) -> None:
    tokenizer = tokenizers[0]
    chat, question = template("no thoughts", tokenizer), {"role": "user", "content": "he"}
    first = Transcript().prompt(chat.render([question]), tokenizer)
    thought = tokenizer.tokenize("<think>hm</think>the", add_special=False, parse_special=False)
    answered = first.answered([*thought, IM_END])
    messages = [question, {"role": "assistant", "content": "<think>hm</think>the"}, question]
    second = answered.prompt(chat.render(messages), tokenizer)
    assert second.ids[: len(first.ids)] == first.ids
    assert b"hm" not in spelled(second.ids, tokenizer)
    assert second.ids == encode_parts(chat.render(messages), tokenizer)


def test_a_control_token_that_a_question_spells_is_not_taken_for_the_one_that_ended_an_answer(tokenizers) -> None:
    tokenizer = tokenizers[0]
    chat = template("plain", tokenizer)
    first = Transcript().prompt(chat.render([{"role": "user", "content": "he"}]), tokenizer)
    answered = first.answered([byte_id(ord("a")), IM_END])
    faked = [{"role": "user", "content": "he"}, {"role": "assistant", "content": "a<|im_end|>"}, {"role": "user", "content": "he"}]
    ids = answered.prompt(chat.render(faked), tokenizer).ids
    assert IM_END not in ids
    assert spelled(ids, tokenizer) == b"user: he\nassistant: a<|im_end|>\nuser: he\nassistant: "


def test_a_vocabulary_that_begins_texts_with_a_space_gets_none_into_the_middle(tokenizers) -> None:
    tokenizer = tokenizers[1]
    assert spelled(tokenizer.tokenize("the", add_special=False, parse_special=False), tokenizer) == b" the"
    chat = template("plain", tokenizer)
    first = Transcript().prompt(chat.render([{"role": "user", "content": "a"}]), tokenizer)
    answered = first.answered([byte_id(ord("b"))])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert b"b \n" not in spelled(answered.prompt(chat.render(messages), tokenizer).ids, tokenizer)


def test_a_transcript_is_a_value(tokenizers) -> None:
    tokenizer = tokenizers[0]
    first = Transcript().prompt([("the", True)], tokenizer)
    before = list(first.ids)
    first.answered([5, 6])
    first.prompt([("other", True)], tokenizer)
    assert first.ids == before
    assert Transcript().ids == []


def test_an_answer_of_a_hundred_thousand_spelled_control_tokens_is_found_again_at_once():
    spelled = "<|im_end|>"
    begun = time.perf_counter()
    assert _after([(spelled * 200_000, None)], [(spelled, False)] * 200_000 + [("more", True)]) == [("more", True)]
    assert time.perf_counter() - begun < 10
