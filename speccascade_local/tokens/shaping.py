"""Changes to rows before sampling: penalties, logit bias, forbidden ends, grammar; the same for both models, place by place.

They depend only on the text so far, including a drafted prefix. ``shape(row, reply)`` always returns the same row, so a rejected draft
leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..common.errors import SettingError
from ..common.validation import finite_number, whole_number
from .rows import Rows
from .sampler import Array, Mask


class Constraint(Protocol):
    """A limit on the next token, such as a grammar."""

    def allowed(self, reply: Sequence[int]) -> Mask:
        """Return which ids may follow the reply so far. [n_vocab]"""


class ForbiddenIds:
    """A constraint that forbids the ids ``early`` while the reply has fewer than ``least`` tokens, and the ids ``always`` everywhere."""

    def __init__(self, n_vocab: int, *, early: Iterable[int] = (), least: int = 0, always: Iterable[int] = ()) -> None:
        self._least = least
        self._late = np.ones(n_vocab, dtype=bool)
        self._late[list(always)] = False
        self._early = self._late.copy()
        self._early[list(early)] = False

    def allowed(self, reply: Sequence[int]) -> Mask:
        """Return which ids may follow the reply so far. [n_vocab]"""
        return self._early if len(reply) < self._least else self._late


@dataclass(frozen=True)
class Penalties:
    """Changes to logits that depend on the text so far. Raises SettingError for a value outside its range.

    Args:
        logit_bias: The number added to the logit of each id, -100 to 100; -inf for never.
        presence: Subtracted once from a token that occurs in the reply, as in the OpenAI API.
        frequency: Subtracted for each occurrence of a token in the reply, as in the OpenAI API.
        repetition: Divides positive and multiplies negative logits of tokens in prompt or reply, before all others (Keskar et al.
            1909.05858); 1 is off.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high, allowed in (
            ("presence", -2, 2, "between -2 and 2"),
            ("frequency", -2, 2, "between -2 and 2"),
            ("repetition", 1e-3, 1e3, "between 0.001 and 1000; 1 is off"),  # closer to 0 a divided logit may overflow
        ):
            object.__setattr__(self, name, finite_number(f"{name}_penalty", getattr(self, name), low, high, allowed))
        if not isinstance(self.logit_bias, Mapping):
            raise SettingError(f"logit_bias is {self.logit_bias!r:.40}; it must be a mapping from token ids to numbers")
        biases = {
            whole_number("a token id in logit_bias", token, 0, 2**31 - 1): -math.inf
            if isinstance(bias, float) and bias == -math.inf
            else finite_number(f"logit_bias of token {token!r:.40}", bias, -100, 100, "between -100 and 100, or -inf for never")
            for token, bias in self.logit_bias.items()
        }
        object.__setattr__(self, "logit_bias", biases)  # a copy, so that no one changes it after the check

    @property
    def active(self) -> bool:
        """Whether anything is on."""
        return bool(self.logit_bias) or (self.presence, self.frequency, self.repetition) != (0, 0, 1)


class Shaper:
    """Penalties and a grammar for one reply.

    Raises SettingError where a biased id is outside the vocabulary, or the grammar allows no token after some text.
    """

    def __init__(self, n_vocab: int, prompt: Sequence[int] = (), penalties: Penalties | None = None, grammar: Constraint | None = None):
        self._penalties = penalties if penalties and penalties.active else None
        self._grammar = grammar
        self._prompt = np.unique(np.array(prompt, dtype=np.int64))
        bias = self._penalties.logit_bias if self._penalties else {}
        if bias and max(bias) >= n_vocab:
            raise SettingError(f"logit_bias names token id {max(bias)}; the ids that both models have are 0 to {n_vocab - 1}")
        self._biased = np.array(list(bias), dtype=np.int64)
        self._bias = np.array(list(bias.values()), dtype=np.float64)
        self._forbids = bool(np.isneginf(self._bias).any())

    @property
    def active(self) -> bool:
        """Whether any row changes."""
        return self._penalties is not None or self._grammar is not None

    def shape(self, logits: Array, reply: Sequence[int]) -> Array:
        """Return the row that follows ``reply``, shaped for sampling. [n_vocab] -> [n_vocab]; the same array where nothing changes it.

        A row that rules out every allowed token becomes flat over them: n-gram guesses in place of a model know only one token.
        """
        if not self.active:
            return logits
        row = np.array(logits, dtype=np.float64)
        if self._penalties:
            self._penalize(row, reply, self._penalties)
        allowed = self._grammar.allowed(reply) if self._grammar else None
        if allowed is not None:
            row[~allowed] = -np.inf
        if (self._grammar or self._forbids) and np.isneginf(row).all():  # the sampler reports rows with nan
            possible = np.ones(len(row), dtype=bool) if allowed is None else allowed.copy()
            possible[self._biased[np.isneginf(self._bias)]] = False
            if possible.any():
                row[possible] = 0.0
                return row
            cause = "grammar or schema" if self._grammar else "logit_bias"
            raise SettingError(
                f"after {len(reply)} tokens the {cause} allows nothing that this vocabulary can say; "
                "make it wider, or check that it can be satisfied"
            )
        return row

    def rows(self, logits: Array, reply: Sequence[int], drafted: Sequence[int]) -> Rows:
        """Return the rows that follow ``reply`` plus 0, 1, 2, ... tokens of ``drafted``. [k, n_vocab]"""
        if not self.active:
            return Rows.of(logits)
        return Rows(logits, np.array([self.shape(row, [*reply, *drafted[:j]]) for j, row in enumerate(logits)]).reshape(logits.shape))

    def count_allowed(self, reply: Sequence[int], tokens: Sequence[int]) -> int:
        """Return how many of the first ``tokens`` the grammar allows after ``reply``."""
        if self._grammar:
            for j, token in enumerate(tokens):
                if not self._grammar.allowed([*reply, *tokens[:j]])[token]:
                    return j
        return len(tokens)

    def _penalize(self, row: Array, reply: Sequence[int], penalties: Penalties) -> None:
        written, counts = np.unique(np.array(reply, dtype=np.int64), return_counts=True)
        seen = np.union1d(self._prompt, written)
        row[seen] = np.where(row[seen] > 0, row[seen] / penalties.repetition, row[seen] * penalties.repetition)
        row[written] -= penalties.presence + penalties.frequency * counts
        row[self._biased] += self._bias


#: Changes no row.
UNSHAPED = Shaper(0)
