"""Whole-answer and token-level cascades on the bundled pair, as users call them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import speccascade_local as sc
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.session import LlamaSession
from speccascade_local.rules import registry
from speccascade_local.rules.routes import ChowAverage, ChowQuantile, ChowSum, Margin
from speccascade_local.tokens.sampler import softmax

DEMO = Path(sc.__file__).parent / "demo"
QUESTIONS = [json.loads(line)["prompt"] for line in (DEMO / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[::60]]
#: Rows of one text differ by so much between batch sizes, and so do probabilities, a little less.
NOISE = 0.15
KEEPS = ["chow_sum:-1e9", "chow_average:-1e9", "chow_quantile:-1e9,0.5", "margin:0"]
REJECTS = ["chow_sum:1e-9", "chow_average:1e-9", "chow_quantile:1e-9,1", "margin:1"]


@pytest.fixture(params=QUESTIONS, ids=lambda question: question[:20])
def prompt(request, demo: sc.Runtime) -> list[int]:
    return ids(demo, request.param)


def ids(demo: sc.Runtime, question: str) -> list[int]:
    return demo.chat_ids([{"role": "user", "content": question}])


def cold(demo: sc.Runtime, prompt: list[int], **settings) -> sc.Reply:
    """With empty caches, so that two calls evaluate the same batches."""
    demo.reset()
    return demo.generate(prompt, seed=5, **settings)


def rows_of(demo: sc.Runtime, which: str, tokens: list[int], keep: int) -> np.ndarray:
    """Rows of one model from a session of its own. [keep, n_vocab]"""
    fresh = LlamaSession(LlamaContext(getattr(demo, which).model, n_ctx=demo.n_ctx, n_threads=1), n_vocab=demo.n_vocab)
    rows = fresh.extend(tokens, keep=keep).copy()
    fresh.context.close()
    return rows


def assert_caches_are_true(demo: sc.Runtime, text: list[int]) -> None:
    """Both hold a beginning of the text, and the rows that follow from it are what a fresh reading gives."""
    for which in ("_drafter", "_expert"):
        session = getattr(demo, which)
        held = list(session.tokens)
        assert held == text[: len(held)] != text
        if held:
            session.roll_back(len(held) - 1)
            np.testing.assert_allclose(session.extend(held[-1:], keep=1), rows_of(demo, which, held, 1), atol=NOISE)


def text_and_cost(reply: sc.Reply) -> dict:
    return reply.as_dict() | {"stats": reply.stats.counts()}


# --------------------------------------------------------------------------- whole answers


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_k": 4}], ids=["greedy", "sampled"])
def test_the_confidence_of_a_reply_is_the_formula_over_rows_of_a_fresh_drafter(demo, prompt, settings):
    answer = cold(demo, prompt, rule="never", **settings).token_ids
    fresh = LlamaSession(LlamaContext(demo._drafter.model, n_ctx=demo.n_ctx, n_threads=1), n_vocab=demo.n_vocab)
    read = [prompt, *([token] for token in answer[:-1])]  # in the batches that the runtime reads, so no rounding differs
    probs = softmax(np.concatenate([fresh.extend(tokens, keep=1).copy() for tokens in read]))
    fresh.context.close()
    logprobs = [math.log(row[token]) for row, token in zip(probs, answer)]
    margins = [best - second for second, best in np.sort(probs, axis=-1)[:, -2:].tolist()]
    expected = {
        ChowSum(-1e9): sum(logprobs),
        ChowAverage(-1e9): sum(logprobs) / len(logprobs),
        ChowQuantile(-1e9, 0.0): min(logprobs),
        Margin(0): sum(margins) / len(margins),
    }
    for route, score in expected.items():
        reply = cold(demo, prompt, rule=route, **settings)
        assert reply.token_ids == answer
        assert reply.confidence == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.2}, {"max_tokens": 7}, {"stop": ["is", "."]}], ids=str)
@pytest.mark.parametrize("rule", KEEPS)
def test_a_kept_answer_is_the_drafters_reply_and_the_expert_sleeps(demo, rule, settings):
    prompt = ids(demo, QUESTIONS[0])
    alone = text_and_cost(cold(demo, prompt, rule="never", **settings))
    reply = cold(demo, prompt, rule=rule, **settings)
    assert text_and_cost(reply) == alone | {"rule": str(reply.rule), "confidence": reply.confidence}
    assert str(reply.rule) == str(registry.parse(rule))
    assert (reply.stats.expert_calls, demo._expert.tokens) == (0, [])
    assert set(reply.origins) == {"accepted"}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.2}, {"max_tokens": 7}, {"stop": ["is", "."]}, {"block_size": 2}], ids=str)
@pytest.mark.parametrize("rule", REJECTS)
def test_a_rejected_answer_is_the_experts_reply_and_the_cost_is_that_of_both(demo, rule, settings):
    prompt = ids(demo, QUESTIONS[1])
    wasted = cold(demo, prompt, rule="never", **settings)
    alone = cold(demo, prompt, rule="strict", **settings | {"block_size": 0})
    reply = cold(demo, prompt, rule=rule, **settings)
    both = alone.stats.counts() | {"drafter_calls": wasted.stats.drafter_calls}
    assert text_and_cost(reply) == text_and_cost(alone) | {"rule": str(reply.rule), "confidence": reply.confidence, "stats": both}
    assert reply.stats.drafter_calls > 0
    assert reply.stats.expert_calls == len(reply.tokens)
    assert set(reply.origins) == {"expert"}
    assert reply.stats.wall_s >= reply.stats.ttft_s > reply.stats.draft_s > 0, "the first text comes after the drafter's whole answer"


@pytest.mark.slow
@pytest.mark.parametrize("route", [ChowSum, ChowAverage, ChowQuantile, Margin], ids=lambda route: route.name)
def test_a_threshold_at_the_score_keeps_the_answer_and_the_next_one_above_does_not(demo, prompt, route):
    score = cold(demo, prompt, rule=route(0)).confidence
    kept, rejected = (cold(demo, prompt, rule=route(threshold)) for threshold in (score, np.nextafter(score, 1)))
    assert kept.confidence == rejected.confidence == score
    assert (set(kept.origins), set(rejected.origins)) == ({"accepted"}, {"expert"})


def test_other_methods_report_no_confidence(demo):
    assert demo.generate(ids(demo, QUESTIONS[0]), rule="token_cascade:0.2", max_tokens=5).confidence is None


@pytest.mark.parametrize("rule", [KEEPS[3], REJECTS[3], "token_cascade:0.1"])
@pytest.mark.parametrize("settings", [{}, {"max_tokens": 6}, {"stop": ["an"]}, {"temperature": 1.0}], ids=str)
def test_a_stream_tells_in_parts_what_generate_tells_at_once(demo, rule, settings):
    prompt = ids(demo, QUESTIONS[2])
    whole = cold(demo, prompt, rule=rule, **settings)
    demo.reset()
    chunks = list(demo.stream(prompt, rule=rule, seed=5, **settings))
    assert text_and_cost(sc.Reply.of(chunks)) == text_and_cost(whole)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len(chunks) > 1
    assert all(chunk.tokens for chunk in chunks)
    assert {chunk.confidence for chunk in chunks} == {whole.confidence}


def test_a_stop_string_is_never_shown_whoever_answers(demo):
    prompt = ids(demo, QUESTIONS[0])
    for rule, alone in (("margin:0", {"rule": "never"}), ("margin:1", {"block_size": 0}), ("token_cascade:0.1", {"rule": "chow:0.1"})):
        assert " is" in demo.generate(prompt, **alone).text
        reply = demo.generate(prompt, rule=rule, stop=[" is"])
        assert " is" not in reply.text
        assert reply.finish_reason == "stop"


@pytest.mark.parametrize("rule", [KEEPS[3], REJECTS[3]])
def test_an_interrupted_call_in_the_drafters_unseen_answer_leaves_a_usable_runtime(demo, rule, monkeypatch):
    prompt = ids(demo, QUESTIONS[3])
    whole = cold(demo, prompt, rule=rule).token_ids
    demo.reset()
    real, calls = demo._drafter.extend, []

    def interrupted(tokens, keep):
        calls.append(tokens)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(tokens, keep)

    monkeypatch.setattr(demo._drafter, "extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(demo.stream(prompt, rule=rule))
    monkeypatch.undo()
    assert_caches_are_true(demo, prompt + demo.generate(prompt, rule="never").token_ids)
    assert demo.generate(prompt, rule=rule).token_ids == whole


class Interrupting:
    """The runtime's lock; after it was given back ``count`` times, something happens."""

    def __init__(self, lock, count: int, what: Callable[[], object]) -> None:
        self.lock, self.count, self.what = lock, count, what

    def __enter__(self) -> None:
        self.lock.acquire()

    def _is_owned(self) -> bool:
        return self.lock._is_owned()

    def __exit__(self, *_) -> None:
        self.lock.release()
        self.count -= 1
        if self.count == 0:
            self.what()


