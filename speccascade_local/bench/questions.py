"""What is asked: the built-in families, the user's JSONL, or Spec-Bench's file as it is. Knows nothing of who answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from ..common.errors import CatalogError
from ..common.files import PACKAGE, read_text
from ..common.yaml_files import problem
from ..tokens.chat_template import Message
from .graders import METRICS

HELD_OUT = PACKAGE / "demo" / "heldout.jsonl"
#: So many of each built-in family are asked where nothing is said.
PER_FAMILY = 20
#: Characters of a line, messages or references of a question, characters of a pattern.
LONGEST_LINE, MOST_PARTS, LONGEST_PATTERN = 2 << 20, 1000, 1000
Text = Annotated[str, Field(min_length=1)]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Text
    content: str


class Question(BaseModel):
    """A question, and what is known about its answer.

    prompt or messages: one of them. reference: texts (or patterns) that count as right, read as ``metric`` says; without one there is no
    telling whether an answer is right. family: what kind of question it is, free to choose. id: unique within a set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: Text | None = None
    messages: Annotated[tuple[Turn, ...], Field(min_length=1, max_length=MOST_PARTS, strict=False, fail_fast=True)] | None = None
    reference: tuple[str, ...] = Field(default=(), max_length=MOST_PARTS, strict=False, fail_fast=True)
    metric: Literal["exact", "contains", "numeric", "regex", "rouge_l"] | None = None
    family: str = ""
    id: str = ""

    @model_validator(mode="before")
    @classmethod
    def _one_text_is_a_list_of_one(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = _from_spec_bench(data)
            if isinstance(data.get("reference"), str):
                data["reference"] = [data["reference"]]
            if isinstance(data.get("id"), int):
                data["id"] = str(data["id"])
        return data

    @model_validator(mode="after")
    def _makes_sense(self) -> Question:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a question has a prompt or messages, and not both")
        if self.metric and not self.reference:
            raise ValueError(f"metric {self.metric} needs a reference")
        for pattern in self.reference if self.metric == "regex" else ():
            if len(pattern) > LONGEST_PATTERN:
                raise ValueError(f"reference {pattern!r:.40} is a pattern of {len(pattern)} characters; at most {LONGEST_PATTERN} are read")
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:  # too deep, or a number of repetitions that is too large
                raise ValueError(f"reference {pattern!r:.40} is no regular expression ({error})") from None
        return self

    @property
    def conversation(self) -> list[Message]:
        """As the chat template takes it."""
        if self.messages is not None:
            return [{"role": turn.role, "content": turn.content} for turn in self.messages]
        return [{"role": "user", "content": self.prompt or ""}]

    @property
    def plain(self) -> str:
        """For a pair without a chat template: what is said, one message after the other."""
        return "\n".join(message["content"] for message in self.conversation)

    def is_right(self, text: str) -> bool:
        """Whether an answer is as good as can be. A question without a reference has no right answer."""
        return self.quality(text) == 1.0

    def quality(self, text: str) -> float | None:
        """How good an answer is, 0 to 1; None where there is no reference. Without a metric it must be a reference, word for word."""
        return METRICS[self.metric or "exact"](text, self.reference) if self.reference else None


def built_in_questions() -> list[Question]:
    """The held-out questions of the bundled pair's five families."""
    return read_questions(HELD_OUT)


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file; empty lines are skipped. Of Spec-Bench's questions the first turn is asked.

    Raises CatalogError with the line.
    """
    questions: dict[str, Question] = {}
    for number, data in _lines(path):
        try:
            question = Question.model_validate(data)
        except ValidationError as error:
            raise CatalogError(
                f"{path}, line {number}: {problem(error, whole='the whole line')}; a line is "
                '{"prompt": "...", "reference": "...", "metric": "' + "|".join(METRICS) + '"} or has "messages" in place of "prompt"'
            ) from error
        question = question.model_copy(update={"id": question.id or f"{question.family or 'question'}-{number}"})
        if question.id in questions:
            raise CatalogError(f"{path}, line {number}: the id {question.id!r:.40} stands here for the second time; leave one, or none")
        questions[question.id] = question
    if not questions:
        raise CatalogError(f"{path}: no questions; give one JSON object in each line")
    return list(questions.values())


def choose_questions(path: Path | None, per_family: int | None) -> list[Question]:
    """All of the user's questions, or PER_FAMILY of each built-in family; ``per_family`` if that is given. Families take turns."""
    usual = PER_FAMILY if path is None else None
    return in_turns(built_in_questions() if path is None else read_questions(path), per_family or usual)


def in_turns(questions: Sequence[Question], per_family: int | None = None) -> list[Question]:
    """One of each family after the other, so that a run which is stopped early has asked some of all; at most so many of each."""
    families: dict[str, list[Question]] = {}
    for question in questions:
        families.setdefault(question.family, []).append(question)
    groups = [group[:per_family] for group in families.values()]
    return [group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group)]


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # not splitlines: JSON texts may hold other line separators
        if len(line) > LONGEST_LINE:
            raise CatalogError(f"{path}, line {number}: {len(line)} characters; at most {LONGEST_LINE} are read of a question")
        if line.strip():
            try:
                yield number, from_json(line)  # refuses what no UTF-8 can hold, too
            except ValueError as error:
                raise CatalogError(f"{path}, line {number}: not JSON ({error}); give one JSON object in each line") from error


def _from_spec_bench(data: dict[str, Any]) -> dict[str, Any]:
    """A copy, with Spec-Bench's fields as ours (Xia et al. 2401.07851)."""
    if "turns" in data and isinstance(data["turns"], list) and data["turns"]:
        return {"prompt": data["turns"][0], "family": str(data.get("category", "")), "id": str(data.get("question_id", ""))}
    return dict(data)
