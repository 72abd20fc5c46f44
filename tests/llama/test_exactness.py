"""Rounding, over weights in 4 bits, whose rows really depend on the size of a batch: seeds that repeat, and a strict that is exact."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import llama_cpp
import numpy as np
import pytest
from gguf_files import quantized, recurrent_model, shaped_model, textless_model
from hypothesis import given, settings
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local.common.errors import ModelLoadError, SettingError
from speccascade_local.llama.batch import Part
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.exactness import MIN_BATCH
from speccascade_local.llama.model import LlamaModel
from speccascade_local.models.placement import Placement
from speccascade_local.runtime.settings import Settings
from speccascade_local.server.engine import Engine
from speccascade_local.tokens.prompt import shared_prefix_length

VOCAB = 300


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Random weights in 4 bits, whose best tokens are often nearly equal, and the same in 8 bits, which mostly agrees with them."""
    folder = tmp_path_factory.mktemp("quantized")
    whole = shaped_model(folder / "whole.gguf", width=512, layers=3, ffn=1024, vocab=VOCAB)
    return SimpleNamespace(
        expert=quantized(whole, folder / "expert.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M),
        drafter=quantized(whole, folder / "drafter.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0),
    )


def prompts(count: int, *, longest: int = 300) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCAB, int(size)).tolist() for size in rng.integers(2, longest, count)]


# --------------------------------------------------------------------------- a seed repeats an answer


@pytest.fixture(scope="module")
def pair(files: SimpleNamespace) -> Iterator[sc.Runtime]:
    with sc.load(drafter=files.drafter, expert=files.expert, n_ctx=512, n_threads=1) as runtime:
        yield runtime


@pytest.mark.slow
@pytest.mark.parametrize("block_size", ["auto", 4])
def test_a_named_seed_repeats_fifty_answers_whatever_the_caches_hold(pair, block_size):
    replies = []
    for at, prompt in enumerate(prompts(50)):

        def ask(prompt: list[int], seed: int = at) -> list[int]:
            return pair.generate(prompt, temperature=1, seed=seed, max_tokens=16, block_size=block_size).token_ids

        pair.reset()
        first = ask(prompt)
        again = ask(prompt)
        pair.generate([*prompt, *first, 7, 8, 9], temperature=1, max_tokens=8)  # the conversation continues without a seed
        replies.append((first, again, ask(prompt)))
    assert all(first == again == later for first, again, later in replies)
    assert len({tuple(first) for first, _, _ in replies}) == len(replies)


@pytest.mark.slow
def test_a_long_prompt_that_is_asked_again_with_a_seed_is_not_read_again_as_a_whole(pair):
    prompt = prompts(1)[0] * 3
    assert len(prompt) > 256
    pair.reset()
    asked = [pair.generate(prompt, temperature=1, seed=3, max_tokens=4) for _ in range(2)]
    assert asked[0].stats.cached_tokens == 0
    assert len(prompt) - 128 - 1 <= asked[1].stats.cached_tokens < len(prompt)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_aligned_is_followed_by_the_rows_of_a_cold_reading(contexts, data):
    used, cold = contexts.used, contexts.cold
    timeline, fresh = used.timeline, cold.timeline
    text = data.draw(st.integers(1, 3).map(lambda seed: prompts(seed, longest=480)[-1]))
    end = data.draw(st.integers(1, len(text)))
    keep = data.draw(st.integers(1, min(6, end)))
    start = used.context.aligned(timeline, shared_prefix_length(timeline.tokens, text[: end - keep]))
    used.context.drop(timeline, start)
    rows = used.context.evaluate([Part(timeline, text[start:end], keep)])[0].copy()
    cold.context.drop(fresh, 0)
    assert np.array_equal(rows, cold.context.evaluate([Part(fresh, text[:end], keep)])[0])
    for token in data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=3)):  # an answer, token by token
        used.context.evaluate([Part(timeline, [token], 1)])


@pytest.mark.slow
def test_of_a_cache_whole_pieces_are_kept_and_of_a_recurrent_state_nothing(files, tmp_path):
    for path, placement, aligned in (
        (files.expert, None, 384),  # in pieces of 128
        (files.expert, Placement(flash_attention="on"), 0),  # in pieces of 512
        (recurrent_model(tmp_path / "recurrent.gguf"), None, 0),
    ):
        with opened(path, placement) as used:
            used.context.evaluate([Part(used.timeline, [1, 2] * 250, 1)])
            assert used.context.aligned(used.timeline, 500) == aligned
            used.context.drop(used.timeline, 0)
            used.context.evaluate([Part(used.timeline, [1, 2] * 256, 1)])
            assert used.context.aligned(used.timeline, 512) == (0 if "recurrent" in path.name else 512)


@pytest.fixture(scope="module")
def contexts(files: SimpleNamespace) -> Iterator[SimpleNamespace]:
    with opened(files.expert) as used, opened(files.expert) as cold:
        yield SimpleNamespace(used=used, cold=cold)


@contextmanager
def opened(path: Path, placement: Placement | None = None) -> Iterator[SimpleNamespace]:
    """A context over the file, with one timeline."""
    with closing(LlamaModel(path, placement=placement)) as model, closing(LlamaContext(model, n_ctx=512, n_threads=1)) as context:
        yield SimpleNamespace(context=context, timeline=context.open())


# --------------------------------------------------------------------------- strict is the expert's own text


