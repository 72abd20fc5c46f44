"""What both models of a pair make of questions with known answers."""

from __future__ import annotations

import pytest
from gguf_files import text_model

import speccascade_local as sc
from speccascade_local.bench.calibrate import judge, require_references
from speccascade_local.bench.questions import Question, built_in_questions
from speccascade_local.common.errors import CatalogError, ContextOverflowError


@pytest.mark.slow
def test_each_question_is_judged_by_what_both_models_write_alone(demo):
    questions = built_in_questions()[::40]
    steps: list[float] = []
    outcomes = judge(demo, questions, max_tokens=256, on_step=steps.append)
    for question, outcome in zip(questions, outcomes, strict=True):
        prompt = demo.chat_ids([{"role": "user", "content": question.prompt}])
        drafter, expert = (demo.generate(prompt, **alone) for alone in ({"rule": "margin:0"}, {"block_size": 0}))
        assert (outcome.drafter_right, outcome.expert_right) == (question.is_right(drafter.text), question.is_right(expert.text))
        assert outcome.uncertainty == pytest.approx(1 - drafter.confidence, abs=0.02)
    assert steps == [(i + 1) / len(questions) for i in range(len(questions))]
    assert len({outcome[1:] for outcome in outcomes}) > 1, "some were wrong and some right"
    assert not any(outcome.drafter_right for outcome in judge(demo, questions, max_tokens=1))


@pytest.mark.slow
def test_a_question_that_is_too_long_is_named_before_any_is_asked(demo):
    questions = [Question(prompt="Who is Ada Lovelace?", reference=("x",)), Question(prompt="word " * 600, reference=("x",), id="long")]
    demo.reset()
    with pytest.raises(ContextOverflowError, match=r"question long: .*context holds 512"):
        judge(demo, questions, max_tokens=5)
    assert demo._drafter.tokens == demo._expert.tokens == []


@pytest.mark.slow
def test_without_a_chat_template_the_question_is_continued_as_it_is(tmp_path):
    path = text_model(tmp_path / "plain.gguf")
    with sc.load(drafter=path, expert=path, n_ctx=64) as runtime:
        answer = runtime.generate("the", rule="never", max_tokens=4).text
        question = Question(prompt="the", reference=(answer,))
        assert [outcome[1:] for outcome in judge(runtime, [question], max_tokens=4)] == [(True, True)]


def test_a_question_without_a_reference_is_named():
    questions = [Question(prompt="?", reference=("x",), id="one"), Question(prompt="?", id="two")]
    require_references(questions[:1])
    with pytest.raises(CatalogError, match="question two has no reference"):
        require_references(questions)
