from __future__ import annotations

import json
from collections import Counter

import pytest

from speccascade_local.bench.questions import Question, built_in, in_turns, read_questions
from speccascade_local.errors import CatalogError


def written(tmp_path, *lines):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_the_built_in_questions_are_five_families_with_references_and_ids():
    questions = built_in()
    counts = Counter(question.family for question in questions)
    assert len(counts) == 5
    assert min(counts.values()) >= 70
    assert len({question.id for question in questions}) == len(questions)
    for question in questions[:50]:
        assert question.quality(question.reference[0]) == 1
        assert question.quality("no") == 0


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


def test_spec_bench_is_read_as_it_is(tmp_path):
    path = written(tmp_path, {"question_id": 81, "category": "writing", "turns": ["Compose", "Rewrite"], "reference": ["long"]})
    (question,) = read_questions(path)
    assert question == Question(prompt="Compose", family="writing", id="81")


BAD = [
    ("{", "line 2: not JSON"),
    ("[]", "line 2: the whole line"),
    ({}, "line 2: the whole line: a question has a prompt or messages"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "and not both"),
    ({"prompt": ""}, "line 2: prompt: String should have at least 1 character"),
    ({"prompt": "a", "metric": "bleu", "reference": "b"}, "line 2: metric: Input should be 'exact'"),
    ({"prompt": "a", "metric": "exact"}, "metric exact needs a reference"),
    ({"prompt": "a", "metric": "regex", "reference": "("}, "is no regular expression"),
    ({"prompt": "a", "answer": "b"}, "line 2: answer: Extra inputs"),
    ({"prompt": 5}, "line 2: prompt"),
    ({"messages": []}, "line 2: messages"),
    ({"messages": [{"role": "user"}]}, "line 2: messages.0.content"),
    ({"prompt": "a", "id": "question-1"}, "the id 'question-1' stands here for the second time"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_what_is_no_question_is_refused_with_its_line(tmp_path, line, said):
    path = written(tmp_path, {"prompt": "fine"}, line)
    with pytest.raises(CatalogError) as error:
        read_questions(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_without_questions_is_refused(tmp_path):
    with pytest.raises(CatalogError, match=r"q\.jsonl: no questions"):
        read_questions(written(tmp_path, "", "  "))


def test_families_take_turns():
    questions = [Question(prompt="?", family=family, id=f"{family}{i}") for family, n in (("a", 3), ("b", 1), ("c", 2)) for i in range(n)]
    assert [question.id for question in in_turns(questions)] == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert [question.id for question in in_turns(questions, 1)] == ["a0", "b0", "c0"]
