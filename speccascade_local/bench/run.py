"""Ask every question in every way, and measure what each answer costs.

The arms take turns at each question, each time beginning with another one, so that a slow moment of the machine falls on all. Each answer
starts with cold caches and its own seed, the same for all arms. A resumed run therefore gives the same rows as one without a break. The
expert may judge tokens that it did not check afterwards, outside the measured time.
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

#: Tokens of the unmeasured answers: the first evaluations of a process are slow.
WARM_UP_TOKENS = 8
#: The letter of a token's origin.
ORIGINS = {"accepted": "a", "matched": "m", "corrected": "c", "bonus": "b", "expert": "e"}
#: Counts in each row.
COUNTS = (
    *("prompt_tokens", "tokens", "blocks", "drafted", "guessed", "tested", "accepted", "deferred", "rejected"),
    *("expert_calls", "drafter_calls", "audited"),
)


def prompts_of(runtime: Runtime, questions: Sequence[Question]) -> list[Prompt]:
    """Return the prompts of the questions for this pair. Raises PromptError for a question that cannot be asked."""
    prompts = []
    for question in questions:
        try:
            prompt: Prompt = runtime.chat_ids(question.conversation) if runtime.has_chat_template else question.plain
            runtime.stream(prompt)  # checks the prompt without evaluating it
        except PromptError as error:
            raise type(error)(f"question {question.id}: {error}") from error
        prompts.append(prompt)
    return prompts


def warm_up(runtime: Runtime, prompts: Sequence[Prompt], arms: Iterable[Arm], answers: int) -> dict[str, Any]:
    """Let automatic lengths learn from this many answers of each arm, and return :meth:`Runtime.learnt`."""
    for arm in arms:
        learning = arm.settings.block_size == "auto" and arm.method.asks_expert
        for prompt in prompts[: answers if learning else 1]:
            short = arm.settings if learning else replace(arm.settings, max_tokens=WARM_UP_TOKENS)
            runtime.reset()
            runtime.generate(prompt, replace(short, seed=None))
    return runtime.learnt()


def measuring_order(arms: Sequence[Arm], questions: int, repetitions: int) -> Iterator[tuple[int, int, Arm]]:
    """Yield repetition, index of the question, and arm, in the order of measurement."""
    turn = 0
    for repetition in range(repetitions):
        for index in range(questions):
            for i in range(len(arms)):
                yield repetition, index, arms[(turn + i) % len(arms)]
            turn += 1


def key(row: Row) -> tuple[str, str, float, int]:
    """Return what identifies a row in a run."""
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
    """Measure the answers that are not done yet.

    Args:
        runtime: The loaded pair.
        questions: The questions.
        prompts: Their prompts, as :func:`prompts_of` returns them.
        arms: The ways of answering.
        done: Rows of an earlier run.
        write: Called with each row.
        repetitions: How often each question is asked.
        seed: Of the first question.
        audit: Whether the expert judges all tokens afterwards.
        on_step: Called with the name of the next arm and the fraction that is done.
    """
    seen = {key(row) for row in done}
    total = repetitions * len(questions) * len(arms)
    for step, (repetition, index, arm) in enumerate(measuring_order(arms, len(questions), repetitions)):
        on_step(arm.name, step / total)
        if (questions[index].id, arm.name, arm.settings.temperature, repetition) not in seen:
            own_seed = seed + 1000 * repetition + index
            write(row_of(runtime, questions[index], prompts[index], arm, repetition=repetition, seed=own_seed, audit=audit))
    on_step(BASE, 1.0)


def row_of(runtime: Runtime, question: Question, prompt: Prompt, arm: Arm, *, repetition: int, seed: int, audit: bool = False) -> Row:
    """Return the row of one answer. Seconds: wall_s until the last text, first_s until the first, audit_s for the audit afterwards."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    runtime.reset()
    asked = replace(arm.settings, seed=seed, audit=audit and arm.settings.recording is not None)
    chunks: list[Chunk] = []
    wall_s, start = 0.0, time.perf_counter()
    for chunk in runtime.stream(prompt, asked):
        chunks.append(chunk)
        if chunk.tokens:  # the audit comes after the last of them
            wall_s = time.perf_counter() - start
    reply = Reply.of(chunks)
    stats, fidelity = reply.stats, reply.fidelity
    counts = stats.counts()
    return {
        "question": question.id,
        "family": question.family,
        **arm.as_dict(),
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
        **{name: counts[name] for name in COUNTS},
        "bonus_tokens": counts["bonus"],  # "bonus" is the setting
        "fidelity": fidelity.as_dict() if fidelity else None,
        "load_before": load,
    }
