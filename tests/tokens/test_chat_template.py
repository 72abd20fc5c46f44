"""What a chat template may do, and what it makes of messages: real ones against a second Jinja, hostile ones against the clock.

The second Jinja is minijinja, written in another language by others.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import minijinja
import pytest
from gguf_files import CHATML, CONTROLS, text_model
from hypothesis import given, settings
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local.common.errors import PromptError
from speccascade_local.llama.model import LlamaModel
from speccascade_local.tokens import template_process
from speccascade_local.tokens.chat_template import ChatTemplate, _Spellings

USER = [{"role": "user", "content": "Hi"}]


def template(source: str, controls: tuple[str, ...] = CONTROLS, **special_texts: str) -> ChatTemplate:
    return ChatTemplate(source, special_texts={"bos_token": "", "eos_token": ""} | special_texts, control_texts=controls)


def rendered(source: str, content: str = "Hi", **special_texts: str) -> str:
    parts = template(source, **special_texts).render([{"role": "user", "content": content}])
    return "".join(text for text, _ in parts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    model = LlamaModel(text_model(tmp_path_factory.mktemp("text") / "chat.gguf", chat_template=CHATML))
    yield model
    model.close()


def test_chatml_is_written_up_to_where_the_assistant_speaks() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    assert template(CHATML).render(messages) == [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", True)
    ]


def test_a_control_token_spelled_in_a_message_is_a_part_of_its_own_that_is_plain_text() -> None:
    parts = template("<|im_start|>{{ messages[0].content }}<|im_end|>").render([{"role": "user", "content": "a<|im_end|>b<|im_start|>"}])
    assert parts == [("<|im_start|>a", True), ("<|im_end|>", False), ("b", True), ("<|im_start|>", False), ("<|im_end|>", True)]


fragments = st.lists(
    st.sampled_from(
        [*CONTROLS, "<|im_", "end|>", "<|", "|>", "<", "im_end", "\n", " ", "user", "\ue000", "\ue001", "0:", "{{ 7 * 7 }}", "é"]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)


@given(st.lists(st.fixed_dictionaries({"role": fragments, "content": fragments}), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_no_message_can_forge_a_control_token_or_lose_a_character(model: LlamaModel, messages: list[dict[str, str]]) -> None:
    parts = template(CHATML).render(messages)
    expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
    assert "".join(text for text, _ in parts) == expected
    tokenizer = model.tokenizer
    ids = [token for text, control in parts for token in tokenizer.tokenize(text, add_special=False, parse_special=control)]
    read_as_control = [text for text in map(tokenizer.token_text, ids) if text in tokenizer.control_texts]
    assert read_as_control == ["<|im_start|>", "<|im_end|>"] * len(messages) + ["<|im_start|>"]


def test_the_longer_of_two_control_tokens_that_begin_alike_is_found_whole() -> None:
    parts = template("{{ messages[0].content }}", ("<|a", "<|a|>")).render([{"role": "user", "content": "<|a|><|a"}])
    assert parts == [("<|a|>", False), ("<|a", False)]


@given(st.text("<|a>", max_size=12), st.lists(st.text("<|a>", max_size=5), max_size=5))
@settings(deadline=None)
def test_spelled_control_tokens_are_found_from_the_left_the_longest_first(text: str, controls: list[str]) -> None:
    expected, at = "", 0
    while at < len(text):
        here = max((len(each) for each in controls if each and text.startswith(each, at)), default=0)
        expected += f"[{text[at : at + here]}]" if here else text[at]
        at += here or 1
    assert _Spellings(controls).sub(lambda found: f"[{found}]", text) == expected


def test_a_hundred_thousand_control_tokens_are_kept_out_of_a_long_message_at_once() -> None:
    begun = time.monotonic()
    chat = template("{{ messages[0].content }}", tuple(f"<|{number}|>" for number in range(100_000)) + ("",) * 100_000)
    parts = chat.render([{"role": "user", "content": "<|99999|><|1000000|>" * 10_000}])
    assert parts[:2] == [("<|99999|>", False), ("<|1000000|>", True)]
    assert len(parts) == 20_000
    assert time.monotonic() - begun < 5


def test_a_control_token_longer_than_any_real_one_is_refused() -> None:
    with pytest.raises(PromptError, match=r"a control token of 129 characters, and at most 128 .* \(--raw\)$"):
        template("{{ messages[0].content }}", ("<" * 129,))


def test_a_template_without_control_tokens_to_guard_renders_too() -> None:
    assert template("{{ messages[0].content }}", ()).render(USER) == [("Hi", True)]


@pytest.mark.parametrize(
    ("source", "content", "text"),
    [
        ("[{{ messages[0].content | trim }}]", "  Hi <|im_end|>\n", "[Hi <|im_end|>]"),
        ("{% for c in 'abc' %}{% if c == 'b' %}{% continue %}{% endif %}{{ c }}{% endfor %}", "", "ac"),
        ("{% for c in 'abc' %}{% if c == 'b' %}{% break %}{% endif %}{{ c }}{% endfor %}", "", "a"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "", "1"),
        ("{% macro hi(name) %}Hi {{ name }}{% endmacro %}{{ hi('you') }}", "", "Hi you"),
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "Hi", "<s>Hi</s>"),
        ("{% if add_generation_prompt %}assistant{% endif %}", "", "assistant"),
        ("{% if tools is defined and tools %}tools{% else %}none{% endif %}", "", "none"),
        ("line\n  {% if true %}\nkept\n  {% endif %}\nend", "", "line\nkept\nend"),
        ("{{ messages[0].content }}", "a < b & 'c' {{ 1 + 1 }}", "a < b & 'c' {{ 1 + 1 }}"),
        ("{{ messages[0].content | tojson }}", "a < 'é'", "\"a < 'é'\""),
        ("{{ [messages[0].content] | tojson(indent=1) }}", "Hi", '[\n "Hi"\n]'),
        ("{{ {'b': 1, 'a': 'é'} | tojson(separators=(',', ':'), sort_keys=true) }}", "", '{"a":"é","b":1}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", "", '"\\u00e9"'),
        ("a {%- generation %} b{% endgeneration -%} c", "", "a bc"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Hi", "Hi"),
    ],
)
def test_templates_may_use_what_published_ones_use(source: str, content: str, text: str) -> None:
    assert rendered(source, content, bos_token="<s>", eos_token="</s>") == text


@pytest.mark.parametrize("taken_apart", ["replace('\ue000', '')", "replace('\ue001', '')"])
def test_a_template_that_takes_a_spelled_control_token_apart_is_refused_and_one_that_takes_other_text_apart_is_not(
    taken_apart: str,
) -> None:
    source = f"{{{{ messages[0].content | {taken_apart} }}}}"
    assert rendered(source, "Hi") == "Hi"
    with pytest.raises(PromptError, match=r"^the model's chat template splits a message .* leave that spelling out$"):
        rendered(source, "<|im_end|>")
    with pytest.raises(PromptError, match="splits a message"):
        rendered("{{ messages[0].content }}" + source, "<|im_end|>")


def test_what_marked_a_spelled_control_token_in_one_prompt_marks_nothing_in_the_next() -> None:
    with pytest.raises(PromptError) as seen:
        rendered("{{ raise_exception(messages[0].content) }}", "<|im_end|>")
    mark = re.search("\ue000.*\ue001", str(seen.value))[0]
    parts = template("{{ messages[0].content }}").render([{"role": "user", "content": mark + "<|im_end|>"}])
    assert parts == [(mark, True), ("<|im_end|>", False)]


def test_templates_may_ask_for_the_date() -> None:
    before = datetime.datetime.now().strftime("%Y-%m-%d")
    text = rendered("{{ strftime_now('%Y-%m-%d') }}")
    assert before <= text <= datetime.datetime.now().strftime("%Y-%m-%d")


def test_a_refusal_by_the_template_reaches_the_user_in_its_words() -> None:
    with pytest.raises(PromptError, match="roles must alternate user/assistant"):
        rendered("{{ raise_exception('roles must alternate user/assistant') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}{{ ''.__class__.x }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ strftime_now.__globals__['os'].system('true') }}",
        "{{ raise_exception.__globals__.sys }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ messages.append(messages[0]) }}",
        "{{ messages[0].update(role='system') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(PromptError):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ messages[0].content.nothing.more }}",
        "{{ messages | map(attribute='role.x.y') | join | int(base=99) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 'a'.encode('no such codec') }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ [1][7].x }}",
    ],
)
def test_whatever_goes_wrong_inside_a_template_is_a_prompt_error(source: str) -> None:
    with pytest.raises(PromptError, match="--raw"):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ messages",
        "{% endif %}",
        "{{ x | no_such_filter }}",
        "{% if %}",
        "{% for i in x %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 3000,
    ],
    ids=lambda source: source[:20],
)
def test_a_template_that_does_not_compile_is_a_prompt_error_that_names_the_way_around(source: str) -> None:
    with pytest.raises(PromptError, match="--raw"):
        template(source)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "Hi",
        b"Hi",
        ["Hi"],
        [{}],
        [{"role": "user"}],
        [{"content": "Hi"}],
        [{"role": 1, "content": "Hi"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ["Hi"]}],
        [{"role": "user", "content": "Hi", "name": 3}],
        {"role": "user", "content": "Hi"},
    ],
)
def test_malformed_messages_are_refused(messages: object) -> None:
    with pytest.raises(PromptError, match="role"):
        template(CHATML).render(messages)  # type: ignore[arg-type]


@pytest.mark.parametrize("messages", [[], "Hi", b"Hi"])
def test_an_error_for_no_list_of_messages_shows_what_one_looks_like(messages: object) -> None:
    with pytest.raises(PromptError, match=r"^a chat needs .* one message, such as \[\{'role': 'user', 'content': 'Hi'\}\]$"):
        template(CHATML).render(messages)  # type: ignore[arg-type]


def test_the_position_of_a_malformed_message_is_reported() -> None:
    with pytest.raises(PromptError, match=r"message 1 is \{'role': 'user'\}"):
        template(CHATML).render([*USER, {"role": "user"}])


def test_rendering_leaves_the_messages_of_the_caller_as_they_were() -> None:
    messages = [{"role": "user", "content": "<|im_end|>"}]
    template(CHATML).render(messages)
    assert messages == [{"role": "user", "content": "<|im_end|>"}]


# --------------------------------------------------------------------------- real templates

REAL = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[1] / "data" / "chat_templates").glob("*.jinja"))
}
#: Written for tools only: fails, in any Jinja, without the variables ``functions`` and ``datetime``.
NEEDS_TOOLS = "fireworks-ai-llama-3-firefunction-v2"
NO_SYSTEM = {"google-gemma-2-2b-it"}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": "Be <b>brief</b>."}
FIRST, SECOND = {"role": "user", "content": "Who is 'é' & \"q\"?\n"}, {"role": "user", "content": " And then?"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nAn accent."}
PLAIN = {"role": "assistant", "content": "Nothing."}
CONVERSATIONS = {
    "a question": [FIRST],
    "a system prompt": [SYSTEM, FIRST],
    "two turns": [FIRST, THOUGHT, SECOND],
    "three turns": [SYSTEM, FIRST, PLAIN, SECOND, THOUGHT, FIRST],
}


def to_json(value: object, **form: object) -> str:
    return json.dumps(value, **({"ensure_ascii": False} | form))


def refuse(message: str) -> None:
    raise ValueError(message)


def by_minijinja(name: str, messages: list[dict[str, str]], day: datetime.datetime) -> str:
    """What it makes of a template. Two things it does not do as Jinja does are taken out of its way."""
    source = re.sub(r"\bgeneration(?= -?%\})", "if true", REAL[name])  # it knows no such tag
    source = re.sub(r"\bendgeneration(?= -?%\})", "endif", source)
    variables = {"tools": []} if name == "unsloth-Apriel-1.5" else {}  # it has no length for what is undefined
    other = minijinja.Environment(trim_blocks=True, lstrip_blocks=True)
    other.add_filter("tojson", to_json)
    other.add_function("raise_exception", refuse)
    other.add_function("strftime_now", day.strftime)
    return other.render_str(source, messages=messages, add_generation_prompt=True, **SPECIAL, **variables)


@pytest.mark.parametrize("asked", CONVERSATIONS)
@pytest.mark.parametrize("name", [name for name in REAL if name != NEEDS_TOOLS])
def test_real_templates_render_as_another_jinja_renders_them(name: str, asked: str) -> None:
    messages = CONVERSATIONS[asked]
    if name in NO_SYSTEM and messages[0] == SYSTEM:
        first = {"role": "user", "content": f"{SYSTEM['content']}\n\n{FIRST['content']}"}
        expected_of = [first, *messages[2:]]
    else:
        expected_of = messages
    before = datetime.datetime.now()
    parts = ChatTemplate(REAL[name], special_texts=SPECIAL, control_texts=()).render(messages)
    text = "".join(part for part, _ in parts)
    days = (before, datetime.datetime.now())  # midnight may lie between
    assert text in [by_minijinja(name, expected_of, day) for day in days]
    assert FIRST["content"].strip() in text


def test_there_are_many_of_them_and_the_one_left_out_needs_what_a_chat_does_not_have() -> None:
    assert len(REAL) > 60
    with pytest.raises(PromptError, match="'functions' is undefined"):
        ChatTemplate(REAL[NEEDS_TOOLS], special_texts=SPECIAL, control_texts=()).render([FIRST])


@pytest.mark.parametrize("name", [name for name in REAL if name != NEEDS_TOOLS])
def test_a_system_prompt_is_in_every_prompt_whether_or_not_the_template_has_a_place_for_it(name: str) -> None:
    real = ChatTemplate(REAL[name], special_texts=SPECIAL, control_texts=())
    assert real.takes_system == (name not in NO_SYSTEM)
    text = "".join(part for part, _ in real.render([SYSTEM, FIRST]))
    assert text.index(SYSTEM["content"]) < text.index(FIRST["content"].strip())


def test_a_template_that_leaves_the_system_message_out_gets_it_with_the_first_question() -> None:
    source = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    parts = template(source, ()).render([{"role": "system", "content": "Be brief."}, *USER])
    assert parts == [("user: Be brief.\n\nHi\n", True)]


# --------------------------------------------------------------------------- an answer that is continued

NOW = {"type": "function", "function": {"name": "now", "description": "?", "parameters": {"type": "object", "properties": {}}}}
#: Fails with tools in any Jinja that writes no generators as JSON, continued or not.
NO_TOOLS = "llama-cpp-deepseek-r1"
BEGUN = {
    "an answer": ([FIRST], "One, two,"),
    "white space at its end": ([SYSTEM, FIRST, PLAIN, SECOND], "One,\n two, \n"),
    "a thought": ([FIRST], "<think>\nhm, so"),
    "with tools": ([FIRST], "One, two, "),
}


def joined(parts: list[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in parts)


@pytest.mark.parametrize("begun", BEGUN)
@pytest.mark.parametrize("name", [name for name in REAL if name != NEEDS_TOOLS])
def test_real_templates_leave_an_answer_that_is_continued_where_its_content_ends(name: str, begun: str) -> None:
    before, content = BEGUN[begun]
    tools = [NOW] if begun == "with tools" and name != NO_TOOLS else []
    messages = [*before, {"role": "assistant", "content": content}]
    real = ChatTemplate(REAL[name], special_texts=SPECIAL, control_texts=())
    text = joined(real.render(messages, tools))
    assert text.endswith(content)
    if messages[0] == SYSTEM and name in NO_SYSTEM:
        messages = [{"role": "user", "content": f"{SYSTEM['content']}\n\n{FIRST['content']}"}, *messages[2:]]
    closed = real._render(messages, tools, add_generation_prompt=False)
    assert closed.startswith(text.rstrip())  # many cut the white space off


@pytest.mark.parametrize("name", [name for name in REAL if name != NEEDS_TOOLS])
def test_an_answer_that_is_empty_is_an_answer_that_has_not_begun(name: str) -> None:
    real = ChatTemplate(REAL[name], special_texts=SPECIAL, control_texts=())
    assert real.render([FIRST, {"role": "assistant", "content": ""}]) == real.render([FIRST])


@given(fragments.filter(bool))
@settings(max_examples=60, deadline=None)
def test_what_an_answer_that_is_continued_spells_stays_plain_text(model: LlamaModel, content: str) -> None:
    parts = template(CHATML).render([*USER, {"role": "assistant", "content": content}])
    assert joined(parts) == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{content}"
    tokenizer = model.tokenizer
    ids = [token for text, control in parts for token in tokenizer.tokenize(text, add_special=False, parse_special=control)]
    assert sum(tokenizer.token_text(token) in tokenizer.control_texts for token in ids) == 3


@pytest.mark.parametrize(
    "written",
    [
        "{{ m.content[:-1] }}",
        "{% if m.role == 'user' %}{{ m.content }}{% endif %}",
        "{{ m.content }} {{ m.content }}",
        "{{ m.content | tojson(ensure_ascii=true) }}",
        "{{ m.content | length }}",
        "{{ m.content | reverse }}",
    ],
)
def test_a_template_that_does_not_write_an_answer_as_it_is_cannot_continue_one(written: str) -> None:
    with pytest.raises(PromptError, match=r"cannot be continued; let the last message be the user's$"):
        template(f"{{% for m in messages %}}{written}{{% endfor %}}").render([*USER, {"role": "assistant", "content": "One"}])


def test_a_template_that_wants_the_user_last_refuses_in_its_own_words() -> None:
    source = "{% if messages[-1].role != 'user' %}{{ raise_exception('the user comes last') }}{% endif %}"
    with pytest.raises(PromptError, match="the user comes last"):
        template(source).render([*USER, {"role": "assistant", "content": "One"}])


def test_a_last_message_that_calls_tools_is_complete() -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    messages = [*USER, {"role": "assistant", "content": "Let me see", "tool_calls": [call]}]
    assert joined(template(CHATML).render(messages)).endswith("Let me see<|im_end|>\n<|im_start|>assistant\n")


def test_an_empty_answer_alone_is_no_conversation() -> None:
    with pytest.raises(PromptError, match="at least one message"):
        template(CHATML).render([{"role": "assistant", "content": ""}])


# --------------------------------------------------------------------------- hostile templates

TOO_LONG = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "one huge power": "{{ messages|length * 9 ** (10 ** 8) }}",
    "nested lists that differ": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "lists of lists": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "while it is compiled": "{{ 9 ** (10 ** 8) }}",
}
TOO_MUCH = {
    "a product": "{% for m in messages %}{{ ('a' * 10 ** 10) | length }}{% endfor %}",
    "doubling": "{% set ns = namespace(s=messages[0].content) %}{% for i in range(50) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "a wide format": "{{ '%9999999999d' % messages|length }}",
    "a wide column": "{{ messages[0].content.ljust(10 ** 10) }}",
    "while it is compiled": "{{ 'a' * 10 ** 10 }}",
}


@pytest.fixture
def new_process() -> Iterator[None]:
    """Limits that a test changes hold for a new process."""
    template_process.renderer.close()
    yield
    template_process.renderer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("new_process")
@pytest.mark.parametrize("source", TOO_LONG.values(), ids=TOO_LONG)
def test_a_template_without_an_end_is_an_error_and_the_next_honest_one_renders(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 0.5)
    with pytest.raises(PromptError, match=r"does not finish within 0.5 seconds.*--raw"):
        rendered(source)
    monkeypatch.setattr(template_process, "SECONDS", 60.0)  # for a machine that is busy
    assert rendered("{{ messages[0].content }}") == "Hi"


@pytest.mark.usefixtures("new_process")
@pytest.mark.parametrize("source", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_template_that_fills_the_memory_is_an_error_and_the_next_honest_one_renders(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 60.0)
    monkeypatch.setattr(template_process, "MEMORY_BYTES", 200_000_000)
    with pytest.raises(PromptError, match=r"(needs more than 200 MB of memory|MemoryError).*--raw"):
        rendered(source)
    assert rendered("{{ messages[0].content }}") == "Hi"


def test_a_format_wider_than_any_text_is_an_error() -> None:
    with pytest.raises(PromptError, match="--raw"):
        rendered("{{ '%99999999999999999999d' % messages|length }}")


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_ctrl_c_in_the_terminal_is_not_for_the_process_that_renders() -> None:
    rendered("Hi")
    assert os.getpgid(template_process.renderer._child.process.pid) != os.getpgid(0)


def test_the_error_for_a_template_whose_text_is_too_long_says_how_long_it_is() -> None:
    with pytest.raises(PromptError, match=r"it writes 10000001 characters; 10000000 are allowed"):
        rendered("{{ 'a' * 10000001 }}")


def test_a_template_that_takes_its_process_down_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "dies.py"
    program.write_text("import os\ninput()\nos._exit(7)\n")
    monkeypatch.setattr(template_process, "standalone", lambda _: [sys.executable, str(program)])
    mine = template_process.TemplateProcess()
    with pytest.raises(PromptError, match=r"brought down its process \(exit code 7\)"):
        mine.render("Hi", {})
    mine.close()


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PromptError, match=r"/nowhere/python cannot be started.*--raw"):
        template_process.TemplateProcess().render("Hi", {})


def test_a_process_that_was_ended_by_somebody_is_started_again() -> None:
    rendered("Hi")
    template_process.renderer._child.process.kill()
    template_process.renderer._child.process.wait()
    assert rendered("{{ messages[0].content }}") == "Hi"


def test_many_threads_get_their_own_texts() -> None:
    got: dict[int, str] = {}

    def ask(number: int) -> None:
        got[number] = rendered("{{ messages[0].content }}", str(number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: str(number) for number in range(8)}


def test_an_interruption_leaves_no_answer_for_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered("Hi")
    child = template_process.renderer._child.process

    def interrupted(text: str) -> int:
        os.write(child.stdin.fileno(), text.encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(child.stdin, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rendered("the first")
    assert rendered("the second") == "the second"


def test_the_process_ends_with_the_one_that_asked() -> None:
    code = (
        "import os\nfrom speccascade_local.tokens.template_process import renderer\n"
        "renderer.render('Hi', {})\nprint(renderer._child.process.pid, flush=True)\nos._exit(0)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout)
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
            os.kill(pid, 0)
        except (OSError, ProcessLookupError):
            return
        threading.Event().wait(0.02)
    pytest.fail(f"process {pid} is still there")


# --------------------------------------------------------------------------- through a whole pair


def loaded(path: os.PathLike[str]) -> sc.Runtime:
    return sc.load(drafter=path, expert=path, n_ctx=64, n_threads=1)


def test_a_broken_chat_template_in_the_file_leaves_raw_prompts_usable(tmp_path) -> None:
    with loaded(text_model(tmp_path / "broken.gguf", chat_template="{% for %}")) as runtime:
        assert runtime.generate("Hi", max_tokens=2).token_ids
        with pytest.raises(PromptError):
            runtime.chat(USER)


def test_a_template_that_writes_nothing_is_a_prompt_error(tmp_path) -> None:
    path = text_model(tmp_path / "silent.gguf", chat_template="{% if false %}x{% endif %}")
    with loaded(path) as runtime, pytest.raises(PromptError):
        runtime.chat(USER)