@pytest.mark.parametrize("rule", [KEEPS[3], REJECTS[3]])
@pytest.mark.parametrize("later", [KEEPS[3], REJECTS[3], "strict"])
def test_a_later_call_may_come_in_the_middle_of_the_drafters_unseen_answer(demo, rule, later, monkeypatch):
    prompt, other = ids(demo, QUESTIONS[4]), ids(demo, QUESTIONS[5])
    expected = cold(demo, other, rule=later).token_ids
    demo.reset()
    replies = []
    stream = demo.stream(prompt, rule=rule, seed=5)
    lock = Interrupting(demo._turns._block, 3, lambda: replies.append(demo.generate(other, rule=later, seed=5)))
    monkeypatch.setattr(demo._turns, "_block", lock)
    with pytest.raises(sc.SessionError, match="later call"):
        next(stream)
    monkeypatch.undo()
    assert [reply.token_ids for reply in replies] == [expected]
    assert_caches_are_true(demo, other + expected)


@pytest.mark.slow
def test_a_stream_dropped_after_its_first_chunk_leaves_a_usable_runtime(demo, prompt):
    for rule in (KEEPS[3], REJECTS[3], "token_cascade:0.1"):
        whole = cold(demo, prompt, rule=rule)
        demo.reset()
        stream = demo.stream(prompt, rule=rule, seed=5)
        next(stream)
        del stream
        assert_caches_are_true(demo, prompt + whole.token_ids + [0])
        assert demo.generate(prompt, rule=rule, seed=5).token_ids == whole.token_ids


