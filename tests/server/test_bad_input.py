"""Wrong requests get OpenAI's error object with the right status, and never reach the models."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import PATIENCE_S, QUESTION, serving

from speccascade_local.rules import registry
from speccascade_local.server import completions
from speccascade_local.server.http import large_requests
from speccascade_local.server.http.large_requests import LARGE


@pytest.fixture(scope="module")
def served():
    with serving(rules={"careful": registry.parse("opt:0.2")}) as it:
        yield it


def require_error(response, status=400):
    """Assert that the response is an error, and return the error object."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b'"text"', b"null", b'{"a": 1,}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000, b'{"a": "\\ud800"}',
     b"9" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_a_body_must_be_a_json_object(served, path, body):
    assert require_error(served.post(path, body))["code"] == "invalid_json"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_refused(served, number):
    body = f'{{"model": "demo", "messages": [{{"role": "user", "content": "Hi"}}], "temperature": {number}}}'
    assert "not valid JSON" in require_error(served.post("/v1/chat/completions", body.encode()))["message"]


def test_a_number_that_is_too_large_is_refused(served):
    body = b'{"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "temperature": 1e999}'
    assert require_error(served.post("/v1/chat/completions", body))["param"] == "temperature"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("messages", [], "messages"),
        ("messages", "Hi", "messages"),
        ("messages", [{"role": "robot", "content": "Hi"}], "messages.0.role"),
        ("messages", [{"content": "Hi"}], "messages.0.role"),
        ("messages", [{"role": "user"}], "messages.0"),
        ("messages", [{"role": "user", "content": None}], "messages.0"),
        ("messages", [{"role": "user", "content": 5}], "messages.0.content"),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}], "messages.0.content"),
        ("model", 5, "model"),
        ("model", "", "model"),
        ("temperature", "0.5", "temperature"),
        ("temperature", -1, "temperature"),
        ("temperature", True, "temperature"),
        ("top_p", 0, "top_p"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", 1.5, "max_tokens"),
        ("max_tokens", 2**70, "max_tokens"),
        ("seed", "7", "seed"),
        ("n", 10_000, "n"),
        ("stop", "", "stop"),
        ("stop", ["a"] * 100_000, "stop"),
        ("stop", ["x" * 5000], "stop"),
        ("stop", [1], "stop"),
        ("logprobs", 2, "logprobs"),
        ("top_logprobs", 3, None),
        ("logit_bias", {"word": 1}, "logit_bias"),
        ("logit_bias", {"5": 101}, "logit_bias"),
        ("logit_bias", {str(key): 1 for key in range(5000)}, "logit_bias"),
        ("presence_penalty", 3, "presence_penalty"),
        ("response_format", {"type": "xml"}, "response_format"),
        ("response_format", {"type": "json_schema"}, "response_format"),
        ("stream", "yes", "stream"),
        ("tool_choice", "required", "tool_choice"),
        ("tools", [{"type": "function", "function": {"name": "f"}}], "tools"),
        ("functions", [{"name": "f"}], "functions"),
        ("modalities", ["audio"], "modalities"),
        ("speccascade", {"rules": "strict"}, "speccascade.rules"),
        ("speccascade", {"block_size": -1}, "speccascade.block_size"),
        ("speccascade", {"logprobs_of": "processed"}, "speccascade.logprobs_of"),
        ("speccascade", {"logprobs_of": None}, "speccascade.logprobs_of"),
        ("speccascade", 5, "speccascade"),
    ],
)  # fmt: skip
def test_fields_with_wrong_values_are_refused(served, field, value, param):
    error = require_error(served.chat(**{field: value}))
    assert (error["param"] or "").startswith(param or "")
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 600


@pytest.mark.parametrize(
    ("kind", "what"),
    [("image_url", "images"), ("input_image", "images"), ("input_audio", "sounds"), ("file", "files"), ("video_url", "films")],
)
def test_parts_that_are_not_read(served, kind, what):
    content = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: {"url": "/etc/passwd"}}]
    error = require_error(served.chat(messages=[{"role": "user", "content": content}]))
    assert error["message"] == f"messages.0.content.1: {what} are not read; send text parts"
    assert error["param"] == "messages.0.content.1"


@pytest.mark.parametrize(
    ("content", "param", "what"),
    [
        (5, "messages.0.content", "text or a list of text parts"),
        ({"type": "text", "text": "Hi"}, "messages.0.content", "text or a list of text parts"),
        (["Hi"], "messages.0.content.0", "dictionary"),
        ([{"type": "text"}], "messages.0.content.0", "no text"),
        ([{"type": "text", "text": 5}], "messages.0.content.0", "no text"),
        ([{"type": ["text"], "text": "Hi"}], "messages.0.content.0.type", "'text'"),
        ([{"type": "poem", "text": "Hi"}], "messages.0.content.0.type", "'text'"),
        ([{"type": "text", "text": "a"}] * 5000, "messages.0.content", "1024"),
    ],
)
def test_content_other_than_text_is_refused(served, content, param, what):
    error = require_error(served.chat(messages=[{"role": "user", "content": content}]))
    assert error["param"] == param
    assert what in error["message"]


