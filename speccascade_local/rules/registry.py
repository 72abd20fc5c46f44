"""Every method by its name, and how one line of text names it on the command line, in YAML, in Python and in result files.

    token_v3:0.3                                    a name, and its dials with commas
    token_v3:0.3+strict_first:8+thinking:opt:0.5    with a strict beginning, and another rule inside <think>...</think>
    budget:0.02,diff                                a fidelity budget, moving another rule than its own
    my_rules:Digits(0.3)                            the user's own: a module, and a class or function in it that makes a rule

The public :func:`target_probs` is here too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, replace
from typing import Any

import numpy as np

from ..common.errors import SettingError
from ..tokens.rows import Float, Rows
from ..tokens.sampler import Array, Sampler
from . import combined, lossy_acceptance, position_rules, routes, token_rules
from .calibrated import Calibrated
from .evidence import Evidence
from .routes import Route
from .rule import Decision, Method, Rule
from .user_rule import CUSTOM, CustomRule, CustomTarget, custom_rule

#: By name, in the order of docs and command line.
RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        position_rules.Strict,
        position_rules.Never,
        position_rules.Chow,
        position_rules.ChowLog,
        position_rules.Diff,
        position_rules.DiffLog,
        position_rules.Opt,
        position_rules.OptLog,
        position_rules.Fuzzy,
        token_rules.TokenV1,
        token_rules.TokenV2,
        token_rules.TokenV3,
        token_rules.Bild,
        lossy_acceptance.Lenience,
        lossy_acceptance.Mentored,
        lossy_acceptance.Typical,
        lossy_acceptance.Fly,
        lossy_acceptance.DecisionTokens,
        combined.Budget,
        routes.TokenCascade,
    )
}
ROUTES: dict[str, type[Route]] = {
    route.name: route for route in (routes.ChowSum, routes.ChowAverage, routes.ChowQuantile, routes.Margin, Calibrated)
}
METHODS: Mapping[str, type[Method]] = {**RULES, **ROUTES}
#: The longest text of a rule in characters, which has room for a long path.
LONGEST = 10_000
#: The rule where neither the user nor models.yaml names one.
DEFAULT = token_rules.TokenV3(0.3)

#: A user's own rule without its parentheses.
_CALLED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(?=\(|$)")
_COMBINED = re.compile(r"\+(strict_first|thinking):")


def parse(spec: str | Method) -> Method:
    """Return the method that a text names: ``"token_v3:0.3"`` -> ``TokenV3(0.3)``.

    A method is returned as it is. Another object with ``defer`` or ``target`` is the user's own rule. Raises SettingError, which lists
    what is known and allowed.
    """
    if isinstance(spec, (CustomRule, CustomTarget, combined.RegionalRule)) or type(spec) in METHODS.values():
        return spec  # type: ignore[return-value]
    if not isinstance(spec, str):
        kind = type(spec)
        text = f"{kind.__qualname__}(...)" if kind.__repr__ is object.__repr__ else repr(spec)  # not an address in memory
        return custom_rule(spec, origin=f"{kind.__module__}:{text}")
    if len(spec) > LONGEST:
        raise SettingError(f"rule {spec[:40]!r}... has {len(spec)} characters; at most {LONGEST} are allowed")
    first, *rest = _COMBINED.split(spec)
    method = _parse_one(first, spec)
    if not rest:
        return method
    parts = dict(zip(rest[0::2], rest[1::2]))
    if 2 * len(parts) < len(rest):
        raise SettingError(f"rule {spec!r}: strict_first and thinking may each occur once")
    return combine(method, parts.get("strict_first", 0), parts.get("thinking"))


def combine(rule: str | Method, strict_first: object, thinking: str | Method | None) -> Method:
    """Return ``rule`` with a strict beginning and another rule for thinking; itself where both are off. Raises SettingError."""
    if isinstance(strict_first, str):
        if not re.fullmatch("[0-9]{1,9}", strict_first):
            raise SettingError(f"strict_first is {strict_first!r:.40}; it must be a whole number, 0 or more")
        strict_first = int(strict_first)
    outer, inner = parse(rule), None if thinking is None else parse(thinking)
    if not strict_first and inner is None:
        combined.RegionalRule.dials["strict_first"].check("strict_first", strict_first)
        return outer
    for method in (outer, inner):
        if isinstance(method, combined.RegionalRule):
            raise SettingError(
                f"strict_first and a thinking rule are in the rule {str(method)!r} already; give them in the rule or as settings"
            )
        if method is not None and not method.in_blocks:
            raise SettingError(
                f"strict_first and a thinking rule need rules that verify blocks of drafts, and {method} does not; choose another"
            )
    return combined.RegionalRule(outer, strict_first, inner)  # type: ignore[arg-type]


def with_dial(method: Method, value: float) -> Method:
    """Return the method with its first dial, mostly alpha, at another value. Raises SettingError for no dial or a value out of range."""
    if isinstance(method, combined.RegionalRule):
        return replace(method, rule=with_dial(method.rule, value))  # type: ignore[arg-type]  # a rule stays a rule
    dials = list(method.dials)
    if not dials:
        raise SettingError(f"rule {method} has no alpha or other dial; choose a rule that has one, such as '{DEFAULT}'")
    return replace(method, **{dials[0]: value})  # type: ignore[type-var]  # all methods are dataclasses


def is_custom(spec: str) -> bool:
    """Return whether a line of text names the user's own code."""
    return bool(CUSTOM.search(spec[:LONGEST]))  # parse refuses a longer one


