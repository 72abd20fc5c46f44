"""Results as Markdown, CSV, JSON, and in Spec-Bench's format."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from .intervals import Estimate, significant, too_few
from .rows import Row
from .summary import ArmSummary, Summary


def verdict(arm: ArmSummary) -> str:
    """Return how the arm compares with the expert alone, in the words that the intervals support; may be empty."""
    speed = significant(arm.speedup, 1.0, "faster", "slower")
    quality = significant(arm.quality_gain, 0.0, "better", "worse") if arm.quality_gain else None
    return ", ".join(word for word in (speed, quality) if word)


def difference(arm: ArmSummary) -> str:
    """Return the share of strict's answers at temperature 0 that differ from the expert's text, and from which token on; else a dash."""
    if arm.parted is None:
        return "–"
    return f"{100 * arm.parted:.0f} %" + ("" if arm.parted_at is None else f", at token {arm.parted_at:.0f}")


#: The full table: the heading of each column, and its text for an arm.
COLUMNS: Mapping[str, Callable[[ArmSummary], str]] = {
    "arm": lambda arm: arm.arm,
    "verdict": verdict,
    "n": lambda arm: str(arm.n),
    "speed-up per answer": lambda arm: str(arm.speedup),
    "speed-up per token": lambda arm: str(arm.speedup_per_token),
    "tokens/s": lambda arm: f"{arm.tokens_per_s:.1f}",
    "s to first text": lambda arm: f"{arm.first_s:.3f}",
    "tokens/s after it": lambda arm: _number(arm.decode_tokens_per_s, 1),
    "right %": lambda arm: _percent(arm.quality),
    "right vs. expert, points": lambda arm: points(arm.quality_gain),
    "s per right answer": lambda arm: _number(arm.solved_s, 2),
    "TV": lambda arm: _number(arm.mean_tv, 3),
    "log p per token": lambda arm: _number(arm.logprob, 2),
    "differs from the expert's text": difference,
    "expert calls per token": lambda arm: f"{arm.expert_calls_per_token:.2f}",
    "tokens per block": lambda arm: f"{arm.tokens_per_block:.2f}",
    "accepted %": lambda arm: _percent(arm.acceptance_rate),
    "deferred %": lambda arm: _percent(arm.deferral_rate),
    "tokens": lambda arm: f"{arm.tokens:.0f}",
}


def full_table(arms: Sequence[ArmSummary]) -> list[list[str]]:
    """Return the headings, then a line for each arm."""
    return [list(COLUMNS), *([text(arm) for text in COLUMNS.values()] for arm in arms)]


def family_table(summary: Summary, temperature: float) -> list[list[str]]:
    """Return speed and quality of each arm by family: the headings, then a line for each arm; empty for one family."""
    families = {name: part[temperature] for name, part in summary.families.items() if temperature in part}
    if not families:
        return []
    heading = ["arm", *(f"{name} ({arms[0].n})" for name, arms in families.items())]
    by_arm: dict[str, list[str]] = {arm.arm: [arm.arm] for arm in summary.by_temperature[temperature]}
    for arms in families.values():
        here = {arm.arm: arm for arm in arms}
        for name, line in by_arm.items():
            line.append(_speed_and_quality(here.get(name)))
    return [heading, *by_arm.values()]


def _speed_and_quality(arm: ArmSummary | None) -> str:
    if arm is None:
        return "–"
    gain = arm.quality_gain
    return f"{arm.speedup.value:.2f} ×" + (f", {100 * gain.value:+.0f}" if gain else "")


def notes(summary: Summary, setup: Mapping[str, Any]) -> list[str]:
    """Return the setup, and what the figures in the table mean."""
    arms = [arm for arms in summary.by_temperature.values() for arm in arms]
    lines = [f"{name}: {_sentence(setup[name])}" for name in SETUP_IN_NOTES if setup.get(name) is not None]
    lines += [
        "speed-up: geometric mean over questions of the expert's time divided by this arm's, with its 95 % interval (bootstrap)",
        "right vs. expert: with a 95 % interval, which has a width even if all answers tie, because a few ties prove no equality",
        "s per right answer: seconds of all answers, right and wrong, divided by the number of right ones",
        "TV: distance of each token's distribution from the expert's own, 0 to 1; log p: of the text, by the expert, in nats",
        "– for TV and log p: the expert was not asked about every token",
        "verdict: what the whole 95 % interval supports; empty if these questions do not decide it",
    ]
    if any(arm.parted for arm in arms):
        lines.append("differs from the expert's text: rounding decides near-ties, and depends on the batch size; the median position")
    lines += filter(None, [too_few(min((arm.speedup for arm in arms), key=lambda estimate: estimate.n))])
    lines += [f"{', '.join(group)}: identical, the same tokens in the same blocks everywhere" for group in summary.alike]
    if summary.left_out:
        lines.append(f"{summary.left_out} rows are left out, because not every arm has answered their question")
    return lines


def markdown(summary: Summary, setup: Mapping[str, Any]) -> str:
    """Return a table for each temperature, and the notes."""
    parts = []
    for temperature, arms in summary.by_temperature.items():
        parts += [f"**Temperature {temperature:g}**", markdown_table(full_table(arms))]
        families = family_table(summary, temperature)
        parts += ["By family: speed-up per answer, right answers vs. the expert in points", markdown_table(families)] if families else []
    parts.append("\n".join(f"- {note}" for note in notes(summary, setup)))
    return "\n\n".join(parts) + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the first line holds the headings."""
    heading, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *rest))


