"""The user's own rule: how a line of text names it, and checks of every answer that it gives.

A user's rule is any object with one of these methods, and optionally with ``trade``, a line that says what is traded for what:

    defer(evidence) -> bool, or bool array, [1] or [1, n_vocab]       True where the expert decides
    target(evidence) -> float array, [1, n_vocab]                     the distribution π itself, 0 where evidence.expert_support is False

``evidence`` is :class:`speccascade_local.Evidence`, whose rows and sampling distributions are shared and read-only. Neither method may
depend on the drafted token, or the emitted token would no longer follow the target. An object with ``remembers = True`` also has
``remember(decision)``, as in :class:`speccascade_local.Rule`. ``check`` is called only for objects that derive from that class.
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

#: How far from 1 the sum of a target may be; float32 sums over a wide vocabulary need this much.
ROUNDING = 1e-5

#: ``package.module:Name(...)``
CUSTOM = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)\((.*)\)", re.DOTALL)


@dataclass(frozen=True)
class _Custom(Rule):
    """A rule that wraps the user's object, whose failures become errors that name their place."""

    spec: str
    wrapped: Any = field(compare=False, repr=False)

    name = "custom"

    def __str__(self) -> str:
        return self.spec

    @property
    def trade(self) -> str:  # type: ignore[override]
        """The user's own description, if the rule has one."""
        return str(getattr(self.wrapped, "trade", "a rule of your own"))

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether the user's rule looks at its own past."""
        return bool(getattr(self.wrapped, "remembers", False))

    def remember(self, decision: Decision) -> float:
        value = self._call("remember", decision)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise SettingError(f"rule {self.spec}: remember returned {value!r:.40}; it must be a number")
        return float(value)

    def check(self, sampler: Sampler, block_size: int) -> None:
        if isinstance(self.wrapped, Rule):
            self._call("check", sampler, block_size)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.wrapped, method)(*arguments)
        except (Exception, SystemExit) as error:  # the user's rule may fail in any way
            raise _failure(self.spec, method, error) from error

    def _array(self, method: str, evidence: Evidence) -> NDArray[Any]:
        """Return the user's answer. The rows are made read-only first, because the executor reads them afterwards."""
        for model in (evidence.drafter, evidence.expert):
            model.logits.flags.writeable = model.shaped.flags.writeable = False
        answer = self._call(method, evidence)
        try:
            return np.asarray(answer)
        except Exception as error:  # rows of different lengths, or an object of another library that does not convert
            raise _failure(self.spec, method, error) from error


@dataclass(frozen=True)
class CustomRule(_Custom):
    """A user's rule with ``defer``, checked at every call."""

    def defer(self, evidence: Evidence) -> Mask:
        defer = self._array("defer", evidence)
        shape = evidence.drafter.logits.shape
        if defer.dtype != np.bool_ or defer.shape not in ((), shape[:1], shape):
            raise SettingError(
                f"rule {self.spec}: defer returned {_describe_value(defer)}; it must be True, False or an array of bool, "
                f"{list(shape[:1])} (whole positions) or {list(shape)} (single tokens)"
            )
        return defer if defer.shape else np.full(shape[:1], defer)


@dataclass(frozen=True)
class CustomTarget(_Custom, TargetRule):
    """A user's rule with ``target``, checked at every call."""

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
                f"rule {self.spec}: target returned rows that are not distributions (smallest value {low:.3g}, sums {total[:, 0]}); "
                "each must be finite, not negative, and sum to 1"
            )
        if (denied := ~evidence.expert_support & (target > 0)).any():
            raise SettingError(
                f"rule {self.spec}: target gives mass to token {int(np.argwhere(denied)[0][-1])}, which the filters or the grammar deny; "
                "set it to 0 where evidence.expert_support is False"
            )
        exact: Float = target / total
        return exact


def custom_rule(spec: Any, origin: str) -> Rule:
    """Return the rule that ``package.module:Name(...)`` or an object of the user is. Raises SettingError if it is none."""
    wrapped = _build(spec) if isinstance(spec, str) else spec
    if isinstance(wrapped, type) and (hasattr(wrapped, "defer") or hasattr(wrapped, "target")):
        raise SettingError(f"rule {origin:.80} is a class; give an instance of it, such as {wrapped.__name__}(...)")
    if callable(getattr(wrapped, "target", None)):
        return CustomTarget(origin, wrapped)
    if callable(getattr(wrapped, "defer", None)):
        return CustomRule(origin, wrapped)
    raise SettingError(
        f"the rule is {origin:.80}; it must be a text, such as 'token_v3:0.3', or an object with defer(evidence) or target(evidence)"
    )


def _build(spec: str) -> Any:
    match = CUSTOM.fullmatch(spec)
    assert match, spec
    module_name, name, arguments = match.groups()
    values, named = _plain_values(spec, arguments)
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise SettingError(
            f"rule {spec!r}: module {module_name!r} is a part of Python and has no rules; name a class in a file of your own"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may fail in any way, or exit as a script does
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
            f"rule {spec!r}: {name!r} is not called; it must be a class with defer or target, or a function in a file of your own"
        )
    try:
        return maker(*values, **named)
    except (Exception, SystemExit) as error:  # as above
        raise _failure(spec, name, error) from error


def _makes_rules(maker: Any, module: ModuleType) -> bool:
    """Return whether this may be called to make a rule: a class of rules, or a function that is defined in the user's own file.

    Functions of installed packages are excluded, or a text could call any of them.
    """
    if isinstance(maker, type):
        return hasattr(maker, "defer") or hasattr(maker, "target")
    file = getattr(module, "__file__", None)
    if file is None or not inspect.isfunction(maker) or maker.__module__ != module.__name__:
        return False
    place = Path(file)
    return not {"site-packages", "dist-packages"}.intersection(place.parts) and PACKAGE not in place.parents


def _plain_values(spec: str, arguments: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments between the parentheses, which are parsed and never run."""
    refused = SettingError(f"rule {spec!r}: its arguments must be plain values, such as (0.3) or (alpha=0.3)")
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise refused  # parentheses that close early and open again
        names = [keyword.arg for keyword in call.keywords]
        if None in names or len({*names}) < len(names):
            raise refused
        values = [ast.literal_eval(argument) for argument in call.args]
        return values, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise refused from None


def _failure(spec: str, what: str, error: BaseException) -> SpeccascadeError:
    """Return the error that a failure of the user's code becomes. Errors of a model stay what they are."""
    if isinstance(error, SpeccascadeError) and not isinstance(error, SettingError):
        return error
    reason = str(error) if isinstance(error, SettingError) else f"{type(error).__name__}: {error}"
    return SettingError(f"rule {spec}: {what} failed{_line(error)}: {reason}")


def _line(error: BaseException) -> str:
    """Return the line of the user's file that this module called."""
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f" ({Path(theirs[0].filename).name}, line {theirs[0].lineno})" if theirs else ""


def _describe_value(array: NDArray[Any]) -> str:
    if array.dtype == object and not array.shape:
        return f"{array.item()!r:.40}" + ("; is a return missing?" if array.item() is None else "")
    return f"{array.dtype} of shape {list(array.shape)}"