def _parse_one(text: str, spec: str) -> Method:
    if CUSTOM.fullmatch(text):
        return custom_rule(text, origin=text)
    name, colon, dials = text.partition(":")
    if name not in METHODS and (called := _CALLED.match(text)):
        raise SettingError(f"rule {spec!r}: a rule of your own needs both its parentheses, such as '{called[0]}()'")
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingError(
            f"unknown rule {spec!r}; {hint}a rule of your own is written package.module:Name(...); known are "
            f"{', '.join(map(usage, METHODS.values()))}; 'speccascade rules' shows what each does"
        )
    method = METHODS[name]
    allowed = _fields(method)
    given: list[Any] = dials.split(",", len(allowed) - 1) if colon else []  # a path may hold commas
    needed = [field.name for field in allowed if field.default is MISSING]
    if not allowed and colon:
        raise SettingError(f"rule {spec!r}: {name} has no alpha or other dial; write '{name}'")
    if not len(needed) <= len(given) <= len(allowed) or "" in given:
        ranges = " and ".join(_range(method, field.name) for field in allowed)
        raise SettingError(f"rule {spec!r}: {name} needs {ranges}, such as '{name}:{method.example}'")
    values = [_number(spec, method, field.name, value) if field.name in method.dials else value for field, value in zip(allowed, given)]
    return method(*values)


def _number(spec: str, method: type[Method], dial: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(
            f"rule {spec!r}: {method.name} needs {_range(method, dial)}, such as '{method.name}:{method.example}'; got {text!r:.40}"
        ) from None


def _range(method: type[Method], dial: str) -> str:
    if dial not in method.dials:
        return {"inner": f"the name of an inner rule ({', '.join(combined.ADJUSTABLE)})", "path": "the path of a calibration file"}[dial]
    article = "an" if dial[0] in "aeiou" else "a"
    return f"{article} {dial}, {method.dials[dial].allowed()}"


def _fields(method: type[Method]) -> list[Field[Any]]:
    """Return the fields that are written after the name."""
    return [field for field in fields(method) if field.init]  # type: ignore[arg-type]  # all methods are dataclasses


def usage(method: type[Method]) -> str:
    """Return how a method is written, with its dials in capitals: ``chow:ALPHA``."""
    dials = ",".join(field.name.upper() for field in _fields(method))
    return f"{method.name}:{dials}" if dials else method.name


def examples() -> Iterable[str]:
    """Yield one line of text for each method that needs no file, with typical dials."""
    for method in METHODS.values():
        if method is not Calibrated:
            yield f"{method.name}:{method.example}" if method.example else method.name


def describe(method: type[Method]) -> dict[str, str]:
    """Return one row of the table of methods, by the titles of its columns."""
    return {
        "method": usage(method),
        "what it does": " ".join((method.__doc__ or "").partition("\n\n")[0].split()),
        "range": "; ".join(f"{name}: {dial.allowed()}" for name, dial in method.dials.items()) or "–",
        "lossless": method.lossless,
        "keeps every draft": method.keeps_every_draft,
        "at temperature 0": method.at_temperature_0,
        "source": method.source,
    }


def target_probs(
    rule: str | Rule,
    drafter_logits: Array,
    expert_logits: Array,
    *,
    temperature: float = Sampler.temperature,
    top_k: int = Sampler.top_k,
    top_p: float = Sampler.top_p,
    min_p: float = Sampler.min_p,
    top_n_sigma: float = Sampler.top_n_sigma,
) -> Float:
    """Return the exact distribution π of the token that a rule emits at a drafted position.

    Each row stands alone: a rule that looks at its own past sees none.

    Args:
        rule: A rule as text or as an object.
        drafter_logits: The drafter's raw logits, [k, n_vocab], or [n_vocab] for k = 1.
        expert_logits: The expert's raw logits, of the same shape.
        temperature: 0 for the greedy token.
        top_k: Keep this many tokens; 0 for all.
        top_p: Keep the most probable tokens up to this mass.
        min_p: Drop tokens below this share of the largest probability.
        top_n_sigma: Drop tokens more than this many standard deviations below the largest logit; 0 for none.

    Returns:
        float64, [k, n_vocab]; each row sums to 1.

    Raises:
        SettingError: The rule is unknown or has no target at a single position (whole-answer cascades, fly), a value is out of range,
            or the arrays differ in shape or cannot be used.
    """
    method = parse(rule)
    if not isinstance(method, Rule):
        raise SettingError(f"{method} judges whole answers; it has no distribution at a single position; use it on a loaded pair")
    try:
        drafter_logits, expert_logits = (np.atleast_2d(np.asarray(rows, np.float64)) for rows in (drafter_logits, expert_logits))
    except (TypeError, ValueError) as error:
        raise SettingError(f"drafter_logits and expert_logits must be arrays of numbers, [k, n_vocab]: {error}") from None
    if drafter_logits.shape != expert_logits.shape or drafter_logits.ndim != 2 or not drafter_logits.shape[-1]:
        raise SettingError(
            f"drafter_logits have shape {drafter_logits.shape}, expert_logits {expert_logits.shape}; both must be [k, n_vocab]"
        )
    for name, logits in (("drafter_logits", drafter_logits), ("expert_logits", expert_logits)):
        if not np.isfinite(logits.max(axis=-1)).all():
            raise SettingError(f"{name} have a row with nan, +inf or nothing but -inf; each row needs at least one finite logit")
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, top_n_sigma=top_n_sigma)
    method.check(sampler, 0)
    targets = []
    for drafter_row, expert_row in zip(drafter_logits, expert_logits):
        evidence = Evidence(Rows.of(drafter_row[None]), Rows.of(expert_row[None]), sampler)
        targets.append(Decision(method.at(evidence), evidence).target)
    return np.concatenate(targets) if targets else np.empty(drafter_logits.shape)
