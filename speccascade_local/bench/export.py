"""Results in the forms that others read: Markdown, CSV, JSON, the rows themselves, and Spec-Bench's answers.

Knows nothing of terminals and pages.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from .intervals import FEW, Estimate
from .rows import Row
from .summary import ArmSummary, Summary

HEADER = (
    *("arm", "n", "tok/s", "× the expert, per answer", "× per token", "right %", "less the expert's, points", "s per right answer"),
    *("TV", "log p per token", "expert calls per token", "tokens per block", "accepted %", "deferred %", "tokens"),
)


def cells(arm: ArmSummary) -> list[str]:
    """One line of the table, as HEADER names its columns."""
    gain = arm.quality_gain
    return [
        arm.arm,
        str(arm.n),
        f"{arm.tokens_per_s:.1f}",
        str(arm.speedup),
        str(arm.speedup_per_token),
        _percent(arm.quality),
        "–" if gain is None else _points(gain),
        _number(arm.solved_s, 2),
        _number(arm.mean_tv, 3),
        _number(arm.logprob, 2),
        f"{arm.expert_calls_per_token:.2f}",
        f"{arm.tokens_per_block:.2f}",
        _percent(arm.acceptance_rate),
        _percent(arm.deferral_rate),
        f"{arm.tokens:.0f}",
    ]


def notes(summary: Summary, setup: Mapping[str, Any]) -> list[str]:
    """What a reader must know to trust the table."""
    fewest = min(arm.n for arms in summary.by_temperature.values() for arm in arms)
    told = [f"{name}: {_told(setup[name])}" for name in SHOWN if setup.get(name) is not None]
    told.append(
        "×: mean over questions of the expert alone's time over this arm's, with its 95 % interval (paired bootstrap over questions)"
    )
    told.append("s per right answer: seconds of all answers, the wrong ones too, for each right one")
    told.append("TV: how far the distribution of each token is from the expert's own, 0 to 1; log p: of the text, by the expert, nats")
    if fewest < FEW:
        told.append(f"only {fewest} questions: too few to tell much; {FEW} or more are better")
    if summary.left_out:
        told.append(f"{summary.left_out} rows are left out, because not every arm has answered that question")
    return told


def markdown(summary: Summary, setup: Mapping[str, Any]) -> str:
    """A table for each temperature, and the notes."""
    parts = []
    for temperature, arms in summary.by_temperature.items():
        lines = [list(HEADER), ["---"] * len(HEADER), *(cells(arm) for arm in arms)]
        parts.append(f"**Temperature {temperature:g}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append("\n".join(f"- {note}" for note in notes(summary, setup)))
    return "\n\n".join(parts) + "\n"


def as_csv(summary: Summary, setup: Mapping[str, Any]) -> str:
    """One line for each arm and temperature, every figure with its interval, the set-up in each."""
    flat = [{**arm.as_dict(), **_plain(setup)} for arms in summary.by_temperature.values() for arm in arms]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def as_json(summary: Summary, setup: Mapping[str, Any]) -> str:
    """The same as CSV, with the set-up once."""
    arms = [arm.as_dict() for arms in summary.by_temperature.values() for arm in arms]
    return json.dumps({"setup": dict(setup), "arms": arms, "left_out": summary.left_out}, indent=1, allow_nan=False, default=str) + "\n"


def spec_bench(rows: Sequence[Row], arm: str, temperature: float) -> str:
    """One arm's answers as Spec-Bench's scripts read them (Xia et al. 2401.07851): JSONL by question, repetitions as choices."""
    by_question: dict[str, list[Row]] = {}
    for row in rows:
        if (row["arm"], row["temperature"]) == (arm, temperature):
            by_question.setdefault(row["question"], []).append(row)
    return "".join(
        json.dumps(
            {
                "question_id": question,
                "category": answers[0]["family"],
                "model_id": arm,
                "choices": [
                    {
                        "index": i,
                        "turns": [row["text"]],
                        "decoding_steps": [row["expert_calls"]],
                        "new_tokens": [row["tokens"]],
                        "wall_time": [row["wall_s"]],
                        "accept_lengths": row["yields"],
                    }
                    for i, row in enumerate(answers)
                ],
            }
        )
        + "\n"
        for question, answers in by_question.items()
    )


def histogram(rows: Iterable[Row]) -> list[int]:
    """How many blocks gave 0, 1, 2, ... tokens."""
    counts: dict[int, int] = {}
    for row in rows:
        for tokens in row["yields"]:
            counts[tokens] = counts.get(tokens, 0) + 1
    return [counts.get(tokens, 0) for tokens in range(max(counts, default=0) + 1)]


def reach(counts: Sequence[int]) -> list[float]:
    """The share of blocks that gave at least 1, 2, ... tokens."""
    total = sum(counts)
    above = list(accumulate(reversed(counts[1:])))[::-1]
    return [count / total for count in above] if total else []


#: What is told of the set-up beside a table; the file has all of it.
SHOWN = ("speccascade", "pair", "models", "machine", "llama_cpp_python", "threads", "n_ctx", "max_tokens", "repetitions", "first_seed")
FORMATS: Mapping[str, Callable[[Summary, Mapping[str, Any]], str]] = {"md": markdown, "csv": as_csv, "json": as_json}


def _plain(setup: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setup.items() if isinstance(value, (str, int, float)) or value is None}


def _points(estimate: Estimate) -> str:
    value, low, high = (100 * each for each in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _told(value: Any) -> str:
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)
