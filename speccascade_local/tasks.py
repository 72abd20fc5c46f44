"""Questions with known answers: read from a file, put to both models of a pair, judged.

Knows nothing of what the verdicts are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .calibration import Outcome
from .checked_yaml import problem
from .checks import text_of
from .errors import CatalogError, PromptError
from .routing import Margin
from .runtime import Prompt, Runtime


class Task(BaseModel):
    """One line of a JSONL file: a question, the texts that count as right, and what kind it is (free to choose)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str = Field(min_length=1)
    answers: list[str] = Field(min_length=1)
    family: str = ""

    def is_right(self, text: str) -> bool:
        """Exact match of one of the answers, but for white space around it."""
        return text.strip() in {answer.strip() for answer in self.answers}


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a JSONL file; empty lines are skipped. Raises CatalogError with the line."""
    tasks = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):  # not splitlines: JSON texts may hold other line separators
        if line.strip():
            try:
                tasks.append(Task.model_validate_json(line))
            except ValidationError as error:
                wrong = problem(error, whole="the whole line")
                raise CatalogError(f'{path}, line {number}: {wrong}; a line is {{"prompt": "...", "answers": ["...", ...]}}') from error
    return tasks


def judged(
    runtime: Runtime, tasks: Sequence[Task], *, max_tokens: int, on_step: Callable[[float], None] = lambda fraction: None
) -> list[Outcome]:
    """Put every task to both models, greedily, through the chat template where there is one.

    A question that cannot be asked, such as one that is too long, is refused before any is: PromptError with its place in the list.
    """
    prompts = [_prompt(runtime, task) for task in tasks]
    for number, prompt in enumerate(prompts, start=1):
        try:
            runtime.stream(prompt, rule=Margin(0.0), max_tokens=max_tokens)  # checks what is asked and evaluates nothing
        except PromptError as error:
            raise type(error)(f"question {number} of {len(prompts)}: {error}") from error
    outcomes = []
    for i, (task, prompt) in enumerate(zip(tasks, prompts)):
        drafted = runtime.generate(prompt, rule=Margin(0.0), max_tokens=max_tokens, fidelity=False)
        expert = runtime.generate(prompt, rule="strict", block_size=0, max_tokens=max_tokens, fidelity=False)
        assert drafted.confidence is not None
        outcomes.append(Outcome(1 - drafted.confidence, task.is_right(drafted.text), task.is_right(expert.text)))
        on_step((i + 1) / len(tasks))
    return outcomes


def _prompt(runtime: Runtime, task: Task) -> Prompt:
    return runtime.chat_ids([{"role": "user", "content": task.prompt}]) if runtime.has_chat_template else task.prompt
