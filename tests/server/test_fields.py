"""Every field that clients send is honored, mapped, refused by name, or ignored, as the table says."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import Any

import pytest
from corpus import requests
from serving import QUESTION, events, serving

from speccascade_local.common.errors import SettingError
from speccascade_local.server.errors import RefusedError
from speccascade_local.server.listing import description
from speccascade_local.server.openai.fields import FIELDS, ROUTES
from speccascade_local.server.openai.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from speccascade_local.server.openai.tool_calls import calls_in
from speccascade_local.server.openai.translation import translate
from speccascade_local.server.request_settings import ServedPairs, settings_of
from speccascade_local.tokens.gbnf import from_gbnf

MODELS = {"chat": ChatRequest, "completions": CompletionRequest}
PLAIN: dict[str, dict[str, Any]] = {
    "chat": {"model": "demo", "messages": QUESTION, "temperature": 0},
    "completions": {"model": "demo", "prompt": "Who", "temperature": 0},
}
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red"]}}, "required": ["colour"], "additionalProperties": False}
RED = 'root ::= "red"'
#: A value that is neutral for no field.
ODD = {"odd": [7.25]}
CALL = {"type": "function", "function": {"name": "now"}}
TOOL = [{"role": "user", "content": "Hi"}]
#: For each honored or mapped field: a value, and its changes in the reply's settings, if any.
EFFECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("demo@strict", {}),
    "messages": (TOOL, {}),
    "prompt": ([1, 2], {}),
    "prompt_cache_key": ("mine", {}),
    "cache_salt": ("grain", {}),
    "speccascade": ({"block_size": 3}, {"block_size": 3}),
    "continue_final_message": (False, {}),
    "add_generation_prompt": (True, {}),
    "tools": ([CALL], {}),
    "tool_choice": ("none", {}),
    "parallel_tool_calls": (False, {}),
    "temperature": (0.5, {"temperature": 0.5}),
    "top_p": (0.5, {"top_p": 0.5}),
    "top_k": (3, {"top_k": 3}),
    "min_p": (0.1, {"min_p": 0.1}),
    "top_n_sigma": (1.5, {"top_n_sigma": 1.5}),
    "nsigma": (1.5, {"top_n_sigma": 1.5}),
    "seed": (7, {"seed": 7}),
    "repetition_penalty": (1.5, {"repetition_penalty": 1.5}),
    "repeat_penalty": (5.0, {"repetition_penalty": 5.0}),
    "rep_pen": (1.5, {"repetition_penalty": 1.5}),
    "presence_penalty": (0.5, {"presence_penalty": 0.5}),
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5}),
    "logit_bias": ({"5": -3}, {"logit_bias": {5: -3}}),
    "response_format": ({"type": "json_object"}, {"json_schema": {"type": "object"}}),
    "grammar": (RED, {"grammar": RED}),
    "json_schema": (SCHEMA, {"json_schema": SCHEMA}),
    "grammar_string": (RED, {"grammar": RED}),
    "guided_grammar": (RED, {"grammar": RED}),
    "guided_json": (json.dumps(SCHEMA), {"json_schema": SCHEMA}),
    "guided_choice": (["red", "blue"], {"grammar": 'root ::= "red" | "blue"'}),
    "structured_outputs": ({"choice": ["red"]}, {"grammar": RED}),
    "format": ("json", {"json_schema": {"type": "object"}}),
    "max_tokens": (9, {"max_tokens": 9}),
    "max_completion_tokens": (9, {"max_tokens": 9}),
    "n_predict": (9, {"max_tokens": 9}),
    "num_predict": (9, {"max_tokens": 9}),
    "max_new_tokens": (9, {"max_tokens": 9}),
    "max_length": (9, {"max_tokens": 9}),
    "min_tokens": (5, {"min_tokens": 5}),
    "min_length": (5, {"min_tokens": 5}),
    "stop": ("a", {"stop": ("a",)}),
    "stop_sequence": (["a", "b"], {"stop": ("a", "b")}),
    "stopping_strings": (["a"], {"stop": ("a",)}),
    "stop_token_ids": ([5], {"stop_token_ids": (5,)}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "ban_eos_token": (True, {"ignore_eos": True}),
    "n": (2, {}),
    "n_cmpl": (2, {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, {}),
    "logprobs": ({"chat": True, "completions": 3}, {"logprobs": {"chat": 0, "completions": 3}, "logprobs_of": "raw"}),
    "top_logprobs": (2, {}),
}
ROWS = [pytest.param(route, row, id=f"{row.name}-{route}") for row in FIELDS for route in row.routes]


def rows(*kinds: str) -> list[Any]:
    return [each for each in ROWS if each.values[1].ours in kinds]


def read(route: str, **fields: Any) -> Any:
    """Return the parsed request."""
    return MODELS[route].model_validate(translate({**PLAIN[route], **fields}, route).fields)


@pytest.fixture(scope="module")
def served():
    with serving() as it:
        yield it


@pytest.fixture
def settings(demo):
    """A function that returns the settings for a request."""
    offer = ServedPairs({"demo": demo}, {})
    return lambda route, **fields: settings_of(read(route, **fields), demo, offer, None)


def require_error(response: Any, param: str | None) -> str:
    """Assert that the response is an error about a field, and return its message."""
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert error["param"] == param
    assert len(error["message"]) < 600
    return error["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_the_models_have_exactly_the_honored_fields(route):
    assert set(MODELS[route].model_fields) == {row.name for row in FIELDS if row.ours == "honoured" and route in row.routes}


def test_every_row_is_complete():
    names = [(route, row.name) for row in FIELDS for route in row.routes]
    assert len(names) == len(set(names))
    for row in FIELDS:
        assert row.servers
        assert row.meaning
        assert bool(row.to) == (row.ours == "mapped")
        assert not row.beside or row.ours == "refused"
    assert set(EFFECTS) == {row.name for row in FIELDS if row.ours in ("honoured", "mapped")}


@pytest.mark.parametrize(("route", "row"), rows("honoured", "mapped"))
def test_honored_and_mapped_fields_have_an_effect(route, row, settings):
    value, changes = EFFECTS[row.name]
    value = value[route] if isinstance(value, dict) and route in value else value
    fields = {row.name: value} | ({"logprobs": True} if row.name == "top_logprobs" else {})
    assert read(route, **fields) != read(route)
    changes = {name: change[route] if isinstance(change, dict) and route in change else change for name, change in changes.items()}
    plain = settings(route).as_dict()
    assert settings(route, **fields).as_dict() == plain | changes | (
        {"logprobs": 2, "logprobs_of": "raw"} if row.name == "top_logprobs" else {}
    )
    assert all(plain[name] != change for name, change in changes.items())


@pytest.mark.parametrize("route", ROUTES)
def test_post_sampling_probs_is_accepted_without_logprobs(route, settings):
    assert settings(route, logprobs=False, post_sampling_probs=True) == settings(route)


def test_without_parallel_calls_a_reply_ends_with_its_first_call(settings):
    stops = {"parallel_tool_calls": False, "tools": [CALL], "stop": "x"}
    assert settings("chat", **stops).stop == ("x", "</tool_call>")
    for usual in ({"parallel_tool_calls": True}, {"tool_choice": "none"}, {"tools": []}):
        assert settings("chat", **{**stops, **usual}).stop == ("x",)
    assert calls_in('Well. <tool_call>{"name": "now", "arguments": {}}', {"now"})[1], "the stop cuts off the closing tag"


@pytest.mark.parametrize(("route", "row"), rows("honoured", "mapped"))
def test_a_wrong_value_is_refused_under_the_name_that_the_client_wrote(served, route, row):
    response = served.post(PATHS[route], {**PLAIN[route], row.name: 5 if row.name == "stream_options" else ODD})
    if row.name in ("json_schema", "guided_json", "format"):  # any object is a schema
        assert response.status_code in (200, 400)
        return
    assert response.json()["error"]["param"].split(".")[0] == row.name
    assert response.json()["error"]["message"].startswith(row.name)
    require_error(response, response.json()["error"]["param"])


@pytest.mark.parametrize(("route", "row"), rows("refused"))
def test_refused_fields_are_named_with_the_values_that_pass(served, route, row):
    values = {"logprobs": {"chat": True, "completions": 3}[route], "repetition_penalty": 1.5}
    beside = {each: values[each] for each in row.beside[:1]}
    message = require_error(served.post(PATHS[route], {**PLAIN[route], **beside, row.name: ODD}), row.name)
    assert message.startswith(f"{row.name}: ")
    assert row.instead in message
    assert all(json.dumps(each, separators=(",", ":")) in message for each in row.neutral)


@pytest.mark.parametrize(("route", "row"), ROWS)
def test_null_and_neutral_values_change_nothing(route, row):
    required = row.name in ("messages", "prompt")
    for value in (*row.neutral, *(() if required else (None,))):
        assert read(route, **{row.name: value}) == read(route) or row.name in PLAIN[route]
    if row.beside:
        assert read(route, **{row.name: ODD}) == read(route)


@pytest.mark.parametrize(("route", "row"), rows("ignored"))
def test_ignored_fields_change_nothing(route, row):
    assert read(route, **{row.name: ODD}) == read(route)


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_fields_are_ignored(route):
    assert read(route, tomorrow=[1], min_tokenz=5) == read(route)


def test_neutral_values_must_have_the_right_type():
    with pytest.raises(RefusedError, match="mirostat"):
        read("chat", mirostat=False)
    assert read("chat", mirostat=0.0) == read("chat")


# ---------------------------------------------------------------------- two fields


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"grammar": RED}, {"json_schema": SCHEMA}),
        ({"guided_choice": ["a"]}, {"response_format": {"type": "json_object"}}),
        ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json": SCHEMA}}),
        ({"guided_json": SCHEMA}, {"json_schema": {"type": "object"}}),
        ({"max_tokens": 5}, {"max_completion_tokens": 6}),
        ({"repeat_penalty": 1.5}, {"repetition_penalty": 1.4}),
    ],
    ids=str,
)
def test_contradicting_fields_are_refused_with_both_names(served, first, second):
    for fields in (first | second, second | first):
        message = require_error(served.chat(**fields), list(fields)[1])
        assert all(name in message for name in fields)


def test_two_names_for_the_same_value_agree():
    assert read("chat", max_tokens=5, max_completion_tokens=5, n_predict=5) == read("chat", max_tokens=5)
    assert read("chat", grammar=RED, response_format={"type": "text"}).constraint == {"grammar": RED}


def test_min_tokens_and_ignore_eos_exclude_stops_and_grammars(served):
    assert "min_tokens and stop" in require_error(served.chat(min_tokens=4, max_tokens=8, stop="a"), None)
    assert "ignore_eos forbids the end" in require_error(served.chat(ignore_eos=True, grammar=RED), None)
    assert "cannot have both" in require_error(served.chat(min_tokens=40, max_tokens=8), None)


# ---------------------------------------------------------------------- replies


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"json_schema": SCHEMA},
        {"format": SCHEMA},
        {"guided_json": SCHEMA},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}},
    ],
    ids=str,
)
@pytest.mark.parametrize("route", ROUTES)
def test_a_schema_is_followed_however_it_is_given(served, route, fields):
    choice = served.post(PATHS[route], {**PLAIN[route], "max_tokens": 60, **fields}).json()["choices"][0]
    assert json.loads(choice["text"] if route == "completions" else choice["message"]["content"]) == {"colour": "red"}


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": RED},
        {"guided_grammar": RED},
        {"guided_choice": ["red"]},
        {"structured_outputs": {"grammar": RED}},
        {"response_format": {"type": "grammar", "grammar": RED}},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_is_followed_in_chat_however_it_is_given(served, fields, stream):
    response = served.chat(stream=stream, **fields)
    if stream:
        text = "".join(each["choices"][0]["delta"].get("content") or "" for each in events(response.text))
    else:
        text = response.json()["choices"][0]["message"]["content"]
    assert text == "red"


@pytest.mark.parametrize("text", ['a"b', "a\\b", "two\nlines\r\t", "né 😀", "]", "root ::= x", "\x00\x1b", " "])
def test_guided_choice_takes_any_text(served, text):
    grammar = read("chat", guided_choice=[text, "never\n"]).constraint["grammar"]
    from_gbnf(grammar)
    if "\x00" not in text:
        assert served.chat(guided_choice=[text]).json()["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": SCHEMA, "grammar": RED}}, "structured_outputs"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice"),
        ({"structured_outputs": [1]}, "structured_outputs"),
        ({"guided_choice": ["a"] * 5000}, "guided_choice"),
        ({"guided_json": "{"}, "guided_json"),
        ({"format": "yaml"}, "format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
        ({"n_predict": 0}, "n_predict"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"logit_bias": [[5]]}, "logit_bias"),
        ({"logit_bias": [["Hello", -1]]}, "logit_bias"),
        ({"logit_bias": [[5, True]]}, "logit_bias"),
    ],
    ids=str,
)
def test_wrong_forms_are_refused_with_their_place(served, fields, param):
    require_error(served.chat(**fields), param)


def test_a_list_may_hold_one_prompt(served):
    def text(prompt):
        return served.post("/v1/completions", {**PLAIN["completions"], "prompt": prompt}).json()["choices"][0]["text"]

    assert text(["Who is"]) == text("Who is")
    ids = served.post("/tokenize", {"content": "Who is"}).json()["tokens"]
    assert text([ids]) == text(ids)
    assert "list of 2" in require_error(served.post("/v1/completions", {**PLAIN["completions"], "prompt": ["a", "b"]}), "prompt")


def test_minus_one_means_the_same_as_in_other_servers(served, settings, demo):
    assert settings("chat", seed=-1).seed is None
    assert settings("chat", seed=-5).seed is None
    assert settings("chat", top_k=-1).top_k == settings("chat", top_n_sigma=-1).top_n_sigma == 0
    for route in ROUTES:
        assert settings(route, max_tokens=-1).max_tokens == settings(route, n_predict=-1).max_tokens == demo.n_ctx
    assert settings("completions").max_tokens == 16
    seeds = {served.chat(seed=-1, temperature=1.5).json()["speccascade"]["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert "-1 for as many as the context holds" in require_error(served.chat(max_tokens=0), "max_tokens")


def test_min_tokens_ignore_eos_and_stop_token_ids_change_the_reply(served):
    plain = served.chat().json()
    written = plain["usage"]["completion_tokens"]
    longer = served.chat(min_tokens=written + 20, max_tokens=written + 30).json()
    assert longer["usage"]["completion_tokens"] >= written + 20
    endless = served.chat(ignore_eos=True, max_tokens=written + 30).json()
    assert endless["usage"]["completion_tokens"] == written + 30
    assert endless["choices"][0]["finish_reason"] == "length"
    ids = served.post("/tokenize", {"content": plain["choices"][0]["message"]["content"]}).json()["tokens"]
    shorter = served.chat(stop_token_ids=[ids[3]]).json()
    assert shorter["choices"][0]["finish_reason"] == "stop"
    assert shorter["usage"]["completion_tokens"] <= 4


def test_a_bias_of_false_forbids_a_token(served, settings):
    assert settings("chat", logit_bias=[[5, False], [6, 2]]).logit_bias == {5: -math.inf, 6: 2}
    plain = served.chat().json()["choices"][0]["message"]["content"]
    first = served.post("/tokenize", {"content": plain}).json()["tokens"][0]
    assert not served.chat(logit_bias=[[first, False]]).json()["choices"][0]["message"]["content"].startswith(plain[:3])


@pytest.mark.parametrize(
    ("fields", "continues"),
    [
        ({}, None),
        ({"continue_final_message": True}, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, True),
        ({"continue_final_message": False}, False),
        ({"continue_final_message": False, "add_generation_prompt": True}, False),
        ({"add_generation_prompt": True}, False),
    ],
    ids=str,
)
def test_whether_the_last_message_is_continued(fields, continues):
    assert read("chat", messages=[*QUESTION, {"role": "assistant", "content": "one, two,"}], **fields).continues is continues


@pytest.mark.parametrize(
    "fields",
    [
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"messages": [*QUESTION, {"role": "assistant", "content": "a"}], "continue_final_message": True, "add_generation_prompt": True},
    ],
    ids=str,
)
def test_contradicting_continuations_are_refused(served, fields):
    assert "continue_final_message" in require_error(served.chat(**fields), None)


# ---------------------------------------------------------------------- names of models


@pytest.fixture(scope="module")
def renamed(demo):
    with serving(aliases={"gpt-4o": "demo", "org/model:latest": "demo"}, any_model=True) as it:
        yield it


@pytest.mark.parametrize("model", ["demo", "gpt-4o", "org/model:latest", "whatever", "", None])
def test_other_names_of_a_pair_are_answered_and_told_as_they_were_asked(renamed, model):
    answer = renamed.chat(model=model, max_tokens=4).json()
    assert answer["model"] == (model or "demo")
    assert answer["speccascade"]["rule"] == "token_v3:0.8"


def test_an_alias_may_have_a_rule(renamed):
    assert renamed.chat(model="gpt-4o@strict", max_tokens=4).json()["speccascade"]["rule"] == "strict"
    assert renamed.chat(model="whatever@strict", max_tokens=4).json()["speccascade"]["rule"] == "strict"


def test_aliases_are_listed(renamed):
    listed = [each["id"] for each in renamed.get("/v1/models").json()["data"]]
    assert listed == ["demo", "gpt-4o", "org/model:latest"]
    assert renamed.get("/v1/models/org/model:latest").json()["id"] == "org/model:latest"
    assert renamed.get("/v1/models/").json() == renamed.get("/v1/models").json()


def test_a_model_must_be_named_and_known(served):
    assert "models are demo" in require_error(served.chat(model=None), "model")
    assert served.chat(model="gpt-4o").status_code == 404


@pytest.mark.parametrize(
    ("pairs", "aliases", "any_model", "message"),
    [
        (["a", "b"], {}, True, "--any-model needs exactly one pair; 2 are given: a, b"),
        (["a"], {"x": "b"}, False, "unknown pair 'b'; the pairs here are a"),
        (["a", "b"], {"a": "b"}, False, "a pair has this name"),
        (["a"], {"x@y": "a"}, False, "cannot be a model's name"),
        (["a"], {"": "a"}, False, "cannot be a model's name"),
    ],
)
def test_names_that_cannot_be_served_are_refused(demo, pairs, aliases, any_model, message):
    with pytest.raises(SettingError) as caught:
        ServedPairs(dict.fromkeys(pairs, demo), {}, aliases, any_model)
    assert message in str(caught.value)


# ---------------------------------------------------------------------- bodies


def lists_in(schema: Any) -> list[dict[str, Any]]:
    """Return all lists of a pydantic core schema."""
    if isinstance(schema, (list, tuple)):
        return [found for each in schema for found in lists_in(each)]
    if not isinstance(schema, dict):
        return []
    inner = [found for key, each in schema.items() if key not in ("metadata", "serialization") for found in lists_in(each)]
    return [schema, *inner] if schema.get("type") == "list" else inner


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest])
def test_every_list_is_bounded_and_given_up_at_its_first_wrong_item(model):
    found = lists_in(model.__pydantic_core_schema__)
    assert found
    for each in found:
        assert each.get("fail_fast") is True, each
        assert each.get("max_length", 0) > 0, each


CORPUS = list(requests("requests"))


@pytest.mark.parametrize("sent", CORPUS, ids=[sent.about for sent in CORPUS])
def test_requests_that_once_broke_a_server_get_a_quick_response(served, sent):
    """Responses come within seconds, and errors are short."""
    begun = time.monotonic()
    response = served.post(sent.path, sent.body, headers=sent.headers)
    assert time.monotonic() - begun < 10
    assert response.status_code in sent.statuses, response.text[:300]
    assert response.status_code == 200 or len(response.text) < 1000


def test_others_are_answered_while_a_large_wrong_body_is_checked(served):
    body = next(sent for sent in CORPUS if sent.about == "texts where ids are expected").body
    sending = threading.Thread(target=served.post, args=["/v1/completions", body])
    waited = [0.0]
    sending.start()
    while sending.is_alive():
        begun = time.monotonic()
        served.get("/health")
        waited.append(time.monotonic() - begun)
    assert max(waited) < 5


def test_large_bodies_are_checked_in_a_thread(served):
    message = [{"role": "user", "content": "Hi", "name": "a" * 70_000}]
    assert "context" in served.chat(messages=message).json()["error"]["message"]
    assert served.chat(metadata={"a": "b" * 70_000}, max_tokens=3).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity", "aes128gcm"])
def test_a_compressed_body_is_refused_by_its_encoding(served, encoding):
    response = served.post("/v1/chat/completions", b"\x1f\x8b", headers={"content-encoding": encoding})
    assert response.status_code == 415
    assert repr(encoding) in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1//chat/completions", "///v1/chat///completions"])
def test_double_slashes_are_read_as_single_ones(served, path):
    assert served.post(path, {**PLAIN["chat"], "max_tokens": 2}).status_code == 200


def test_other_ways_to_say_the_same(served):
    body = json.dumps({**PLAIN["chat"], "max_tokens": 2}).encode()
    assert served.post("/v1/chat/completions", b"\xef\xbb\xbf" + body, headers={"content-encoding": "identity"}).status_code == 200
    assert served.get("/v1/health").json() == served.get("/health").json()
    twice = b'{"model": "unknown", "max_tokens": 0,' + body[1:]
    assert served.post("/v1/chat/completions", twice).status_code == 200  # the last of two names counts


def test_the_description_has_mapped_fields_too():
    properties = {route: description()["components"]["schemas"][MODELS[route].__name__]["properties"] for route in ROUTES}
    for row in FIELDS:
        for route in row.routes:
            assert (row.name in properties[route]) == (row.ours in ("honoured", "mapped")), row.name
