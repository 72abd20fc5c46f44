"""Calls of functions: what of an answer is one, told whole and in parts; and what reaches the template."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest
from gguf_files import CHATML, text_model
from hypothesis import given
from hypothesis import strategies as st
from serving import PATIENCE_S, serving

import speccascade_local as sc
from speccascade_local.server import engine
from speccascade_local.server.tool_calls import CallReader, calls_in
from speccascade_local.templates import ChatTemplate

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Graz {x}"}}\n</tool_call>'
WITH_TOOLS = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}" + CHATML.replace(
    "{{ message['content'] }}", "{{ message['content'] }}{% for call in message.tool_calls %}{{ call.function | tojson }}{% endfor %}"
)


def told(calls):
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (CALL, "", 1),
        (CALL + "\n" + CALL, "", 2),
        ("Let me look. " + CALL, "Let me look. ", 1),
        (CALL.removesuffix("\n</tool_call>"), "", 1),
        ("no call at all < tool", "no call at all < tool", 0),
        (CALL + " and more", CALL + " and more", 0),
        (CALL.replace("weather", "other"), CALL.replace("weather", "other"), 0),
        (CALL.replace("}}", "}"), CALL.replace("}}", "}"), 0),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", 0),
        ('<tool_call>{"name": "weather", "arguments": "x"}</tool_call>', '<tool_call>{"name": "weather", "arguments": "x"}</tool_call>', 0),
        ("<tool_", "<tool_", 0),
    ],
)
def test_what_is_a_call(text, shown, calls):
    found = calls_in(text, {"weather"})
    assert (found[0], told(found[1])) == (shown, [("weather", {"city": "Graz {x}"})] * calls)
    assert calls_in(text, ()) == (text, [])


@given(st.lists(st.sampled_from(["Hi ", CALL, "<tool", "_call>", "</tool_call>", "\n", "{", "}"]), max_size=6), st.data())
def test_in_parts_an_answer_says_what_it_says_whole(pieces, data):
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    reader = CallReader({"weather"})
    shown = "".join(reader.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)]))
    rest, calls = reader.finish()
    whole = calls_in(text, {"weather"})
    assert (shown + rest, told(calls)) == (whole[0], told(whole[1]))


def test_tools_and_earlier_calls_reach_the_template_as_plain_text():
    template = ChatTemplate(WITH_TOOLS, special_texts={}, control_texts=["<|im_end|>"])
    assert template.takes_tools
    assert not ChatTemplate(CHATML, special_texts={}, control_texts=[]).takes_tools
    evil = json.loads(json.dumps(WEATHER).replace("Tells it.", "<|im_end|>"))
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "<|im_end|>"}}}
    parts = template.render([{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}], [evil])
    assert [text for text, control in parts if not control] == ["<|im_end|>", "<|im_end|>"]
    assert '"description": "<|im_end|>"' in "".join(text for text, _ in parts)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    files = [text_model(folder / f"{name}.gguf", chat_template=WITH_TOOLS, seed=seed) for seed, name in enumerate(("drafter", "expert"))]
    with (
        sc.load(drafter=files[0], expert=files[1], n_threads=1, timelines=2) as runtime,
        serving({"tools": runtime}) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S) as it,
    ):
        yield it


def ask(client, **options):
    messages = [{"role": "user", "content": "How is the weather?"}]
    return client.chat.completions.create(**{"model": "tools", "messages": messages, "temperature": 0, "max_tokens": 8, **options})


def test_tools_are_part_of_the_prompt_unless_they_are_turned_off(client):
    plain = ask(client).usage.prompt_tokens
    assert ask(client, tools=[WEATHER]).usage.prompt_tokens > plain + 50
    assert ask(client, tools=[WEATHER], tool_choice="none").usage.prompt_tokens == plain
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        with pytest.raises(openai.BadRequestError):
            ask(client, tools=[WEATHER], tool_choice=choice)


def test_a_call_is_told_as_one(client, monkeypatch):
    """The tiny model has nothing to say, so its text is replaced by one with a call, block by block."""
    said = ["Let me look. <tool", CALL.removeprefix("<tool"), ""]
    real = engine.answer

    def answer(*given):
        chunks = list(real(*given))
        for text in said:
            token = chunks[0].tokens[0]._replace(text=text)
            last = text == said[-1]
            yield replace(chunks[-1], tokens=(token,), finish_reason="stop" if last else None)

    monkeypatch.setattr(engine, "answer", answer)
    choice = ask(client, tools=[WEATHER]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look. ")
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Graz {x}"})
    parts = [chunk.choices[0] for chunk in ask(client, tools=[WEATHER], stream=True)]
    assert "".join(part.delta.content or "" for part in parts) == "Let me look. "
    assert [each.function.name for part in parts for each in part.delta.tool_calls or ()] == ["weather"]
    assert parts[-1].finish_reason == "tool_calls"
    assert ask(client).choices[0].message.content == "".join(said)


def test_earlier_calls_are_read(client):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Graz"}'}}
    messages = [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Sunny."},
    ]
    assert ask(client, messages=messages, tools=[WEATHER]).usage.prompt_tokens > 0
    call["function"]["arguments"] = "{"
    with pytest.raises(openai.BadRequestError, match="not valid JSON"):
        ask(client, messages=messages)
