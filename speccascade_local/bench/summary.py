"""Summarize rows: speed, quality and fidelity of each arm compared with the expert alone, with intervals over prompts.

Repetitions of a question are one observation, their median.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from statistics import mean, median
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from ..common.errors import CatalogError
from ..common.yaml_files import problem
from ..rules.position_rules import Strict
from ..tokens.prompt import shared_prefix_length
from .grid import BASE
from .intervals import Estimate, quality_change, speed_ratio
from .rows import Row


@dataclass(frozen=True)
class ArmSummary:
    """One arm at one temperature, over the questions that every arm has answered."""

    arm: str
    about: Mapping[str, Any]  # its rule and settings
    n: int  # number of questions
    tokens_per_s: float  # all tokens over all seconds
    first_s: float  # mean seconds to the first text, including prefill
    decode_tokens_per_s: float | None  # tokens per second after the first text
    tokens: float  # mean tokens of an answer
    speedup: Estimate  # geometric mean over questions of the expert's seconds per answer divided by this arm's
    speedup_per_token: Estimate  # the same for seconds per token, which the length of the text does not change
    quality: float | None  # mean grade; None without references
    quality_gain: Estimate | None  # the grade minus the expert's
    solved_s: float | None  # seconds of all answers divided by the number of right ones; None if none is right
    mean_tv: float | None  # distance from the expert per token; None unless the expert was asked about every token
    logprob: float | None  # the expert's log-probability per token, in nats; None like mean_tv
    parted: float | None  # of strict at temperature 0, the share of answers that differ from the expert's; else None
    parted_at: float | None  # the median position, from 1, of the first different token; None without one
    expert_calls_per_token: float  # evaluations of the expert per token
    tokens_per_block: float
    acceptance_rate: float | None  # share of drafted tokens that are accepted; None without drafts
    deferral_rate: float | None  # share of tested positions that are deferred; None without tests

    def as_dict(self) -> dict[str, Any]:
        """Return all figures on one level, for JSON and CSV; an end of an interval that is infinite is None."""
        figures = {name: value for name, value in asdict(self).items() if name not in ("arm", "about")}
        flat: dict[str, Any] = {"arm": self.arm, **self.about}
        for name, value in figures.items():
            if isinstance(value, dict):
                flat[name] = value["value"]
                flat |= {f"{name}_{part}": value[part] if isfinite(value[part]) else None for part in ("low", "high", "median", "n")}
            else:
                flat[name] = value
        return flat


@dataclass(frozen=True)
class Summary:
    """All arms of a run."""

    by_temperature: dict[float, list[ArmSummary]]  # the arms at each temperature
    left_out: int  # number of rows whose question not every arm has answered
    alike: list[tuple[str, ...]]  # groups of arms with the same tokens in the same blocks everywhere
    families: dict[str, dict[float, list[ArmSummary]]]  # by family of questions, the arms at each temperature; empty for one family


def summarize(rows: Iterable[Row]) -> Summary:
    """Return the summary of all rows. Raises CatalogError if nothing can be compared."""
    rows = list(rows)
    by_temperature, used = _by_temperature(rows)
    if not by_temperature:
        raise CatalogError("no question is answered by every arm yet; continue with --resume")
    names = dict.fromkeys(row["family"] for row in rows)
    parts = {name: _by_temperature([row for row in rows if row["family"] == name])[0] for name in names} if len(names) > 1 else {}
    return Summary(by_temperature, len(rows) - used, _alike(rows), {name: part for name, part in parts.items() if part})


class _Fidelity(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    mean_tv: float | None
    expert_logprob: float | None
    judged: NonNegativeInt


class _ValidRow(BaseModel):
    """The fields that a row must have."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    question: str
    family: str
    arm: str
    text: str
    origins: str
    lengths: Annotated[list[int], Field(fail_fast=True)]
    seed: int
    temperature: NonNegativeFloat
    repetition: int
    token_ids: Annotated[list[int], Field(fail_fast=True)]
    yields: Annotated[list[int], Field(min_length=1, fail_fast=True)]
    quality: Annotated[float, Field(ge=0, le=1)] | None
    wall_s: PositiveFloat
    first_s: NonNegativeFloat
    tokens: PositiveInt
    blocks: NonNegativeInt
    drafted: NonNegativeInt
    tested: NonNegativeInt
    accepted: NonNegativeInt
    deferred: NonNegativeInt
    expert_calls: NonNegativeInt
    fidelity: _Fidelity | None


def require_measured(rows: Iterable[Row]) -> None:
    """Raise CatalogError for rows that no run has written."""
    for number, row in enumerate(rows, start=1):
        try:
            _ValidRow.model_validate(row)
        except ValidationError as error:
            raise CatalogError(f"row {number} is not valid: {problem(error, whole='the whole row')}; remove its line") from error


def _by_temperature(rows: Sequence[Row]) -> tuple[dict[float, list[ArmSummary]], int]:
    """Return the arms at each temperature, and the number of rows that they summarize."""
    groups: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["temperature"]].append(row)
    summaries, used = {}, 0
    for temperature, here in sorted(groups.items()):
        arms = list(dict.fromkeys(row["arm"] for row in here))
        if BASE not in arms:
            raise CatalogError(f"no rows of {BASE!r} at temperature {temperature:g}, which all others are compared with; measure it too")
        answered: dict[str, dict[str, list[Row]]] = {arm: defaultdict(list) for arm in arms}
        for row in here:
            answered[row["arm"]][row["question"]].append(row)
        common = [question for question in answered[BASE] if all(question in answered[arm] for arm in arms)]
        if not common:
            continue
        complete = {arm: [answered[arm][question] for question in common] for arm in arms}
        used += sum(len(each) for questions in complete.values() for each in questions)
        summaries[temperature] = [_summarize_arm(arm, complete[arm], complete[BASE]) for arm in arms]
    return summaries, used


