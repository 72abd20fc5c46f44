"""Rows -> what each arm is like beside the expert alone: how fast, how good, how true, each with its interval over prompts.

Repetitions of a question are one observation, their median. Knows nothing of how it is shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from statistics import mean, median
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from ..common.errors import CatalogError
from ..common.yaml_files import problem
from ..rules.position_rules import Strict
from ..tokens.prompt import shared_prefix_length
from .grid import BASE
from .intervals import Estimate, quality_change, speed_ratio
from .rows import Row


@dataclass(frozen=True)
class ArmSummary:
    """One arm at one temperature, over the questions that every arm of that temperature has answered.

    first_s: seconds to the first text, the reading of the prompt included; decode_tokens_per_s: of the text after it. speedup:
    geometric mean over questions of the expert's seconds per answer over this arm's; speedup_per_token: of its seconds per token, which a
    longer or shorter text does not change. quality, solved_s: None where no question has a reference; quality_gain: less the expert's;
    solved_s: seconds of all answers per right one (quality 1), None if none is. mean_tv, logprob: distance from the expert per token,
    and the expert's log-probability of the text per token; None unless the expert was asked about every token. parted, parted_at: of
    strict at temperature 0, the share of answers whose tokens are not those of the expert alone, and the median place of the first other
    token, from 1; None for other rules and temperatures, and parted_at also where no answer parts.
    """

    arm: str
    about: Mapping[str, Any]
    n: int
    tokens_per_s: float
    first_s: float
    decode_tokens_per_s: float | None
    tokens: float
    speedup: Estimate
    speedup_per_token: Estimate
    quality: float | None
    quality_gain: Estimate | None
    solved_s: float | None
    mean_tv: float | None
    logprob: float | None
    parted: float | None
    parted_at: float | None
    expert_calls_per_token: float
    tokens_per_block: float
    acceptance_rate: float | None
    deferral_rate: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV: one level, an interval as values of their own; its ends are None where one question cannot tell them."""
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
    """All arms, temperature by temperature.

    left_out: rows of questions that not every arm has answered. alike: arms that gave the same tokens at the same price everywhere, so
    that nothing here tells them apart. families: the same for each family of questions, where there are several.
    """

    by_temperature: dict[float, list[ArmSummary]]
    left_out: int
    alike: list[tuple[str, ...]]
    families: dict[str, dict[float, list[ArmSummary]]]


def summarize(rows: Iterable[Row]) -> Summary:
    """Raises CatalogError where nothing can be compared."""
    rows = list(rows)
    found, used = _by_temperature(rows)
    if not found:
        raise CatalogError("no question has been answered by every arm yet; go on by --resume")
    names = dict.fromkeys(row["family"] for row in rows)
    parts = {name: _by_temperature([row for row in rows if row["family"] == name])[0] for name in names} if len(names) > 1 else {}
    return Summary(found, len(rows) - used, _alike(rows), {name: part for name, part in parts.items() if part})


