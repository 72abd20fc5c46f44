"""Asks every question in every way, and writes down what it cost.

The arms take turns question by question, and the one that begins is another one each time, so that a slow moment of the machine falls on
all. Each answer starts with cold caches and a seed of its own, the same for all arms; so a run that was broken off and gone on with gives
the rows of one that was not. If asked to, the expert judges afterwards what it did not see, outside the measured time. Knows nothing of
files and figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..common.errors import PromptError
from ..runtime.reply import Chunk, Reply
from ..runtime.runtime import Runtime
from ..tokens.prompt import Prompt
from .grid import BASE, Arm
from .questions import Question
from .rows import Row

#: Tokens of the answers that nobody counts: the first evaluations of a process are slow.
WARM_UP_TOKENS = 8


def prompts_of(runtime: Runtime, questions: Sequence[Question]) -> list[Prompt]:
    """The questions as this pair reads them. Raises PromptError for one that cannot be asked, before any is."""
    prompts = []
    for question in questions:
        try:
            prompt: Prompt = runtime.chat_ids(question.conversation) if runtime.has_chat_template else question.plain
            runtime.stream(prompt)  # checks the prompt and evaluates nothing
        except PromptError as error:
            raise type(error)(f"question {question.id}: {error}") from error
        prompts.append(prompt)
    return prompts


def warm_up(runtime: Runtime, prompts: Sequence[Prompt], arms: Iterable[Arm], answers: int) -> dict[str, Any]:
    """Let automatic lengths learn from so many answers of each arm; what they learnt, as :meth:`Runtime.learnt` gives it."""
    for arm in arms:
        learning = arm.settings.block_size == "auto" and arm.method.asks_expert
        for prompt in prompts[: answers if learning else 1]:
            short = arm.settings if learning else replace(arm.settings, max_tokens=WARM_UP_TOKENS)
            runtime.reset()
            runtime.generate(prompt, replace(short, seed=None))
    return runtime.learnt()


def measuring_order(arms: Sequence[Arm], questions: int, repetitions: int) -> Iterator[tuple[int, int, Arm]]:
    """Repetition, question and arm, in the order in which they are measured."""
    turn = 0
    for repetition in range(repetitions):
        for place in range(questions):
            for i in range(len(arms)):
                yield repetition, place, arms[(turn + i) % len(arms)]
            turn += 1


def key(row: Row) -> tuple[str, str, float, int]:
    """What a row is of."""
    return row["question"], row["arm"], row["temperature"], row["repetition"]


def measure(
    runtime: Runtime,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    arms: Sequence[Arm],
    *,
    done: Iterable[Row],
    write: Callable[[Row], None],
    repetitions: int,
    seed: int = 0,
    audit: bool = False,
    on_step: Callable[[str, float], None] = lambda arm, fraction: None,
) -> None:
    """Measure what is not ``done``. audit: complete every account afterwards. on_step: told the arm that is next and the fraction done."""
    seen = {key(row) for row in done}
    total = repetitions * len(questions) * len(arms)
    for step, (repetition, place, arm) in enumerate(measuring_order(arms, len(questions), repetitions)):
        on_step(arm.name, step / total)
        if (questions[place].id, arm.name, arm.settings.temperature, repetition) not in seen:
            at = seed + 1000 * repetition + place
            write(row_of(runtime, questions[place], prompts[place], arm, repetition=repetition, seed=at, audit=audit))
    on_step(BASE, 1.0)


def row_of(runtime: Runtime, question: Question, prompt: Prompt, arm: Arm, *, repetition: int, seed: int, audit: bool = False) -> Row:
    """One answer and its price. Times in seconds: wall_s of all text, first_s to the first, audit_s for the account behind it."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    runtime.reset()
    asked = replace(arm.settings, seed=seed, audit=audit and arm.settings.recording is not None)
    chunks: list[Chunk] = []
    wall_s, begun = 0.0, time.perf_counter()
    for chunk in runtime.stream(prompt, asked):
        chunks.append(chunk)
        if chunk.tokens:  # the account comes behind the last of them
            wall_s = time.perf_counter() - begun
    reply = Reply.of(chunks)
    stats, fidelity = reply.stats, reply.fidelity
    counts = stats.counts()
    return {
        "question": question.id,
        "family": question.family,
        **arm.described(),
        "repetition": repetition,
        "seed": seed,
        "text": reply.text,
        "token_ids": reply.token_ids,
        "lengths": [len(token.text) for token in reply.tokens],
        "origins": "".join(ORIGINS[token.origin] for token in reply.tokens),
        "finish_reason": reply.finish_reason,
        "quality": question.quality(reply.text),
        "wall_s": wall_s,
        "first_s": stats.ttft_s,
        "draft_s": stats.draft_s,
        "expert_s": stats.expert_s,
        "verify_s": stats.verify_s,
        "audit_s": stats.audit_s,
        "yields": [len(chunk.tokens) for chunk in chunks if chunk.tokens],
        **{name: counts[name] for name in COUNTED},
        "bonus_tokens": counts["bonus"],  # "bonus" is the setting
        "fidelity": fidelity.as_dict() if fidelity else None,
        "load_before": load,
    }


#: Who wrote a token, as a letter.
ORIGINS = {"accepted": "a", "matched": "m", "corrected": "c", "bonus": "b", "expert": "e"}
#: Counters that each row has.
COUNTED = (
    *("prompt_tokens", "tokens", "blocks", "drafted", "guessed", "tested", "accepted", "deferred", "rejected"),
    *("expert_calls", "drafter_calls", "audited"),
)
