"""The user's own rule: found by a line of text, and held to the protocol whenever it answers.

A rule of one's own is any object with one of these, and optionally with ``trade``, a line that says what is traded for what:

    defer(evidence) -> bool, or bool array, [1] or [1, n_vocab]       True where the expert decides
    target(evidence) -> float array, [1, n_vocab]                     the distribution π itself, 0 where evidence.expert_support is False

``evidence`` is :class:`speccascade_local.Evidence`, whose rows and sampling distributions are shared and cannot be written to. Neither
may look at which token was drafted, or the emitted token would no longer follow the target. An object that says ``remembers = True`` has
``remember(decision)`` too, as :class:`speccascade_local.Rule` describes it. Of an object that derives from that class ``check`` is asked
too, and nothing else.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import traceback
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import SettingError, SpeccascadeError
from ..common.files import PACKAGE
from ..tokens.rows import Float
from ..tokens.sampler import Mask, Sampler
from .evidence import Evidence
from .rule import Decision, Rule, TargetRule

#: How far from 1 the sum of a target may be: float32 over a wide vocabulary is that far off.
ROUNDING = 1e-5

#: ``package.module:Name(...)``
CUSTOM = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)\((.*)\)", re.DOTALL)


@dataclass(frozen=True)
class _Custom(Rule):
    """What both kinds have in common: the user's object, asked with care."""

    spec: str
    wrapped: Any = field(compare=False, repr=False)

    name = "custom"

    def __str__(self) -> str:
        return self.spec

    @property
    def trade(self) -> str:  # type: ignore[override]
        """The user's own words, if there are any."""
        return str(getattr(self.wrapped, "trade", "a rule of your own"))

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether the user's rule looks at its own past."""
        return bool(getattr(self.wrapped, "remembers", False))

    def remember(self, decision: Decision) -> float:
        kept = self._ask("remember", decision)
        if isinstance(kept, bool) or not isinstance(kept, Real):
            raise SettingError(f"rule {self.spec}: remember returned {kept!r:.40}; it must be a number")
        return float(kept)

    def check(self, sampler: Sampler, block_size: int) -> None:
        if isinstance(self.wrapped, Rule):
            self._ask("check", sampler, block_size)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.wrapped, method)(*arguments)
        except (Exception, SystemExit) as error:  # the rule is the user's: it may fail in any way
            raise _failure(self.spec, method, error) from error

    def _array(self, method: str, evidence: Evidence) -> NDArray[Any]:
        """The user's answer. What the executor reads afterwards is closed to writing, so that no slip of the rule's can change it."""
        for model in (evidence.drafter, evidence.expert):
            model.logits.flags.writeable = model.shaped.flags.writeable = False
        answer = self._ask(method, evidence)
        try:
            return np.asarray(answer)
        except Exception as error:  # rows of different lengths, or an object of another library that does not convert
            raise _failure(self.spec, method, error) from error


@dataclass(frozen=True)
class CustomRule(_Custom):
    """The user's ``defer``, checked at every call."""

    def defer(self, evidence: Evidence) -> Mask:
        defer = self._array("defer", evidence)
        shape = evidence.drafter.logits.shape
        if defer.dtype != np.bool_ or defer.shape not in ((), shape[:1], shape):
            raise SettingError(
                f"rule {self.spec}: defer returned {_describe_value(defer)}; it must be True, False or an array of bool, {list(shape[:1])} (whole "
                f"positions) or {list(shape)} (single tokens)"
            )
        return defer if defer.shape else np.full(shape[:1], defer)


@dataclass(frozen=True)
class CustomTarget(_Custom, TargetRule):
    """The user's ``target``, checked at every call."""

    def target(self, evidence: Evidence) -> Float:
        answer = self._array("target", evidence)
        shape = evidence.drafter.logits.shape
        if not np.issubdtype(answer.dtype, np.floating) or answer.shape != shape:
            raise SettingError(f"rule {self.spec}: target returned {_describe_value(answer)}; it must be an array of float, {list(shape)}")
        target = answer.astype(np.float64)
        with np.errstate(invalid="ignore"):  # inf - inf
            low, total = target.min(), target.sum(axis=-1, keepdims=True)
        if not (np.isfinite(target).all() and low >= 0 and np.abs(total - 1).max() <= ROUNDING):
            raise SettingError(
                f"rule {self.spec}: target returned rows that are no distributions (smallest value {low:.3g}, sums {total[:, 0]}); "
                "each must be finite, not negative, and sum to 1"
            )
        if (denied := ~evidence.expert_support & (target > 0)).any():
            raise SettingError(
                f"rule {self.spec}: target gives mass to token {int(np.argwhere(denied)[0][-1])}, which the filters or the grammar deny; "
                "leave out what evidence.expert_support does not allow"
            )
        exact: Float = target / total
        return exact