class _Fidelity(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    mean_tv: float | None
    expert_logprob: float | None
    judged: NonNegativeInt


class _Measured(BaseModel):
    """What a row must have, whatever else stands in it."""

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
    """Refuse rows of a file that no run has written. Raises CatalogError."""
    for number, row in enumerate(rows, start=1):
        try:
            _Measured.model_validate(row)
        except ValidationError as error:
            raise CatalogError(
                f"row {number} is none that 'speccascade bench' wrote: {problem(error, whole='the whole row')}; take its line out"
            ) from error


def _by_temperature(rows: Sequence[Row]) -> tuple[dict[float, list[ArmSummary]], int]:
    """And of how many rows it is made."""
    by_temperature: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_temperature[row["temperature"]].append(row)
    found, used = {}, 0
    for temperature, here in sorted(by_temperature.items()):
        arms = list(dict.fromkeys(row["arm"] for row in here))
        if BASE not in arms:
            raise CatalogError(f"no rows of {BASE!r} at temperature {temperature:g}, with which all others are compared; measure it too")
        answered: dict[str, dict[str, list[Row]]] = {arm: defaultdict(list) for arm in arms}
        for row in here:
            answered[row["arm"]][row["question"]].append(row)
        common = [question for question in answered[BASE] if all(question in answered[arm] for arm in arms)]
        if not common:
            continue
        whole = {arm: [answered[arm][question] for question in common] for arm in arms}
        used += sum(len(each) for questions in whole.values() for each in questions)
        found[temperature] = [_summary(arm, whole[arm], whole[BASE]) for arm in arms]
    return found, used


def _alike(rows: Sequence[Row]) -> list[tuple[str, ...]]:
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


def _summary(arm: str, mine: Sequence[list[Row]], base: Sequence[list[Row]]) -> ArmSummary:
    every, n = [row for rows in mine for row in rows], len(mine)
    wall, base_wall = _medians(mine, _wall), _medians(base, _wall)
    per_token, base_per_token = _medians(mine, _per_token), _medians(base, _per_token)
    quality, base_quality = _qualities(mine), _qualities(base)
    graded = [(a, b) for a, b in zip(quality, base_quality) if a is not None and b is not None]
    solved = sum(row["quality"] == 1 for row in every)
    promises = arm != BASE and every[0].get("rule") == STRICT and every[0]["temperature"] == 0
    parted, parted_at = _parting(mine, base) if promises else (None, None)
    return ArmSummary(
        arm=arm,
        about={name: every[0].get(name) for name in ABOUT},
        n=n,
        tokens_per_s=_total(every, "tokens") / _total(every, "wall_s"),
        first_s=_total(every, "first_s") / len(every),
        decode_tokens_per_s=_decode_rate(every),
        tokens=_total(every, "tokens") / len(every),
        speedup=_itself(1.0, n) if arm == BASE else speed_ratio(base_wall, wall),
        speedup_per_token=_itself(1.0, n) if arm == BASE else speed_ratio(base_per_token, per_token),
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


def _itself(value: float, n: int) -> Estimate:
    """Of the expert alone beside itself: it holds by definition, so there is nothing to estimate."""
    return Estimate(value, value, value, value, n)


def _gain(arm: str, graded: Sequence[tuple[float, float]]) -> Estimate | None:
    if not graded:
        return None
    return _itself(0.0, len(graded)) if arm == BASE else quality_change([a for a, _ in graded], [b for _, b in graded])


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
    """Means, because a median of right and wrong would hide what happens now and then."""
    return [None if rows[0]["quality"] is None else mean(row["quality"] for row in rows) for rows in questions]


def _over_all_tokens(rows: Sequence[Row], value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    """A sum over all tokens, per token. None unless the expert was asked about each of them: of the others it is unknown."""
    told = [value(row["fidelity"]) for row in rows if row["fidelity"] and row["fidelity"]["judged"] == row["tokens"]]
    known = [each for each in told if each is not None]
    return sum(known) / _total(rows, "tokens") if len(known) == len(rows) else None


def _parting(mine: Sequence[list[Row]], base: Sequence[list[Row]]) -> tuple[float | None, float | None]:
    """The share of answers that are not the expert's own, and which of their tokens is the first other one, from 1, in the median."""
    own = {(row["question"], row["repetition"]): row["token_ids"] for rows in base for row in rows}
    answers = {(row["question"], row["repetition"]): row["token_ids"] for rows in mine for row in rows}
    both = own.keys() & answers.keys()
    places = [shared_prefix_length(answers[key], own[key]) + 1 for key in both if answers[key] != own[key]]
    return len(places) / len(both) if both else None, median(places) if places else None


def _total(rows: Sequence[Row], name: str) -> float:
    return float(sum(row[name] for row in rows))


def _share(rows: Sequence[Row], part: str, whole: str) -> float | None:
    return _total(rows, part) / _total(rows, whole) if _total(rows, whole) else None
