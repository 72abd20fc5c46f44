"""Files of questions with known answers, and what both models of a pair make of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from gguf_files import text_model
from hypothesis import given
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local.errors import CatalogError, ContextOverflowError
from speccascade_local.tasks import Task, judged, read_tasks

DEMO = Path(sc.__file__).parent / "demo"
HELD_OUT = DEMO / "heldout.jsonl"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tasks") / "tasks.jsonl"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.builds(Task, prompt=texts, answers=st.lists(texts, min_size=1), family=texts)), st.booleans(), st.sampled_from("\n\r"))
def test_any_tasks_that_are_written_as_json_lines_are_read_back(path, tasks, escaped, ending):
    """Also line separators of other scripts inside a text, empty lines, and the line ends of Windows."""
    lines = [json.dumps(task.model_dump(), ensure_ascii=escaped) for task in tasks]
    path.write_text("\n \n".join(lines), encoding="utf-8", newline="\r\n" if ending == "\r" else "\n")
    assert read_tasks(path) == tasks


def test_the_bundled_questions_are_tasks():
    tasks = read_tasks(HELD_OUT)
    assert len(tasks) == len(HELD_OUT.read_text(encoding="utf-8").splitlines()) > 400
    assert all(task.family for task in tasks)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "the whole line: invalid JSON"),
        ("[1]", "the whole line"),
        ("null", "the whole line"),
        ("[" * 100_000, "the whole line: invalid JSON: recursion limit"),
        (r'{"prompt": "\ud800", "answers": ["b"]}', "the whole line: invalid JSON"),
        ('{"prompt": "a"}', "answers: this key is missing"),
        ('{"prompt": "a", "answers": []}', "answers: list should have at least 1 item"),
        ('{"prompt": "a", "answers": "b"}', "answers: input should be a valid"),
        ('{"prompt": "a", "answers": [3]}', r"answers\.0: input should be a valid string"),
        ('{"prompt": "", "answers": ["b"]}', "prompt: string should have at least 1 character"),
        ('{"prompt": "a", "answers": ["b"], "answer": "c"}', "answer: this key is not known"),
    ],
    ids=lambda value: value[:30],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path, line, said):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"prompt": "a", "answers": ["b"]}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CatalogError, match=re.escape(str(path)) + ", line 3: " + said):
        read_tasks(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, said in (("none", "No such file"), (".", "directory"), ("latin", "not UTF-8")):
        with pytest.raises(CatalogError, match=re.escape(str(tmp_path / name)) + f": .*{said}"):
            read_tasks(tmp_path / name)


def test_an_answer_is_right_when_it_is_one_of_those_given_but_for_white_space_around():
    task = Task(prompt="?", answers=["four ", "4"])
    assert all(task.is_right(text) for text in ("4", " four", "4\n", "four"))
    assert not any(task.is_right(text) for text in ("44", "4.", "Four", "", "fo ur"))


def test_each_question_is_judged_by_what_both_models_write_alone(demo):
    tasks = read_tasks(HELD_OUT)[::40]
    steps: list[float] = []
    outcomes = judged(demo, tasks, max_tokens=256, on_step=steps.append)
    for task, outcome in zip(tasks, outcomes, strict=True):
        prompt = demo.chat_ids([{"role": "user", "content": task.prompt}])
        drafter, expert = (demo.generate(prompt, **alone) for alone in ({"rule": "margin:0"}, {"block_size": 0}))
        assert (outcome.drafter_right, outcome.expert_right) == (drafter.text in task.answers, expert.text in task.answers)
        assert outcome.uncertainty == pytest.approx(1 - drafter.confidence, abs=0.02)
    assert steps == [(i + 1) / len(tasks) for i in range(len(tasks))]
    assert len({outcome[1:] for outcome in outcomes}) > 1, "some were wrong and some right"
    assert not any(outcome.drafter_right for outcome in judged(demo, tasks, max_tokens=1))


def test_a_question_that_is_too_long_is_named_before_any_is_asked(demo):
    tasks = [Task(prompt="Who is Ada Lovelace?", answers=["x"]), Task(prompt="word " * 600, answers=["x"])]
    demo.reset()
    with pytest.raises(ContextOverflowError, match=r"question 2 of 2: .*context holds 512"):
        judged(demo, tasks, max_tokens=5)
    assert demo._drafter.tokens == demo._expert.tokens == []


def test_without_a_chat_template_the_question_is_continued_as_it_is(tmp_path):
    path = text_model(tmp_path / "plain.gguf")
    with sc.load(drafter=path, expert=path, n_ctx=64) as runtime:
        answer = runtime.generate("the", rule="never", max_tokens=4).text
        task = Task(prompt="the", answers=[answer])
        assert [outcome[1:] for outcome in judged(runtime, [task], max_tokens=4)] == [(True, True)]
