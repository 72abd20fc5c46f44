from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.bench.questions import Question, built_in_questions, choose_questions, in_turns, read_questions
from speccascade_local.common.errors import CatalogError


def written(tmp_path, *lines):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_the_built_in_questions_are_five_families_with_references_and_ids():
    questions = built_in_questions()
    counts = Counter(question.family for question in questions)
    assert len(counts) == 5
    assert min(counts.values()) >= 70
    assert len({question.id for question in questions}) == len(questions)
    for question in questions[:50]:
        assert question.quality(question.reference[0]) == 1
        assert question.quality("no") == 0


def test_20_built_in_questions_of_each_family_are_chosen_unless_said_otherwise():
    assert set(Counter(question.family for question in choose_questions(None, None)).values()) == {20}
    assert (len(choose_questions(None, None)), len(choose_questions(None, 100)), len(built_in_questions())) == (100, 474, 474)


def test_a_users_file_may_hold_prompts_and_conversations(tmp_path):
    path = written(
        tmp_path,
        {"prompt": "2 + 2?", "reference": "4", "metric": "numeric", "family": "sums"},
        "",
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}], "id": 7},
        {"prompt": "a\u2028b", "reference": ["x", "y"]},
    )
    one, two, three = read_questions(path)
    assert (one.id, two.id, three.id) == ("sums-1", "7", "question-4")
    assert one.quality("It is 4.") == 1
    assert two.conversation == [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]
    assert two.quality("anything") is None
    assert three.conversation[0]["content"] == "a\u2028b"
    assert (three.quality("y "), three.quality("z")) == (1, 0)


def test_a_users_file_may_come_from_windows(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "Hi"}\r\n{"prompt": "Ho"}\r\n')
    assert [question.prompt for question in read_questions(path)] == ["Hi", "Ho"]
    path.write_text('{"prompt": "Hi"}', encoding="utf-16")
    with pytest.raises(CatalogError, match=r"q\.jsonl: not UTF-8 text but UTF-16; save it as UTF-8"):
        read_questions(path)


def test_spec_bench_is_read_as_it_is(tmp_path):
    path = written(tmp_path, {"question_id": 81, "category": "writing", "turns": ["Compose", "Rewrite"], "reference": ["long"]})
    (question,) = read_questions(path)
    assert question == Question(prompt="Compose", family="writing", id="81")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    st.lists(st.builds(Question, prompt=texts, reference=st.lists(texts, min_size=1), family=texts), min_size=1),
    st.booleans(),
    st.sampled_from("\n\r"),
)
def test_any_questions_that_are_written_as_json_lines_are_read_back(tmp_path_factory, questions, escaped, ending):
    """Also line separators of other scripts inside a text, empty lines, and the line ends of Windows."""
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    lines = [json.dumps({**question.model_dump(), "id": number}, ensure_ascii=escaped) for number, question in enumerate(questions)]
    path.write_text("\n \n".join(lines), encoding="utf-8", newline="\r\n" if ending == "\r" else "\n")
    assert read_questions(path) == [question.model_copy(update={"id": str(number)}) for number, question in enumerate(questions)]


def test_an_answer_is_right_when_it_is_one_of_those_given_but_for_white_space_around():
    question = Question(prompt="?", reference=("four ", "4"))
    assert all(question.is_right(text) for text in ("4", " four", "4\n", "four"))
    assert not any(question.is_right(text) for text in ("44", "4.", "Four", "", "fo ur"))
    assert not Question(prompt="?").is_right("4"), "without a reference"


BAD = [
    ("{", "line 2: not JSON"),
    ("[" * 100_000, "line 2: not JSON"),
    (r'{"prompt": "\ud800"}', "line 2: not JSON"),
    ("[]", "line 2: the whole line"),
    ("null", "line 2: the whole line"),
    ({}, "line 2: the whole line: a question has either a prompt or messages"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "a question has either a prompt or messages"),
    ({"prompt": ""}, "line 2: prompt: string should have at least 1 character"),
    ({"prompt": "a", "metric": "bleu", "reference": "b"}, "line 2: metric: input should be 'exact'"),
    ({"prompt": "a", "metric": "exact"}, "metric exact needs a reference"),
    ({"prompt": "a", "metric": "regex", "reference": "("}, "is not a regular expression"),
    ({"prompt": "a", "answer": "b"}, "line 2: answer: this key is not known"),
    ({"prompt": 5}, "line 2: prompt"),
    ({"messages": []}, "line 2: messages"),
    ({"messages": [{"role": "user"}]}, "line 2: messages.0.content"),
    ('{"prompt": "a", "id": ' + "1" * 5000 + "}", "line 2: not JSON"),
    ({"prompt": "a" * (2 << 20)}, "at most 2097152 are allowed"),
    ({"prompt": [[[[[]]]]] * 100_000}, "line 2: prompt: input should be a valid string"),
    ({"messages": [7] * 500_000}, "line 2: messages.0"),
    ({"prompt": "a", "reference": [7] * 500_000}, "line 2: reference.0"),
    ({"prompt": "a", "reference": ["7"] * 1001}, "line 2: reference"),
    ({"prompt": "a", "metric": "regex", "reference": "a" * 1001}, "at most 1000 are allowed"),
    ({"prompt": "a", "metric": "regex", "reference": "a{99999999999999}"}, "is not a regular expression"),
    ({"prompt": "a", "id": "question-1"}, "the id 'question-1' is used before"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "said"), BAD)
def test_an_invalid_question_is_refused_with_its_line(tmp_path, line, said):
    path = written(tmp_path, {"prompt": "fine"}, line)
    with pytest.raises(CatalogError) as error:
        read_questions(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "q.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: takes no space
    with pytest.raises(CatalogError, match=r"q\.jsonl: larger than 64 MiB"):
        read_questions(path)


def test_a_file_without_questions_is_refused(tmp_path):
    with pytest.raises(CatalogError, match=r"q\.jsonl: no questions"):
        read_questions(written(tmp_path, "", "  "))


def test_families_take_turns():
    questions = [Question(prompt="?", family=family, id=f"{family}{i}") for family, n in (("a", 3), ("b", 1), ("c", 2)) for i in range(n)]
    assert [question.id for question in in_turns(questions)] == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert [question.id for question in in_turns(questions, 1)] == ["a0", "b0", "c0"]
