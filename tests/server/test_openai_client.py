"""OpenAI's own Python client, unmodified, against a server with the bundled pair; the runtime gives the expected replies."""

from __future__ import annotations

import json
import math

import jsonschema
import openai
import pytest
from serving import PATIENCE_S, QUESTION, serving

import speccascade_local as sc
from speccascade_local.server import engine

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Alan"]}, "born": {"enum": [1815, 1912]}},
    "required": ["name", "born"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client():
    with (
        serving() as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S) as it,
    ):
        yield it


def ask(client, **options):
    return client.chat.completions.create(**{"model": "demo", "messages": QUESTION, "temperature": 0, **options})


@pytest.mark.parametrize("rule", ["strict", "never", "token_v3:0.3"])
def test_a_chat_gives_the_same_reply_as_the_runtime(client, demo, rule):
    reply = demo.chat(QUESTION, rule=rule, max_tokens=30, block_size=4)
    got = ask(client, model=f"demo@{rule}", max_tokens=30, extra_body={"speccascade": {"block_size": 4, "origins": True}})
    choice = got.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", reply.text, reply.finish_reason)
    assert got.usage.completion_tokens == reply.stats.tokens
    assert got.usage.prompt_tokens == len(demo.chat_ids(QUESTION))
    assert (got.timings["draft_n"], got.timings["draft_n_accepted"]) == (reply.stats.drafted, reply.stats.accepted)
    assert got.speccascade["rule"] == str(reply.rule)
    assert [token["origin"] for token in got.speccascade["tokens"]] == reply.origins
    assert "".join(token["text"] for token in got.speccascade["tokens"]) == reply.text
    assert got.speccascade["fidelity"]["mean_tv"] == pytest.approx(reply.fidelity.mean_tv)


def test_a_stream_gives_the_same_reply_in_parts(client):
    whole = ask(client).choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert not chunks[-1].choices
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].speccascade["stats"]["tokens"] == chunks[-1].usage.completion_tokens
    assert all(getattr(chunk, "usage", None) is None for chunk in ask(client, stream=True))


def test_drawn_log_probabilities_are_those_of_the_runtime(client, demo):
    options = {"temperature": 0.9, "seed": 5, "max_tokens": 20}
    reply = demo.chat(QUESTION, rule="token_v3:0.3", block_size=3, logprobs=3, **options)
    more = {"speccascade": {"block_size": 3, "logprobs_of": "drawn"}}
    got = ask(client, model="demo@token_v3:0.3", logprobs=True, top_logprobs=3, extra_body=more, **options).choices[0]
    assert got.message.content == reply.text
    for place, token in zip(got.logprobs.content, reply.tokens, strict=True):
        assert place.logprob == pytest.approx(token.logprobs.logprob)
        assert [bytes(each.bytes) for each in place.top_logprobs] == [each.bytes for each in token.logprobs.top]
        assert [each.logprob for each in place.top_logprobs] == pytest.approx([each.logprob for each in token.logprobs.top])
        assert sum(math.exp(each.logprob) for each in place.top_logprobs) <= 1 + 1e-9
    assert b"".join(bytes(place.bytes) for place in got.logprobs.content[:-1]).decode() in reply.text