def _alike(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the groups of arms that nothing in the rows distinguishes, except for time."""
    answers: dict[tuple[float, str], list[Any]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["question"], row["repetition"])):
        answers[row["temperature"], row["arm"]].append(
            [row[name] for name in ("question", "repetition", "token_ids", "yields", "deferred")]
        )
    groups: dict[tuple[float, str], list[str]] = defaultdict(list)
    for (temperature, arm), each in answers.items():
        groups[temperature, str(each)].append(f"{arm} (T {temperature:g})")
    return [tuple(group) for group in groups.values() if len(group) > 1]


STRICT = str(Strict())
ABOUT = ("rule", "alpha", "temperature", "block_size", "top_k", "top_p", "min_p", "verification", "bonus")


def _summarize_arm(arm: str, mine: Sequence[list[Row]], base: Sequence[list[Row]]) -> ArmSummary:
    """Return the summary of an arm from its rows and the base's, both by question."""
    every, n = [row for rows in mine for row in rows], len(mine)
    wall, base_wall = _medians(mine, _wall), _medians(base, _wall)
    per_token, base_per_token = _medians(mine, _per_token), _medians(base, _per_token)
    quality, base_quality = _qualities(mine), _qualities(base)
    graded = [(a, b) for a, b in zip(quality, base_quality) if a is not None and b is not None]
    solved = sum(row["quality"] == 1 for row in every)
    is_exact = arm != BASE and every[0].get("rule") == STRICT and every[0]["temperature"] == 0
    parted, parted_at = _difference(mine, base) if is_exact else (None, None)
    return ArmSummary(
        arm=arm,
        about={name: every[0].get(name) for name in ABOUT},
        n=n,
        tokens_per_s=_total(every, "tokens") / _total(every, "wall_s"),
        first_s=_total(every, "first_s") / len(every),
        decode_tokens_per_s=_decode_rate(every),
        tokens=_total(every, "tokens") / len(every),
        speedup=_exactly(1.0, n) if arm == BASE else speed_ratio(base_wall, wall),
        speedup_per_token=_exactly(1.0, n) if arm == BASE else speed_ratio(base_per_token, per_token),
        quality=mean(a for a, _ in graded) if graded else None,
        quality_gain=_gain(arm, graded),
        solved_s=_total(every, "wall_s") / solved if solved else None,
        mean_tv=_over_all_tokens(every, lambda fidelity: fidelity["mean_tv"] and fidelity["mean_tv"] * fidelity["judged"]),
        logprob=_over_all_tokens(every, lambda fidelity: fidelity["expert_logprob"]),
        parted=parted,
        parted_at=parted_at,
        expert_calls_per_token=_total(every, "expert_calls") / _total(every, "tokens"),
        tokens_per_block=_total(every, "tokens") / _total(every, "blocks"),
        acceptance_rate=_share(every, "accepted", "drafted"),
        deferral_rate=_share(every, "deferred", "tested"),
    )


def _exactly(value: float, n: int) -> Estimate:
    """Return a value that holds by definition, as for the expert alone compared with itself."""
    return Estimate(value, value, value, value, n)


def _gain(arm: str, graded: Sequence[tuple[float, float]]) -> Estimate | None:
    if not graded:
        return None
    return _exactly(0.0, len(graded)) if arm == BASE else quality_change([a for a, _ in graded], [b for _, b in graded])


def _wall(row: Row) -> float:
    return float(row["wall_s"])


def _per_token(row: Row) -> float:
    return float(row["wall_s"]) / float(row["tokens"])


def _decode_rate(rows: Sequence[Row]) -> float | None:
    seconds = _total(rows, "wall_s") - _total(rows, "first_s")
    tokens = _total(rows, "tokens") - sum(row["yields"][0] for row in rows)
    return tokens / seconds if tokens else None


def _medians(questions: Sequence[list[Row]], value: Callable[[Row], float]) -> list[float]:
    return [median(value(row) for row in rows) for rows in questions]


def _qualities(questions: Sequence[list[Row]]) -> list[float | None]:
    """Return means, because a median of right and wrong would hide what is rare."""
    return [None if rows[0]["quality"] is None else mean(row["quality"] for row in rows) for rows in questions]


def _over_all_tokens(rows: Sequence[Row], value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    """Return the sum over all tokens, per token; None unless the expert was asked about each of them."""
    sums = [value(row["fidelity"]) for row in rows if row["fidelity"] and row["fidelity"]["judged"] == row["tokens"]]
    known = [each for each in sums if each is not None]
    return sum(known) / _total(rows, "tokens") if len(known) == len(rows) else None


def _difference(mine: Sequence[list[Row]], base: Sequence[list[Row]]) -> tuple[float | None, float | None]:
    """Return the share of answers that differ from the expert's, and the median position, from 1, of the first different token."""
    own = {(row["question"], row["repetition"]): row["token_ids"] for rows in base for row in rows}
    answers = {(row["question"], row["repetition"]): row["token_ids"] for rows in mine for row in rows}
    both = own.keys() & answers.keys()
    positions = [shared_prefix_length(answers[key], own[key]) + 1 for key in both if answers[key] != own[key]]
    return len(positions) / len(both) if both else None, median(positions) if positions else None


def _total(rows: Sequence[Row], name: str) -> float:
    return float(sum(row[name] for row in rows))


def _share(rows: Sequence[Row], part: str, whole: str) -> float | None:
    return _total(rows, part) / _total(rows, whole) if _total(rows, whole) else None
