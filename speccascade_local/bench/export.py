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

from .intervals import Estimate, surely, too_few
from .rows import Row
from .summary import ArmSummary, Summary


def verdict(arm: ArmSummary) -> str:
    """Beside the expert alone, in the words that its intervals support; empty for the expert itself and where nothing is sure."""
    speed = surely(arm.speedup, 1.0, "faster", "slower")
    quality = surely(arm.quality_gain, 0.0, "better", "worse") if arm.quality_gain else None
    return ", ".join(word for word in (speed, quality) if word)


def parting(arm: ArmSummary) -> str:
    """How many answers of strict at temperature 0 are not the expert's own text, and from which token on; a dash for other rules."""
    if arm.parted is None:
        return "–"
    return f"{100 * arm.parted:.0f} %" + ("" if arm.parted_at is None else f", at token {arm.parted_at:.0f}")


#: The whole table: each column's name, and what stands there for an arm.
COLUMNS: Mapping[str, Callable[[ArmSummary], str]] = {
    "arm": lambda arm: arm.arm,
    "surely": verdict,
    "n": lambda arm: str(arm.n),
    "× the expert, per answer": lambda arm: str(arm.speedup),
    "× per token": lambda arm: str(arm.speedup_per_token),
    "tok/s": lambda arm: f"{arm.tokens_per_s:.1f}",
    "s to the first text": lambda arm: f"{arm.first_s:.3f}",
    "tok/s after it": lambda arm: _number(arm.decode_tokens_per_s, 1),
    "right %": lambda arm: _percent(arm.quality),
    "less the expert's, points": lambda arm: points(arm.quality_gain),
    "s per right answer": lambda arm: _number(arm.solved_s, 2),
    "TV": lambda arm: _number(arm.mean_tv, 3),
    "log p per token": lambda arm: _number(arm.logprob, 2),
    "parts from the expert's text": parting,
    "expert calls per token": lambda arm: f"{arm.expert_calls_per_token:.2f}",
    "tokens per block": lambda arm: f"{arm.tokens_per_block:.2f}",
    "accepted %": lambda arm: _percent(arm.acceptance_rate),
    "deferred %": lambda arm: _percent(arm.deferral_rate),
    "tokens": lambda arm: f"{arm.tokens:.0f}",
}


def full_table(arms: Sequence[ArmSummary]) -> list[list[str]]:
    """A heading, then a line for each arm."""
    return [list(COLUMNS), *([told(arm) for told in COLUMNS.values()] for arm in arms)]


def family_table(summary: Summary, temperature: float) -> list[list[str]]:
    """How fast and how good each arm is in each family: a heading, then a line for each arm. Empty where there is one family only."""
    families = {name: part[temperature] for name, part in summary.families.items() if temperature in part}
    if not families:
        return []
    heading = ["arm", *(f"{name} ({arms[0].n})" for name, arms in families.items())]
    by_arm: dict[str, list[str]] = {arm.arm: [arm.arm] for arm in summary.by_temperature[temperature]}
    for arms in families.values():
        found = {arm.arm: arm for arm in arms}
        for name, line in by_arm.items():
            line.append(_in_short(found.get(name)))
    return [heading, *by_arm.values()]


def _in_short(arm: ArmSummary | None) -> str:
    if arm is None:
        return "–"
    gain = arm.quality_gain
    return f"{arm.speedup.value:.2f} ×" + (f", {100 * gain.value:+.0f}" if gain else "")


def notes(summary: Summary, setup: Mapping[str, Any]) -> list[str]:
    """What a reader must know to trust the table."""
    fewest = min((arm.speedup for arms in summary.by_temperature.values() for arm in arms), key=lambda estimate: estimate.n)
    told = [f"{name}: {_sentence(setup[name])}" for name in SHOWN if setup.get(name) is not None]
    told.append(
        "×: geometric mean over questions of the expert alone's time over this arm's, with its 95 % interval (bootstrap over questions)"
    )
    told.append("less the expert's: with a 95 % interval that has a width also where all answers tie, because so few need not show a loss")
    told.append("s per right answer: seconds of all answers, the wrong ones too, for each right one")
    told.append("TV: how far the distribution of each token is from the expert's own, 0 to 1; log p: of the text, by the expert, nats")
    told.append("– in place of TV and log p: the expert was not asked about every token")
    if any(arm.parted for arms in summary.by_temperature.values() for arm in arms):
        told.append(
            "parts from the expert's text: near-ties, which rounding settles otherwise in batches of another size; the median place"
        )
    told += filter(None, [too_few(fewest)])
    told.append("surely: what the whole of an interval supports; where it says nothing, the prompts do not tell")
    told += [f"{', '.join(group)}: the same tokens in the same blocks everywhere, so nothing tells them apart" for group in summary.alike]
    if summary.left_out:
        told.append(f"{summary.left_out} rows are left out, because not every arm has answered that question")
    return told


def markdown(summary: Summary, setup: Mapping[str, Any]) -> str:
    """A table for each temperature, and the notes."""
    parts = []
    for temperature, arms in summary.by_temperature.items():
        parts += [f"**Temperature {temperature:g}**", markdown_table(full_table(arms))]
        families = family_table(summary, temperature)
        parts += (
            ["By family: × the expert per answer, right answers less the expert's in points", markdown_table(families)] if families else []
        )
    parts.append("\n".join(f"- {note}" for note in notes(summary, setup)))
    return "\n\n".join(parts) + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first line is its heading."""
    heading, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *rest))


def as_csv(summary: Summary, setup: Mapping[str, Any]) -> str:
    """One line for each arm, temperature and family (none: all), every figure with its interval, the set-up in each."""
    flat = [{**arm, **_plain(setup)} for arm in _flat(summary)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def as_json(summary: Summary, setup: Mapping[str, Any]) -> str:
    """The same as CSV, with the set-up once, but for what only the rows need."""
    short = {name: value for name, value in setup.items() if name not in BULKY}
    whole = {"setup": short, "arms": _flat(summary), "alike": summary.alike, "left_out": summary.left_out}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _flat(summary: Summary) -> list[dict[str, Any]]:
    parts = {"": summary.by_temperature, **summary.families}
    return [{"family": name, **arm.as_dict()} for name, part in parts.items() for arms in part.values() for arm in arms]


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
SHOWN = (
    *("speccascade", "commit", "pair", "models", "machine", "llama_cpp_python", "threads"),
    *("n_ctx", "max_tokens", "repetitions", "first_seed"),
)
#: What only the rows need.
BULKY = {"asked", "learnt"}
FORMATS: Mapping[str, Callable[[Summary, Mapping[str, Any]], str]] = {"md": markdown, "csv": as_csv, "json": as_json}


def _plain(setup: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setup.items() if isinstance(value, (str, int, float)) or value is None}


def points(estimate: Estimate | None) -> str:
    """A difference of shares in percentage points, with its interval; a dash where there is none."""
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