def custom_rule(spec: Any, origin: str) -> Rule:
    """The rule that ``package.module:Name(...)`` makes, or an object of the user's. Raises SettingError when it is none."""
    wrapped = _build(spec) if isinstance(spec, str) else spec
    if isinstance(wrapped, type) and (hasattr(wrapped, "defer") or hasattr(wrapped, "target")):
        raise SettingError(f"rule {origin:.80} is a class; give an object of it, such as {wrapped.__name__}(...)")
    if callable(getattr(wrapped, "target", None)):
        return CustomTarget(origin, wrapped)
    if callable(getattr(wrapped, "defer", None)):
        return CustomRule(origin, wrapped)
    raise SettingError(
        f"a rule is written as text, such as 'token_v3:0.3', or is an object with defer(evidence) or target(evidence); got {origin:.80}"
    )


def _build(spec: str) -> Any:
    match = CUSTOM.fullmatch(spec)
    assert match, spec
    module_name, name, arguments = match.groups()
    values, named = _plain_values(spec, arguments)
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise SettingError(
            f"rule {spec!r}: module {module_name!r} is a part of Python and holds no rules; name a class of a file of your own"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the module is the user's: it may fail in any way, or end as a script does
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise SettingError(
                f"rule {spec!r}: cannot import {module_name!r} ({error}); the file must be in the current folder or on PYTHONPATH"
            ) from error
        raise SettingError(f"rule {spec!r}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    maker = getattr(module, name, None)
    if not callable(maker):
        raise SettingError(
            f"rule {spec!r}: module {module_name!r} ({getattr(module, '__file__', None) or 'built in'}) has no class or function {name!r}"
        )
    if not _makes_rules(maker, module):
        raise SettingError(
            f"rule {spec!r}: {name!r} is not called: it is no class with defer or target, and no function of a file of your own"
        )
    try:
        return maker(*values, **named)
    except (Exception, SystemExit) as error:  # as above
        raise _failure(spec, name, error) from error


def _makes_rules(maker: Any, module: ModuleType) -> bool:
    """Whether this may be called to make a rule: a class of rules, or a function that is defined in the user's own file.

    What is installed is not the user's own: a text could have any function of it called.
    """
    if isinstance(maker, type):
        return hasattr(maker, "defer") or hasattr(maker, "target")
    file = getattr(module, "__file__", None)
    if file is None or not inspect.isfunction(maker) or maker.__module__ != module.__name__:
        return False
    place = Path(file)
    return not {"site-packages", "dist-packages"}.intersection(place.parts) and PACKAGE not in place.parents


def _plain_values(spec: str, arguments: str) -> tuple[list[Any], dict[str, Any]]:
    """What stands in the parentheses, read and never run."""
    refused = SettingError(f"rule {spec!r}: what stands in the parentheses must be plain values, such as (0.3) or (alpha=0.3)")
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise refused  # parentheses that close early, and open again
        names = [keyword.arg for keyword in call.keywords]
        if None in names or len({*names}) < len(names):
            raise refused
        values = [ast.literal_eval(argument) for argument in call.args]
        return values, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise refused from None


def _failure(spec: str, what: str, error: BaseException) -> SpeccascadeError:
    """What a failure of the user's code becomes. What a model did wrong stays its own."""
    if isinstance(error, SpeccascadeError) and not isinstance(error, SettingError):
        return error
    told = str(error) if isinstance(error, SettingError) else f"{type(error).__name__}: {error}"
    return SettingError(f"rule {spec}: {what} failed{_place(error)}: {told}")


def _place(error: BaseException) -> str:
    """Where in the user's file: the frame that this module called."""
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f" ({Path(theirs[0].filename).name}, line {theirs[0].lineno})" if theirs else ""


def _describe_value(array: NDArray[Any]) -> str:
    if array.dtype == object and not array.shape:
        return f"{array.item()!r:.40}" + ("; is a return missing?" if array.item() is None else "")
    return f"{array.dtype} of shape {list(array.shape)}"