DEEP = '{"a":' * 150 + "1" + "}" * 150


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("{", "not valid JSON"),
        ("Graz", "not valid JSON"),
        ('"Graz"', "JSON str; they must be an object"),
        ("[1]", "JSON list; they must be an object"),
        ("5", "JSON int; they must be an object"),
        ("false", "JSON bool; they must be an object"),
        ('{"a": NaN}', "not valid JSON"),
        ('{"a": 1e999}', "too large for JSON"),
        ('{"a": %s}' % ("9" * 5000), "JSON"),
        ('{"a": "\\ud800"}', "not valid JSON"),
        (DEEP, "more than 100 deep"),
        (json.loads(DEEP), "more than 100 deep"),
        ("[" * 100_000, "not valid JSON"),
        ([1], "[1]"),
        (5, "5"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments_of_earlier_calls_that_are_no_object(served, arguments, what):
    function = {"name": "now", "arguments": arguments}
    call = {"id": "1", "type": "function", "function": function}
    for fields, place in (({"tool_calls": [call]}, "tool_calls.0.function"), ({"function_call": function}, "function_call")):
        error = require_error(served.chat(messages=[*QUESTION, {"role": "assistant", "content": None, **fields}]))
        assert error["param"] == f"messages.1.{place}.arguments"
        assert what in error["message"]
        assert len(error["message"]) < 600


@pytest.mark.slow
def test_deep_nesting_is_never_a_server_error(served):
    """Everything that the JSON parser accepts is accepted or refused later."""
    for depth in range(0, 220, 20):
        deep = json.loads('{"a":' * depth + "1" + "}" * depth)
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"x-note": deep}}}
        for fields in ({"response_format": schema}, {"metadata": {"a": deep}}, {"logit_bias": {"5": deep}}):
            assert served.chat(max_tokens=1, **fields).status_code in (200, 400)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_missing_fields_are_refused(served, missing):
    body = {"model": "demo", "messages": QUESTION}
    del body[missing]
    assert require_error(served.post("/v1/chat/completions", body))["param"] == missing


def test_unknown_fields_are_ignored(served):
    plain = served.chat(max_tokens=8).json()["choices"][0]
    assert served.chat(max_tokens=8, store=True, metadata={"a": "b"}, tomorrow=[1]).json()["choices"][0] == plain


@pytest.mark.parametrize("model", ["gpt-4o", "Demo", "demo@", "@strict", "demo/../demo", "/etc/passwd"])
def test_the_error_for_an_unknown_model_lists_the_models(served, model):
    error = require_error(served.chat(model=model), 404)
    assert error["code"] == "model_not_found"
    assert "models are demo" in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    ["calibrated:/etc/passwd", "calibrated:models.json", "budget:0.1,calibrated:x", "os:system('id')", "os:abort()", "tests.my:Rule()",
     "strict+thinking:os:abort()", "token_v3:0.3+thinking:calibrated:x", "../strict", "unheard", "token_v3:high", "token_v3:7", "a" * 300],
)  # fmt: skip
def test_a_rule_is_never_code_or_a_file(served, rule, monkeypatch, tmp_path):
    opened = []
    sys.addaudithook(lambda event, given: opened.append((event, given)) if event in ("open", "import") and watching else None)
    watching = [True]
    for response in (served.chat(speccascade={"rule": rule}), served.chat(model=f"demo@{rule}")):
        require_error(response)
    watching.clear()
    assert not [given for event, given in opened if event == "open" and str(given[0]) in rule]
    assert not [given for event, given in opened if event == "import" and given[0] == "tests.my"]


def test_rules_by_name_alpha_and_registration(served):
    def rule(**fields):
        return served.chat(max_tokens=4, **fields).json()["speccascade"]["rule"]

    assert rule() == "token_v3:0.8"
    assert rule(model="demo@token_v3:0.3") == "token_v3:0.3"
    assert rule(speccascade={"alpha": 0.25}) == "token_v3:0.25"
    assert rule(speccascade={"rule": "diff:0.1", "alpha": 0.4}) == "diff:0.4"
    assert rule(speccascade={"rule": "careful"}) == rule(model="demo@careful") == "opt:0.2"
    assert rule(model="demo@strict", speccascade={"rule": "strict"}) == "strict"
    assert "name one" in require_error(served.chat(model="demo@strict", speccascade={"rule": "never"}))["message"]
    require_error(served.chat(speccascade={"rule": "strict", "alpha": 0.5}))
    require_error(served.chat(speccascade={"alpha": 5}))


@pytest.mark.slow
def test_the_expert_alone_drafts_nothing(served):
    alone = served.chat(speccascade={"rule": "expert"}).json()
    assert alone["timings"]["draft_n"] == alone["speccascade"]["block_size"] == 0
    assert alone["choices"] == served.chat(model="demo@strict").json()["choices"]
    require_error(served.chat(speccascade={"rule": "expert", "block_size": 4}))


