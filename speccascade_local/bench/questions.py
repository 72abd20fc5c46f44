"""The questions: the built-in families, the user's JSONL, or Spec-Bench's file."""

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
#: Questions of each built-in family by default.
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
    """A question, and how its answer is graded.

    Args:
        prompt: The question; either this or messages.
        messages: A conversation that ends with the question.
        reference: Texts (or patterns) that count as right; without one an answer cannot be graded.
        metric: How the reference is compared with an answer; None for the same text.
        family: The kind of question, a free text.
        id: Unique in a set of questions.
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
    def _normalize(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = _from_spec_bench(data)
            if isinstance(data.get("reference"), str):
                data["reference"] = [data["reference"]]
            if isinstance(data.get("id"), int):
                data["id"] = str(data["id"])
        return data

    @model_validator(mode="after")
    def _check(self) -> Question:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a question has either a prompt or messages")
        if self.metric and not self.reference:
            raise ValueError(f"metric {self.metric} needs a reference")
        for pattern in self.reference if self.metric == "regex" else ():
            if len(pattern) > LONGEST_PATTERN:
                raise ValueError(
                    f"reference {pattern!r:.40} is a pattern of {len(pattern)} characters; at most {LONGEST_PATTERN} are allowed"
                )
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:  # too deep, or too large a number of repetitions
                raise ValueError(f"reference {pattern!r:.40} is not a regular expression ({error})") from None
        return self

    @property
    def conversation(self) -> list[Message]:
        """The messages for the chat template."""
        if self.messages is not None:
            return [{"role": turn.role, "content": turn.content} for turn in self.messages]
        return [{"role": "user", "content": self.prompt or ""}]

    @property
    def plain(self) -> str:
        """The texts of all messages, for a pair without a chat template."""
        return "\n".join(message["content"] for message in self.conversation)

    def is_right(self, text: str) -> bool:
        """Return whether an answer has the best grade; without a reference none has."""
        return self.quality(text) == 1.0

    def quality(self, text: str) -> float | None:
        """Return the grade of an answer, 0 to 1; None without a reference."""
        return METRICS[self.metric or "exact"](text, self.reference) if self.reference else None


def built_in_questions() -> list[Question]:
    """Return the held-out questions of the bundled pair's five families."""
    return read_questions(HELD_OUT)


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a JSONL file; of Spec-Bench's the first turns. Raises CatalogError with the number of the wrong line."""
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
            raise CatalogError(f"{path}, line {number}: the id {question.id!r:.40} is used before; change or omit one")
        questions[question.id] = question
    if not questions:
        raise CatalogError(f"{path}: no questions; write one JSON object in each line")
    return list(questions.values())


def choose_questions(path: Path | None, per_family: int | None) -> list[Question]:
    """Return the user's questions, or for None the built-in ones, with the families in turns.

    Without a maximum per family these are all of the user's, or PER_FAMILY of the built-in ones.
    """
    return in_turns(built_in_questions(), per_family or PER_FAMILY) if path is None else in_turns(read_questions(path), per_family)


def in_turns(questions: Sequence[Question], per_family: int | None = None) -> list[Question]:
    """Return the questions with one of each family in turn, so that a run that stops early has asked some of all."""
    families: dict[str, list[Question]] = {}
    for question in questions:
        families.setdefault(question.family, []).append(question)
    groups = [group[:per_family] for group in families.values()]
    return [group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group)]


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # not splitlines: JSON texts may hold other line separators
        if len(line) > LONGEST_LINE:
            raise CatalogError(f"{path}, line {number}: {len(line)} characters; at most {LONGEST_LINE} are allowed")
        if line.strip():
            try:
                yield number, from_json(line)  # also rejects lone surrogates, which UTF-8 cannot hold
            except ValueError as error:
                raise CatalogError(f"{path}, line {number}: not JSON ({error}); write one JSON object in each line") from error


def _from_spec_bench(data: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with Spec-Bench's fields (Xia et al. 2401.07851) under our names."""
    if "turns" in data and isinstance(data["turns"], list) and data["turns"]:
        return {"prompt": data["turns"][0], "family": str(data.get("category", "")), "id": str(data.get("question_id", ""))}
    return dict(data)
