"""Puts questions with known answers to both models of a pair, for whoever must know when the drafter's answer can be trusted.

Knows nothing of what the verdicts are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..calibration import Outcome
from ..errors import CatalogError
from ..routing import Margin
from ..runtime import Runtime
from .questions import Question
from .running import prompts_of


def judged(
    runtime: Runtime, questions: Sequence[Question], *, max_tokens: int, on_step: Callable[[float], None] = lambda fraction: None
) -> list[Outcome]:
    """Ask every question of both models, greedily. Raises PromptError for one that cannot be asked, before any is."""
    outcomes = []
    for i, (question, prompt) in enumerate(zip(questions, prompts_of(runtime, questions))):
        drafted = runtime.generate(prompt, rule=Margin(0.0), max_tokens=max_tokens, fidelity=False)
        expert = runtime.generate(prompt, rule="strict", block_size=0, max_tokens=max_tokens, fidelity=False)
        assert drafted.confidence is not None
        outcomes.append(Outcome(1 - drafted.confidence, question.is_right(drafted.text), question.is_right(expert.text)))
        on_step((i + 1) / len(questions))
    return outcomes


def with_references(questions: Sequence[Question]) -> Sequence[Question]:
    """The questions. Raises CatalogError for one whose answer cannot be judged."""
    for question in questions:
        if not question.reference:
            raise CatalogError(f"question {question.id} has no reference, and only answers that can be judged help here; add one")
    return questions