@pytest.fixture(scope="module")
def exact(files: SimpleNamespace) -> Iterator[sc.Runtime]:
    with sc.load(drafter=files.drafter, expert=files.expert, n_ctx=512, n_threads=1, exact=True) as runtime:
        yield runtime


@pytest.mark.slow
def test_exact_strict_at_temperature_0_is_the_experts_own_text_to_the_last_token(exact):
    drafted = 0
    for prompt in prompts(8):
        alone = exact.generate(prompt, block_size=0, max_tokens=80)
        for block_size in (1, 3, 6, 12, "auto"):
            reply = exact.generate(prompt, rule="strict", block_size=block_size, max_tokens=80)
            assert reply.token_ids == alone.token_ids
            assert [token.expert_logprob for token in reply.tokens] == [token.expert_logprob for token in alone.tokens]
            drafted += reply.stats.accepted
    assert drafted > 330  # drafts were kept, so batches were read


@pytest.mark.slow
def test_exact_works_up_to_the_last_token_of_a_context(exact):
    prompt = prompts(1)[0]
    texts = [exact.generate(prompt, rule="strict", block_size=size, max_tokens=512).token_ids for size in (0, 5)]
    assert texts[0] == texts[1]
    assert len(prompt) + len(texts[0]) == 513


@pytest.mark.slow
def test_exact_answers_at_once_are_those_made_one_after_the_other(files):
    asked = prompts(3, longest=60)
    with sc.load(drafter=files.drafter, expert=files.expert, n_ctx=256, n_threads=1, exact=True, timelines=2) as runtime:
        alone = [runtime.generate(prompt, block_size=0, max_tokens=40).token_ids for prompt in asked]
        with Engine({"pair": runtime}, slots=2) as engine:
            jobs = [engine.submit("pair", prompt, Settings(rule="strict", block_size=4, max_tokens=40)) for prompt in asked]
            assert [job.reply().token_ids for job in jobs] == alone


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 14), min_size=1, max_size=12), dropped=st.integers(0, 9))
def test_exact_rows_do_not_depend_on_how_many_are_read_at_once(exact_contexts, sizes, dropped):
    text, start = prompts(1)[0], 40
    several, singly = exact_contexts
    for context, timeline in exact_contexts:
        context.drop(timeline, 0)
        context.evaluate([Part(timeline, text[:start], 0)])
    ids = (text * 2)[start : start + sum(sizes)]
    expected = np.concatenate([singly[0].evaluate([Part(singly[1], [token], 1)])[0] for token in ids])
    end = 0
    for size in sizes:
        rows = several[0].evaluate([Part(several[1], ids[end : end + size], size)])[0]
        assert np.array_equal(rows, expected[end : end + size])
        back = min(dropped, size)  # and once more, as after a draft that was dropped in part
        several[0].drop(several[1], start + end + size - back)
        if back:
            rows = several[0].evaluate([Part(several[1], ids[end + size - back : end + size], back)])[0]
            assert np.array_equal(rows, expected[end + size - back : end + size])
        end += size


@pytest.fixture(scope="module")
def exact_contexts(files: SimpleNamespace) -> Iterator[list[tuple[LlamaContext, object]]]:
    with opened(files.expert, Placement(exact=True)) as one, opened(files.expert, Placement(exact=True)) as other:
        assert one.context.exact >= MIN_BATCH
        yield [(each.context, each.timeline) for each in (one, other)]


def test_exact_is_refused_where_a_memory_cannot_drop_a_token(tmp_path):
    path = recurrent_model(tmp_path / "recurrent.gguf")
    drafter = textless_model(tmp_path / "drafter.gguf")
    with pytest.raises(ModelLoadError, match=r"recurrent\.gguf: exact needs a memory that drops single tokens.*without exact"):
        sc.load(drafter=drafter, expert=path, n_threads=1, exact=True)


def test_exact_is_refused_where_no_batch_agrees_with_single_tokens(files, monkeypatch):
    monkeypatch.setattr("speccascade_local.llama.exactness._largest_equal_batch", lambda *_: 1)
    with pytest.raises(ModelLoadError, match=r"a batch of two tokens rounds differently from one token.*without exact"):
        sc.load(drafter=files.drafter, expert=files.expert, n_ctx=64, n_threads=1, exact=True)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other kernels")
@pytest.mark.parametrize("bits", ["F16", "F32"])
def test_exact_is_refused_for_weights_of_16_and_32_bits(files, tmp_path, bits):
    """llama.cpp multiplies them by a kernel for batches that single tokens do not have."""
    whole = shaped_model(tmp_path / "F16.gguf", width=512, layers=3, ffn=1024, vocab=VOCAB)
    path = whole if bits == "F16" else quantized(whole, tmp_path / "F32.gguf", llama_cpp.LLAMA_FTYPE_ALL_F32)
    with pytest.raises(ModelLoadError, match=r"a batch of two tokens rounds differently from one token"):
        sc.load(drafter=files.drafter, expert=path, n_ctx=64, n_threads=1, exact=True)


def test_exact_must_be_true_or_false():
    with pytest.raises(SettingError, match=r"exact is 1; it must be True or False"):
        Placement(exact=1)


def test_exact_without_flash_attention_is_refused():
    with pytest.raises(SettingError, match=r"exact needs flash attention, which is off"):
        Placement(exact=True, flash_attention="off")