def test_a_stream_has_the_same_log_probabilities(client):
    options = {"temperature": 0.9, "seed": 5, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    whole = ask(client, **options).choices[0].logprobs.content
    parts = [
        place for chunk in ask(client, stream=True, **options) if chunk.choices[0].logprobs for place in chunk.choices[0].logprobs.content
    ]
    assert [place.token for place in parts] == [place.token for place in whole]


def test_both_models_candidates_are_told_where_they_are_asked_for(client, demo):
    options = {"rule": "strict", "model_logprobs": True, "block_size": 3}
    got = ask(client, max_tokens=12, temperature=1, seed=1, extra_body={"speccascade": options})
    reply = demo.chat(QUESTION, rule="strict", block_size=3, max_tokens=12, temperature=1, seed=1, logprobs=5, model_logprobs=True)
    for report, token in zip(got.speccascade["tokens"], reply.tokens, strict=True):
        for role, known in (("expert", token.expert_logprobs), ("drafter", token.drafter_logprobs)):
            assert report["top"].get(role) == (known and [[each.text, pytest.approx(each.logprob)] for each in known.top])
    assert got.choices[0].logprobs is None


def test_a_reply_follows_a_schema(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    text = ask(client, response_format=wanted, max_tokens=200).choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMA)


def test_a_reply_can_be_any_json_object(client):
    reply = ask(client, response_format={"type": "json_object"}, max_tokens=200, temperature=1.0, seed=3).choices[0]
    assert reply.message.content.lstrip().startswith("{")
    if reply.finish_reason == "stop":
        assert isinstance(json.loads(reply.message.content), dict)


def test_completions_continue_a_text_or_ids(client, demo):
    prompt = "Ada Lovelace was"
    ids = demo.models["expert"].tokenizer.tokenize(prompt, add_special=True, parse_special=True)
    expected = demo.generate(prompt, max_tokens=8, rule="strict")
    for given in (prompt, ids):
        got = client.completions.create(model="demo@strict", prompt=given, max_tokens=8, temperature=0, logprobs=2)
        assert got.choices[0].text == expected.text
        assert got.usage.prompt_tokens == len(ids)
        assert got.choices[0].logprobs.text_offset[0] == 0
    parts = client.completions.create(model="demo@strict", prompt=prompt, max_tokens=8, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == expected.text


def test_several_choices_are_made_one_after_the_other(client):
    options = {"n": 3, "temperature": 3.0, "seed": 11, "max_tokens": 12}
    choices = ask(client, **options).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) > 1
    parts = {0: "", 1: "", 2: ""}
    for chunk in ask(client, stream=True, **options):
        parts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(parts.values()) == [choice.message.content for choice in choices]


def test_stops_seeds_penalties_and_biases_reach_the_decoding(client, demo):
    text = ask(client).choices[0].message.content
    word = text.split()[3]
    stopped = ask(client, stop=[word]).choices[0]
    assert stopped.message.content == text[: text.index(word)]
    assert stopped.finish_reason == "stop"
    assert ask(client, max_tokens=3).choices[0].finish_reason == "length"
    hot = [ask(client, temperature=2.0, seed=seed, max_tokens=20).choices[0].message.content for seed in (1, 1, 2, -1)]
    assert hot[0] == hot[1] != hot[2]
    first = demo.chat(QUESTION, max_tokens=1).tokens[0]
    assert not ask(client, logit_bias={str(first.id): -100}, max_tokens=4).choices[0].message.content.startswith(first.text)
    options = {"temperature": 4.0, "seed": 1, "max_tokens": 30, "presence_penalty": 2.0, "frequency_penalty": 1.5}
    expected = demo.chat(QUESTION, block_size=2, **options).text
    assert ask(client, extra_body={"speccascade": {"block_size": 2}}, **options).choices[0].message.content == expected


def test_text_parts_and_developer_messages_are_read(client):
    plain = ask(client, messages=[{"role": "system", "content": "Be brief."}, *QUESTION]).usage.prompt_tokens
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    assert ask(client, messages=[{"role": "developer", "content": parts}, *QUESTION]).usage.prompt_tokens == plain


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_raise_the_clients_exceptions(client):
    with pytest.raises(openai.NotFoundError, match="models are demo") as unknown:
        ask(client, model="gpt-4o")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, temperature="hot")
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as embedding:
        client.embeddings.create(model="demo", input="text", encoding_format="float")
    assert embedding.value.code == "not_supported"


def test_an_error_during_a_stream_ends_it(monkeypatch):
    def failing(*given, **more):
        yield next(real(*given, **more))
        raise sc.SessionError("llama.cpp gave up at /home/somebody/model.gguf")

    real = engine.answer
    monkeypatch.setattr(engine, "answer", failing)
    with (
        serving() as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as it,
        pytest.raises(openai.APIError, match=r"gave up at \(a path\)"),
    ):
        list(ask(it, stream=True))