@pytest.mark.parametrize("rule", ["margin:0.9", "chow_sum:-1", "token_cascade:0.2"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"verification": "block"}, "verification 'block' is about blocks"),
        ({"bonus": "cascade"}, "bonus 'cascade' is about blocks"),
        ({"strict_first": 4}, "verify blocks of drafts"),
        ({"thinking_rule": "strict"}, "verify blocks of drafts"),
    ],
    ids=str,
)
def test_settings_about_blocks_are_refused_with_the_method_that_has_none(demo, rule, settings, said):
    with pytest.raises(sc.SettingError, match=said) as caught:
        demo.stream([1, 2], rule=rule, **settings)
    assert rule.split(":")[0] in str(caught.value)


def test_a_whole_answer_cascade_is_no_thinking_rule(demo):
    with pytest.raises(sc.SettingError, match=r"margin:0\.9 does not; choose another"):
        demo.stream([1, 2], rule="strict", thinking_rule="margin:0.9")


# --------------------------------------------------------------------------- token by token


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.2, "min_p": 0.02}], ids=["greedy", "sampled"])
def test_the_ends_of_the_token_cascade_are_the_two_models_alone(demo, prompt, settings):
    expert = cold(demo, prompt, block_size=0, **settings)
    lossless = cold(demo, prompt, rule="token_cascade:0", **settings)
    assert (lossless.token_ids, lossless.origins) == (expert.token_ids, expert.origins)
    drafter = cold(demo, prompt, rule="never", **settings)
    lenient = cold(demo, prompt, rule="token_cascade:1", **settings)
    assert (lenient.token_ids, lenient.origins) == (drafter.token_ids, drafter.origins)
    assert (lenient.stats.expert_calls, demo._expert.tokens) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.3])
