"""Log-probabilities as OpenAI's own client reads them: those of a model's raw row, computed afresh by llama-cpp-python from the text alone.

Both models have float weights and caches, so that no kernel's rounding reaches the fourth digit, and differ little, so that every origin
occurs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import llama_cpp
import numpy as np
import openai
import pytest
from gguf_files import CHATML, ENDOFTEXT, IM_END, text_model
from serving import PATIENCE_S, Served, serving

import speccascade_local as sc
from speccascade_local.decoding.verify import Origin
from speccascade_local.llama import parameters
from speccascade_local.server.openai import responses

K = 20
WIDE = llama_cpp.GGML_TYPE_F32
CLOSE = 1e-4
#: What may change the rows that tokens are drawn from, and none of the raw ones.
SHAPED = {
    "plain": {},
    "top_k, top_p": {"top_p": 0.9, "extra_body": {"top_k": 3}},
    "min_p": {"extra_body": {"min_p": 0.2}},
    "logit_bias": {"logit_bias": {str(100 + i): 4 for i in range(9)} | {"42": -100}},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 1.0, "extra_body": {"repetition_penalty": 1.3}},
    "grammar": {"extra_body": {"grammar": "root ::= [a-f]{24}"}},
}
#: Rule, options of speccascade, and whose row it is by origin; "expert" where nothing else is said.
WAYS = [
    ("strict", {}, {}),
    ("strict", {"block_size": 0}, {}),
    ("expert", {"block_size": None}, {}),
    ("token_v3:0.5", {}, {}),
    ("opt:0.3", {"block_size": 1}, {}),  # an accepted draft brings a bonus token
    ("chow:1", {"block_size": 2}, {}),
    ("lenience:0.5", {}, {}),
    ("strict", {"block_size": "auto"}, {}),
    ("never", {}, {"accepted": "drafter"}),
    ("token_cascade:0.5", {}, {"accepted": "drafter"}),
    ("chow_sum:-1000000", {}, {"accepted": "drafter"}),
    ("chow_sum:1", {}, {}),
]


@dataclass(frozen=True)
class Toys:
    client: openai.OpenAI
    served: Served
    pair: sc.Runtime
    fresh: dict[str, llama_cpp.Llama]

    def rows(self, role: str, tokens: list[int]) -> np.ndarray:
        """Log-softmax of the rows after each of ``tokens``, by a context that has read nothing else. [n, n_vocab]"""
        model = self.fresh[role]
        model.reset()
        model.eval(tokens)
        rows = model.scores[: len(tokens)].astype(np.float64)
        return rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)

    def ask(self, rule: str, options: dict, shaped: dict, **fields):
        body = {"logit_bias": {}, **shaped}
        # Nothing ends the text, so that every answer has as many places.
        body["logit_bias"] = {**body["logit_bias"], str(ENDOFTEXT): -100, str(IM_END): -100} if "grammar" not in str(shaped) else {}
        cascade = {"rule": rule, "block_size": 4, "origins": True} | options
        body["extra_body"] = {**shaped.get("extra_body", {}), "speccascade": cascade}
        fields = {"logprobs": True, "top_logprobs": K, "max_tokens": 24, "seed": 3} | fields
        return self.client.chat.completions.create(model="toy", messages=QUESTION, **{**body, **fields})


QUESTION = [{"role": "user", "content": "the heath"}]


@contextmanager
def wide_caches() -> Iterator[None]:
    """What is loaded here has caches of float32, which nobody else needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parameters._GGML_TYPES, "f16", WIDE)
        yield


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    files = {
        role: text_model(folder / f"{role}.gguf", heads=heads, chat_template=CHATML) for role, heads in (("drafter", 2), ("expert", 4))
    }
    options = {"n_ctx": 256, "n_threads": 1, "logits_all": True, "type_k": WIDE, "type_v": WIDE, "verbose": False}
    fresh = {role: llama_cpp.Llama(str(file), **options) for role, file in files.items()}
    with (
        wide_caches(),
        sc.load(**files, n_ctx=256, n_threads=1, timelines=2) as pair,
        serving({"toy": pair}) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S) as client,
    ):
        yield Toys(client, served, pair, fresh)
    for model in fresh.values():
        model.close()


