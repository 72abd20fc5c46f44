"""Automatic lengths, guesses and a third model on real models: what load offers, and that strict stays the expert's text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import speccascade_local as sc
from speccascade_local.common.errors import SettingError
from speccascade_local.decoding.profile import Profile, Speed
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.session import LlamaSession
from speccascade_local.models import catalog

FILES = catalog.bundled_pair()
QUESTIONS = ["Translate to French: The red cat sells the old table now.", "What is 17 plus 25?", "Who is Buzz Aldrin?"]


def conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def nearly_equal(runtime: sc.Runtime, prompt: list[int], ours: list[int], alone: list[int]) -> bool:
    """The same text, or one that parts at a near-tie: other batches round otherwise."""
    if ours == alone:
        return True
    at = next(i for i, (a, b) in enumerate(zip(ours, alone)) if a != b)
    fresh = LlamaSession(LlamaContext(runtime._model, n_ctx=runtime.n_ctx, n_threads=1), n_vocab=runtime.n_vocab)
    row = fresh.extend(prompt + alone[:at], keep=1)[0]
    gap = abs(float(row[ours[at]] - row[alone[at]]))
    fresh.context.close()
    return gap < 0.3


@pytest.fixture(scope="module")
def ngram():
    with sc.load(drafter="ngram", expert=FILES.expert, n_threads=1) as runtime:
        yield runtime


@pytest.mark.slow
@pytest.mark.parametrize("block_size", ["auto", 4])
@pytest.mark.parametrize("pair", ["demo", "ngram"])
def test_strict_writes_the_experts_greedy_text_whoever_drafts(request, pair, block_size):
    runtime = request.getfixturevalue(pair)
    for question in QUESTIONS:
        ids = runtime.chat_ids([*conversation(question), {"role": "assistant", "content": "Yes."}, *conversation(question)])
        alone = runtime.generate(ids, rule="strict", block_size=0, max_tokens=50).token_ids
        reply = runtime.generate(ids, rule="strict", block_size=block_size, max_tokens=50)
        assert nearly_equal(runtime, ids, reply.token_ids, alone)


def test_two_devices_write_the_experts_greedy_text_too(demo, monkeypatch):
    """As if the models did not hinder each other: both read the prompt at once, and the drafter writes ahead."""
    ids = demo.chat_ids(conversation(" ".join(QUESTIONS)))
    alone = demo.generate(ids, rule="strict", block_size=0, max_tokens=50)
    one = Speed(1, 1, (0,), ((1.0,) * 17,), 1 / 17)
    monkeypatch.setattr(demo._loaded, "profile", Profile(one, replace(one, seconds=((0.1,) * 17,)), 0.0, {}))
    demo.reset()
    reply = demo.generate(ids, rule="strict", seed=0, max_tokens=50)
    assert reply.stats.expert_calls == reply.stats.blocks + 1, "one more for the prompt"
    assert nearly_equal(demo, ids, reply.token_ids, alone.token_ids)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["strict", "token_v3:0.5", "chow:0.3", "opt:0.2", "mentored:0.1", "typical", "budget:0.05"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_guesses_alone_go_with_every_kind_of_rule(ngram, rule, temperature):
    reply = ngram.chat(conversation(QUESTIONS[0]), rule=rule, temperature=temperature, max_tokens=20, seed=1)
    assert reply.tokens
    assert reply.fidelity.judged == len(reply.tokens)


def test_where_there_is_no_second_model_a_repeated_passage_costs_few_calls(ngram):
    answer = ngram.chat(conversation(QUESTIONS[0]), rule="strict", block_size=0).text
    asked_twice = [*conversation(QUESTIONS[0]), {"role": "assistant", "content": answer}, *conversation(QUESTIONS[0])]
    reply = ngram.chat(asked_twice, rule="strict", max_tokens=40)
    assert reply.text == answer
    assert reply.stats.accepted == sum(origin == "matched" for origin in reply.origins) > len(reply.tokens) / 2
    assert reply.stats.guessed == reply.stats.drafted


def test_the_account_of_guessed_tokens_is_the_experts(ngram):
    answer = ngram.chat(conversation(QUESTIONS[0]), rule="strict", block_size=0).text
    asked_twice = [*conversation(QUESTIONS[0]), {"role": "assistant", "content": answer}, *conversation(QUESTIONS[0])]
    ngram.reset()
    reply = ngram.chat(asked_twice, rule="strict", logprobs=3, max_tokens=40)
    alone = ngram.chat(asked_twice, rule="strict", block_size=0, logprobs=3, max_tokens=40)
    assert [token.expert_logprob for token in reply.tokens] == pytest.approx([token.expert_logprob for token in alone.tokens], abs=0.05)
    assert {token.tv for token in reply.tokens} == {0}


def test_a_seed_repeats_an_answer_whatever_was_asked_in_between(demo):
    def ask():
        demo.reset()
        return demo.chat(conversation(QUESTIONS[1]), temperature=1, seed=3, max_tokens=40).as_dict()

    first = ask()
    for question in QUESTIONS:
        demo.chat(conversation(question), temperature=1, max_tokens=40)
    assert ask() == first


def test_what_was_learnt_goes_into_a_file_and_into_the_next_runtime(demo):
    demo.chat(conversation(QUESTIONS[0]), rule="strict", max_tokens=40)
    learnt = json.loads(json.dumps(demo.learnt()))
    assert "strict at temperature 0" in learnt
    with sc.load(n_threads=1, learnt=learnt) as runtime:
        assert json.loads(json.dumps(runtime.learnt())) == learnt
        runtime.chat(conversation(QUESTIONS[0]), rule="strict", max_tokens=40, seed=1)
        assert json.loads(json.dumps(runtime.learnt())) == learnt, "a call with a seed teaches nothing"


@pytest.mark.parametrize("learnt", [{"strict": {}}, {"strict": 3}, [1]], ids=str)
def test_what_nobody_has_learnt_is_refused(learnt):
    with pytest.raises(SettingError, match=r"learnt is not what Runtime\.learnt\(\) gives"):
        sc.load(learnt=learnt)


def test_without_a_profile_one_is_made_when_lengths_need_it():
    with sc.load(n_threads=1, profile=False) as runtime:
        assert runtime._loaded.profile is None
        runtime.chat(conversation(QUESTIONS[0]), block_size=3, max_tokens=5)
        assert runtime._loaded.profile is None
        runtime.chat(conversation(QUESTIONS[0]), max_tokens=5)
        assert runtime._loaded.profile is not None