def as_csv(summary: Summary, setup: Mapping[str, Any]) -> str:
    """Return a line for each arm, temperature and family (empty: all), with all figures, their intervals and the setup."""
    plain = {name: value for name, value in setup.items() if isinstance(value, (str, int, float)) or value is None}
    flat = [{**arm, **plain} for arm in _flat(summary)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def as_json(summary: Summary, setup: Mapping[str, Any]) -> str:
    """Return the same as CSV, with the setup once, except for what only a resumed run needs."""
    short = {name: value for name, value in setup.items() if name not in SETUP_OF_ROWS}
    whole = {"setup": short, "arms": _flat(summary), "alike": summary.alike, "left_out": summary.left_out}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _flat(summary: Summary) -> list[dict[str, Any]]:
    parts = {"": summary.by_temperature, **summary.families}
    return [{"family": name, **arm.as_dict()} for name, part in parts.items() for arms in part.values() for arm in arms]


def spec_bench(rows: Sequence[Row], arm: str, temperature: float) -> str:
    """Return one arm's answers as Spec-Bench's scripts read them (Xia et al. 2401.07851): JSONL by question, repetitions as choices."""
    by_question: dict[str, list[Row]] = {}
    for row in rows:
        if (row["arm"], row["temperature"]) == (arm, temperature):
            by_question.setdefault(row["question"], []).append(row)
    lines = []
    for question, answers in by_question.items():
        choices = [
            {
                "index": i,
                "turns": [row["text"]],
                "decoding_steps": [row["expert_calls"]],
                "new_tokens": [row["tokens"]],
                "wall_time": [row["wall_s"]],
                "accept_lengths": row["yields"],
            }
            for i, row in enumerate(answers)
        ]
        lines.append({"question_id": question, "category": answers[0]["family"], "model_id": arm, "choices": choices})
    return "".join(json.dumps(line) + "\n" for line in lines)


def histogram(rows: Iterable[Row]) -> list[int]:
    """Return the number of blocks with 0, 1, 2, ... tokens."""
    counts = Counter(tokens for row in rows for tokens in row["yields"])
    return [counts[tokens] for tokens in range(max(counts, default=0) + 1)]


def reach(counts: Sequence[int]) -> list[float]:
    """Return the share of blocks with at least 1, 2, ... tokens."""
    total = sum(counts)
    above = list(accumulate(reversed(counts[1:])))[::-1]
    return [count / total for count in above] if total else []


#: The part of the setup that stands in the notes.
SETUP_IN_NOTES = (
    *("speccascade", "commit", "pair", "models", "machine", "llama_cpp_python", "threads"),
    *("n_ctx", "max_tokens", "repetitions", "first_seed"),
)
#: The part of the setup that only a resumed run needs.
SETUP_OF_ROWS = {"asked", "learnt"}
FORMATS: Mapping[str, Callable[[Summary, Mapping[str, Any]], str]] = {"md": markdown, "csv": as_csv, "json": as_json}


def points(estimate: Estimate | None) -> str:
    """Return a difference of shares in percentage points, with its interval; a dash for None."""
    if estimate is None:
        return "–"
    value, low, high = (100 * each for each in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f}" + ("" if estimate.exact else f" [{low:+.1f}, {high:+.1f}]")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _sentence(value: Any) -> str:
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)
