"""The user's own rule: found by a line of text, and held to the protocol whenever it answers.

A rule of one's own is any object with one of these, and optionally with ``name`` and ``trade`` (texts):

    defer(evidence) -> bool array, [1] or [1, n_vocab]       True where the expert decides
    target(evidence) -> float array, [1, n_vocab]            the distribution π itself, 0 where evidence.expert_probs is 0 for filtered ids

``evidence`` is :class:`speccascade_local.Evidence`. Neither may look at which token was drafted, or the emitted token would no longer
follow the target.
"""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .deferral import Rule, TargetRule
from .errors import SettingError, SpeccascadeError
from .evidence import Evidence, Float
from .sampling import Mask

#: ``package.module:Name(...)``
CUSTOM = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)\((.*)\)", re.DOTALL)


@dataclass(frozen=True)
class CustomRule(Rule):
    """The user's ``defer``, checked at every call."""

    spec: str
    wrapped: Any = field(compare=False, repr=False)

    name: ClassVar[str] = "custom"
    trade: ClassVar[str] = "a rule of your own"

    def __str__(self) -> str:
        return self.spec

    def defer(self, evidence: Evidence) -> Mask:
        defer = np.asarray(_ask(self.spec, self.wrapped.defer, evidence))
        shape = evidence.drafter.logits.shape
        if defer.dtype != np.bool_ or defer.shape not in (shape[:1], shape):
            raise SettingError(
                f"rule {self.spec}: defer returned {_told(defer)}; it must be an array of bool, {list(shape[:1])} (whole positions) or "
                f"{list(shape)} (single tokens)"
            )
        return defer


@dataclass(frozen=True)
class CustomTarget(TargetRule):
    """The user's ``target``, checked at every call."""

    spec: str
    wrapped: Any = field(compare=False, repr=False)

    name: ClassVar[str] = "custom"
    trade: ClassVar[str] = "a target of your own"

    def __str__(self) -> str:
        return self.spec

    def target(self, evidence: Evidence) -> Float:
        target = np.asarray(_ask(self.spec, self.wrapped.target, evidence))
        shape = evidence.drafter.logits.shape
        if not np.issubdtype(target.dtype, np.floating) or target.shape != shape:
            raise SettingError(f"rule {self.spec}: target returned {_told(target)}; it must be an array of float, {list(shape)}")
        if not (np.isfinite(target).all() and (target >= 0).all() and np.allclose(target.sum(axis=-1), 1, atol=1e-6)):
            low, total = np.nanmin(target), target.sum(axis=-1)
            raise SettingError(
                f"rule {self.spec}: target returned rows that are no distributions (smallest value {low:.3g}, sums {total}); "
                "each must be finite, not negative, and sum to 1"
            )
        if (denied := ~evidence.expert_support & (target > 0)).any():
            raise SettingError(
                f"rule {self.spec}: target gives mass to token {int(np.argwhere(denied)[0][-1])}, which the filters or the grammar deny; "
                "leave out what evidence.expert_support does not allow"
            )
        return target.astype(np.float64)


def custom_rule(spec: Any, origin: str) -> Rule:
    """The rule that ``package.module:Name(...)`` makes, or an object of the user's. Raises SettingError when it is none."""
    wrapped = _made(spec) if isinstance(spec, str) else spec
    if callable(getattr(wrapped, "target", None)):
        return CustomTarget(origin, wrapped)
    if callable(getattr(wrapped, "defer", None)):
        return CustomRule(origin, wrapped)
    raise SettingError(
        f"a rule is written as text, such as 'token_v3:0.3', or is an object with defer(evidence) or target(evidence); got {origin:.80}"
    )


def _made(spec: str) -> Any:
    match = CUSTOM.fullmatch(spec)
    assert match, spec
    module_name, name, arguments = match.groups()
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise SettingError(f"rule {spec!r}: what stands in the parentheses must be plain values, such as (0.3) or (alpha=0.3)") from None
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SettingError(
            f"rule {spec!r}: cannot import {module_name!r} ({error}); the file must be in the current folder or on PYTHONPATH"
        ) from error
    except Exception as error:  # the module is the user's: it may fail in any way
        raise SettingError(f"rule {spec!r}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    maker = getattr(module, name, None)
    if not callable(maker):
        raise SettingError(f"rule {spec!r}: module {module_name!r} has no class or function {name!r}")
    try:
        return maker(*values, **named)
    except SpeccascadeError:
        raise
    except Exception as error:
        raise SettingError(f"rule {spec!r}: {name} failed: {type(error).__name__}: {error}") from error


def _ask(spec: str, method: Any, evidence: Evidence) -> Any:
    try:
        return method(evidence)
    except SpeccascadeError:
        raise
    except Exception as error:  # as above
        raise SettingError(f"rule {spec} failed: {type(error).__name__}: {error}") from error


def _told(array: Any) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"