def test_a_prompt_that_is_too_long_is_refused_before_it_is_read(served):
    error = require_error(served.chat(messages=[{"role": "user", "content": "a" * 1_000_000}]))
    assert error["code"] == "context_length_exceeded"
    assert require_error(served.chat(messages=[{"role": "user", "content": "word " * 1000}]))["code"] == "context_length_exceeded"
    assert require_error(served.chat(messages=[{"role": "user", "content": "a" * 10_000_000}]), 413)["code"] == "request_too_large"
    require_error(served.post("/v1/completions", {"model": "demo", "prompt": [1] * 100_000}))
    require_error(served.post("/v1/completions", {"model": "demo", "prompt": [2**30]}))
    require_error(served.post("/tokenize", {"content": "a" * 1_000_000}))


def test_unusable_grammars_and_schemas_are_refused(served):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    for stream in (False, True):
        require_error(served.chat(response_format=schema, stream=stream))
    require_error(served.post("/v1/completions", {"model": "demo", "prompt": "Hi", "grammar": "root ::= ("}))


def test_detokenize_inverts_tokenize(served, demo):
    text = "Who is Ada Lovelace? né 😀"
    ids = served.post("/tokenize", {"content": text}).json()["tokens"]
    assert served.post("/detokenize", {"tokens": ids}).json()["content"] == text
    assert served.post("/tokenize", {"messages": QUESTION}).json()["tokens"] == demo.chat_ids(QUESTION)
    require_error(served.post("/detokenize", {"tokens": [10**6]}))
    require_error(served.post("/tokenize", {"content": "a", "prompt": "b"}))


def test_unknown_routes_and_methods_are_refused(served):
    require_error(served.get("/nothing"), 404)
    require_error(served.get("/v1/chat/completions"), 405)
    require_error(served.post("/health", {}), 405)
    require_error(served.post("/v1/embeddings", {"model": "demo", "input": "Hi"}))


def test_the_description_names_every_route(served):
    paths = served.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize", "/health", "/metrics"} <= set(paths)
    json.dumps(paths, allow_nan=False)


def test_metrics_count_replies(served):
    def figure(name):
        line = next(line for line in served.get("/metrics").text.splitlines() if line.startswith(name))
        return float(line.split()[-1])

    names = ("vllm:generation_tokens_total", "vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total")
    before = [figure(name) for name in names]
    reply = served.chat(speccascade={"block_size": 3}).json()
    timings = reply["timings"]
    grown = [figure(name) - was for name, was in zip(names, before)]
    assert grown == [reply["usage"]["completion_tokens"], timings["draft_n"], timings["draft_n_accepted"]]
    assert figure("vllm:time_to_first_token_seconds_count") == figure("vllm:e2e_request_latency_seconds_count") > 0
    assert figure("vllm:num_requests_running") == figure("vllm:num_requests_waiting") == 0


def test_large_requests_are_read_one_at_a_time_and_small_ones_pass_them(monkeypatch):
    at_work, most, held, opened = threading.Semaphore(0), [], [0], threading.Event()
    check = completions._check

    def watched(body, model):
        if len(body) < LARGE:
            return check(body, model)
        held[0] += 1
        most.append(held[0])
        at_work.release()
        assert opened.wait(PATIENCE_S)
        held[0] -= 1
        return check(body, model)

    monkeypatch.setattr(completions, "_check", watched)
    with serving() as served, ThreadPoolExecutor(3) as pool:
        large = [pool.submit(served.chat, max_tokens=2, metadata={"a": "x" * LARGE}) for _ in range(3)]
        assert at_work.acquire(timeout=PATIENCE_S)
        assert served.chat(max_tokens=2).status_code == 200
        opened.set()
        assert [each.result().status_code for each in large] == [200] * 3
    assert most == [1, 1, 1]


def test_memory_of_large_requests_is_given_back_a_few_times(monkeypatch):
    calls: list[int] = []  # threads of all servers in this process
    monkeypatch.setattr(large_requests, "TIDY_AFTER_S", 0.01)
    monkeypatch.setattr(large_requests, "give_back_memory", lambda: calls.append(threading.get_ident()))

    async def one() -> int:
        large = large_requests.LargeRequests()
        own = await large.run(threading.get_ident)
        while large._timer is not None:
            await asyncio.sleep(0.01)
        large._thread.shutdown()
        return own

    assert calls.count(asyncio.run(asyncio.wait_for(one(), PATIENCE_S))) == large_requests.TIDY_TIMES


def test_reference_cycles_are_freed():
    class Chain(list):  # weak references need a subclass
        pass

    chain = Chain()
    chain.append(chain)
    seen = weakref.ref(chain)
    del chain
    large_requests.give_back_memory()
    assert seen() is None