def require_place(place, token: int, logprobs: np.ndarray, ids: dict[bytes, int]) -> None:
    """That a place of a chat's answer says what the row says. logprobs: [n_vocab]"""
    assert place.logprob == pytest.approx(logprobs[token], abs=CLOSE)
    assert len(place.top_logprobs) == K
    told = [each.logprob for each in place.top_logprobs]
    assert told == sorted(told, reverse=True)
    assert told == pytest.approx(np.sort(logprobs)[::-1][:K].tolist(), abs=CLOSE)
    assert told == pytest.approx([logprobs[ids[bytes(each.bytes)]] for each in place.top_logprobs], abs=CLOSE)
    assert len({bytes(each.bytes) for each in place.top_logprobs}) == K


def spelled(pair: sc.Runtime) -> dict[bytes, int]:
    """The id of each token's bytes, which these vocabularies have once each."""
    tokenizer = pair.models["expert"].tokenizer
    ids = {tokenizer.piece(token, special=True): token for token in range(pair.n_vocab)}
    assert len(ids) == pair.n_vocab
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("shaped", SHAPED.values(), ids=SHAPED)
@pytest.mark.parametrize("temperature", [0, pytest.param(0.7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
def test_a_chats_log_probabilities_are_those_of_a_fresh_raw_row_at_every_origin(toys, temperature, shaped):
    ids, prompt = spelled(toys.pair), toys.pair.chat_ids(QUESTION)
    origins = set()
    for rule, options, sources in WAYS:
        got = toys.ask(rule, options, shaped, temperature=temperature)
        places = got.choices[0].logprobs.content
        answer = [ids[bytes(place.bytes)] for place in places]
        rows = {role: toys.rows(role, prompt + answer)[len(prompt) - 1 :] for role in toys.fresh}
        assert len(places) == 24
        for j, (place, told) in enumerate(zip(places, got.speccascade["tokens"], strict=True)):
            role = sources.get(told["origin"], "expert")
            require_place(place, answer[j], rows[role][j], ids)
            assert (told.get("expert_logprob") is not None) == (role == "expert")
            origins.add((role, told["origin"]))
    assert origins == {("drafter", "accepted"), *(("expert", origin) for origin in get_args(Origin))}


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_stream_has_the_places_of_the_whole_answer(toys, temperature):
    for rule, options, _ in WAYS:
        whole = toys.ask(rule, options, {}, temperature=temperature).choices[0].logprobs.content
        parts = toys.ask(rule, options, {}, temperature=temperature, stream=True)
        places = [place for part in parts if part.choices[0].logprobs for place in part.choices[0].logprobs.content]
        assert [place.bytes for place in places] == [place.bytes for place in whole]
        for one, other in zip(places, whole, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=CLOSE)
            assert [each.logprob for each in one.top_logprobs] == pytest.approx([each.logprob for each in other.top_logprobs], abs=CLOSE)


def key(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 0.7, 1])
def test_a_completions_log_probabilities_are_k_of_a_fresh_raw_row_and_the_tokens_own(toys, temperature, stream):
    """With parts of characters, which its object has no bytes for: each has a name of its own."""
    ids, prompt = spelled(toys.pair), toys.pair.prompt_ids("the heath")
    named = {key(piece): token for piece, token in ids.items()}
    outside = 0
    for k in (0, 1, 5):
        got = toys.client.completions.create(
            model="toy@token_v3:0.5",
            prompt=prompt,
            max_tokens=20,
            temperature=temperature,
            logprobs=k,
            seed=1,
            stream=stream,
            extra_body={"speccascade": {"block_size": 4}, "ignore_eos": True, "presence_penalty": 2},
        )
        parts = [part.choices[0].logprobs for part in (got if stream else [got]) if part.choices[0].logprobs]
        tokens, logprobs, tops = (
            [each for part in parts for each in getattr(part, name)] for name in ("tokens", "token_logprobs", "top_logprobs")
        )
        answer = [named[text] for text in tokens]
        rows = toys.rows("expert", prompt + answer)[len(prompt) - 1 :]
        assert len(answer) == 20
        for text, token, logprob, top, row in zip(tokens, answer, logprobs, tops, rows):
            best = np.argsort(-row)[:k].tolist()
            assert {named[each] for each in top} == {*best, token}
            assert top[text] == logprob
            assert top == pytest.approx({each: row[named[each]] for each in top}, abs=CLOSE)
            outside += token not in best
    assert outside > 20, "every token where none was asked for, and some others"


def test_a_classification_reads_the_same_shares_at_every_temperature(toys):
    """One token under a grammar, as those do who ask for a label: the shares of both labels, and not 1 for the one that was said."""
    shaped = {"extra_body": {"grammar": 'root ::= "a" | "b"'}}
    row = toys.rows("expert", toys.pair.chat_ids(QUESTION))[-1]
    for temperature in (0, 0.7, 1):
        (place,) = toys.ask("strict", {}, shaped, temperature=temperature, max_tokens=1).choices[0].logprobs.content
        assert place.logprob == pytest.approx(row[spelled(toys.pair)[bytes(place.bytes)]], abs=CLOSE)
        assert [each.logprob for each in place.top_logprobs] == pytest.approx(np.sort(row)[::-1][:K].tolist(), abs=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_copied_drafts_tokens_have_the_experts_raw_row(toys, tmp_path, temperature):
    """Drafts that no model has drawn, only copied from the text."""
    expert = text_model(tmp_path / "expert.gguf", heads=4)
    with wide_caches(), sc.load(drafter="ngram", expert=expert, n_ctx=256, n_threads=1) as pair:
        prompt = pair.prompt_ids("the heath the heath the heath")
        bias = dict.fromkeys(pair.prompt_ids("the heath"), 30.0)
        options = {"rule": "strict", "logit_bias": bias, "temperature": temperature, "seed": 2, "max_tokens": 60}
        reply = pair.generate(prompt, logprobs=K, logprobs_of="raw", **options)
        rows = toys.rows("expert", prompt + reply.token_ids)[len(prompt) - 1 :]
        assert "matched" in reply.origins
        for token, row in zip(reply.tokens, rows):
            assert token.logprobs.logprob == pytest.approx(row[token.id], abs=CLOSE)
            assert [each.logprob for each in token.logprobs.top] == pytest.approx(np.sort(row)[::-1][:K].tolist(), abs=CLOSE)


def test_what_tokens_were_drawn_from_stays_an_option(toys):
    drawn = toys.ask("strict", {"logprobs_of": "drawn"}, {}, temperature=0).choices[0].logprobs.content
    assert {place.logprob for place in drawn} == {0.0}
    assert {len(place.top_logprobs) for place in drawn} == {1}
    raw, named = (toys.ask("strict", more, {}, temperature=0).choices[0].logprobs.content for more in ({}, {"logprobs_of": "raw"}))
    assert raw == named
    assert all(place.logprob < 0 for place in raw)


def test_what_is_smaller_than_minus_9999_is_written_as_that():
    assert [responses._logprob(value) for value in (-math.inf, -10_000.5, -9998.5, 0.0)] == [-9999, -9999, -9998.5, 0]


def test_a_meaning_that_does_not_exist_is_refused(toys):
    with pytest.raises(openai.BadRequestError, match="'drawn' or 'raw'") as refused:
        toys.ask("strict", {"logprobs_of": "processed"}, {}, temperature=0)
    assert refused.value.param == "speccascade.logprobs_of"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["strict", "token_v3:0.5", "never", "token_cascade:0.4", "margin:0.5"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_python_the_raw_row_is_one_setting_and_changes_no_text(demo, rule, temperature):
    def made(**settings) -> sc.Reply:
        demo.reset()
        return demo.chat(QUESTION, rule=rule, temperature=temperature, seed=4, max_tokens=24, top_p=0.8, block_size=4, **settings)

    drawn, raw, wide = made(logprobs=5), made(logprobs=5, logprobs_of="raw"), made(logprobs=10**6, logprobs_of="raw")
    assert raw.token_ids == drawn.token_ids == wide.token_ids
    for one, all_of_them in zip(raw.tokens, wide.tokens, strict=True):
        own = one.drafter_logprob if one.expert_logprob is None else one.expert_logprob
        assert one.logprobs.logprob == own
        assert len(one.logprobs.top) == 5
        assert one.logprobs.top == all_of_them.logprobs.top[:5]
        assert math.fsum(math.exp(each.logprob) for each in all_of_them.logprobs.top) == pytest.approx(1)
        assert len(all_of_them.logprobs.top) == demo.n_vocab
        assert next(each for each in all_of_them.logprobs.top if each.id == one.id).logprob == own
    assert any(one.logprobs != other.logprobs for one, other in zip(raw.tokens, drawn.tokens))