def test_each_token_comes_from_whom_recomputed_rows_say_it_must(demo, prompt, alpha):
    reply = cold(demo, prompt, rule=f"token_cascade:{alpha}", max_tokens=60)
    text = prompt + reply.token_ids
    rows = {which: rows_of(demo, which, text[:-1], keep=len(reply.tokens)) for which in ("_drafter", "_expert")}
    for i, (token, origin) in enumerate(zip(reply.token_ids, reply.origins)):
        doubt = 1 - softmax(rows["_drafter"][i]).max()
        if abs(doubt - alpha) > 0.02:  # else the noise between batch sizes may decide
            assert origin == ("expert" if doubt > alpha else "accepted")
        said = rows["_expert" if origin == "expert" else "_drafter"][i]
        assert said[token] >= said.max() - NOISE
    assert reply.stats.expert_calls == reply.origins.count("expert")
    assert reply.stats.drafter_calls == len(reply.tokens)


def test_between_tokens_both_caches_hold_the_text_and_the_expert_catches_up_where_it_is_asked(demo, prompt):
    demo.reset()
    text, behind = list(prompt), set()
    for chunk in demo.stream(prompt, rule="token_cascade:0.1", temperature=1.0, seed=3, max_tokens=40):
        text += chunk.token_ids
        drafter, expert = demo._drafter.tokens, demo._expert.tokens
        assert drafter == text[:-1]
        assert expert == text[: len(expert)]
        assert chunk.origins == ["accepted"] or len(expert) == len(text) - 1
        behind.add(len(text) - 1 - len(expert))
    assert len(behind) > 1, "it lagged, and it caught up"
    assert_caches_are_true(demo, text)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"rule": "strict"}, {"rule": "token_v3:0.8", "block_size": 4}, {"block_size": 0}], ids=str)
@pytest.mark.parametrize("temperature", [0, 1])
def test_no_end_is_written_before_the_least_length_along_the_draft(demo, settings, temperature):
    """The prompt holds the answer and its end already, so guesses copied from it end early."""
    prompt = ids(demo, QUESTIONS[0])
    plain = cold(demo, prompt, temperature=temperature, **settings)
    assert plain.finish_reason == "stop"
    twice = [*prompt, *plain.token_ids, *prompt]
    least = len(plain.token_ids) + 7
    longer = cold(demo, twice, temperature=temperature, min_tokens=least, max_tokens=least + 100, **settings)
    ends = demo.models["expert"].tokenizer.end_ids
    assert len(longer.token_ids) >= least
    assert not set(longer.token_ids[: least - 1]) & set(ends)
    endless = cold(demo, twice, temperature=temperature, ignore_eos=True, max_tokens=least + 50, **settings)
    assert (endless.finish_reason, len(endless.token_ids)) == ("length", least + 50)
    assert not set(endless.token_ids) & set(ends)


def test_an_id_can_end_an_answer_as_the_end_token_does(demo):
    prompt = ids(demo, QUESTIONS[0])
    plain = cold(demo, prompt, rule="strict", block_size=3)
    stop = plain.token_ids[4]
    at = plain.token_ids.index(stop)
    ended = cold(demo, prompt, rule="strict", block_size=3, stop_token_ids=[stop])
    assert (ended.token_ids, ended.finish_reason) == (plain.token_ids[: at + 1], "stop")
    assert ended.text == "".join(token.text for token in plain.tokens[:at])
    later = cold(demo, prompt, rule="strict", block_size=3, stop_token_ids=[stop], min_tokens=at + 2)
    assert stop not in later.token_ids[: at + 1]
    with pytest.raises(sc.SettingError, match="stop_token_ids names token id 1000000; the ids"):
        cold(demo, prompt, stop_token_ids=[10**6])


def test_a_token_with_a_bias_of_minus_infinity_is_never_written(demo):
    prompt = ids(demo, QUESTIONS[0])
    plain = cold(demo, prompt, rule="never", block_size=3)
    other = cold(demo, [*prompt, *plain.token_ids, *prompt], rule="token_v3:0.8", temperature=1, logit_bias={plain.token_ids[0]: -math.inf})
    assert plain.token_ids[0] not in other.token_ids
