"""Rows of logits and rules for property tests: ties, one-hots, masked ids, tiny and wide vocabularies."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from speccascade_local.rules import registry
from speccascade_local.rules.combined import Budget
from speccascade_local.rules.lossy_acceptance import Fly
from speccascade_local.rules.routes import TokenCascade
from speccascade_local.rules.rule import Method, Rule

#: A grid: values tie exactly or differ clearly, so that no test hangs on the last bit of a comparison.
_wide = st.one_of(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 8.0]), st.integers(-12 * 64, 12 * 64).map(lambda n: n / 64))
_narrow = st.integers(-2 * 64, 2 * 64).map(lambda n: n / 64)  # a model that hesitates


@st.composite
def logit_rows(draw, n_rows: int = 1, n_vocab: int | None = None, masked: bool = True) -> np.ndarray:
    """[n_rows, n_vocab] float32 with at least one finite logit per row."""
    width = n_vocab or draw(st.integers(1, 9))
    values = draw(st.sampled_from([_wide, _narrow]))
    rows = np.array(draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=n_rows, max_size=n_rows)), np.float32)
    if masked:
        for row in rows:
            hidden = draw(st.sets(st.integers(0, width - 1), max_size=width - 1))
            row[list(hidden)] = -np.inf
    return rows


@st.composite
def row_pairs(draw, n_rows: int = 1, masked: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Drafter and expert rows of one width."""
    width = draw(st.integers(1, 9))
    return draw(logit_rows(n_rows, width, masked)), draw(logit_rows(n_rows, width, masked))


def dial_values(method: type[Method], name: str) -> st.SearchStrategy[float]:
    dial = method.dials[name]
    low, high = max(dial.low, -3.0), min(dial.high, 3.0)
    if dial.whole:
        return st.integers(int(max(dial.low, 1)), 5)
    low = max(low, 1e-3) if dial.low > 0 else low
    return st.one_of(st.sampled_from([low, high, max(low, 0.0)]), st.floats(low, high))


def rules_of(method: type[Rule]) -> st.SearchStrategy[Rule]:
    """Any setting of one rule's dials."""
    if method is Budget:
        return st.builds(Budget, dial_values(Budget, "limit"), st.sampled_from(["token_v3", "diff", "lenience"]))
    return st.builds(method, *(dial_values(method, name) for name in method.dials))


#: Rules that have a target at a single position: all but fly, which looks at whole blocks.
POSITION_RULES: list[type[Rule]] = [rule for rule in registry.RULES.values() if rule is not Fly]
all_rules = st.one_of(*(rules_of(rule) for rule in POSITION_RULES))
#: Those that go through the block loop and ask the expert.
judged_rules = all_rules.filter(lambda rule: rule.asks_expert and not isinstance(rule, TokenCascade))
#: One of each, with typical dials.
EVERY_RULE: list[Rule] = [registry.parse(spec) for spec in registry.examples() if spec.split(":")[0] in registry.RULES]
JUDGED_RULES = [rule for rule in EVERY_RULE if rule.asks_expert and not isinstance(rule, TokenCascade | Fly)]
sampler_settings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 3]),
        "top_p": st.sampled_from([1.0, 0.9137, 0.4321]),  # never the exact mass of a few equal tokens
        "min_p": st.sampled_from([0.0, 0.1, 1.0]),
        "top_n_sigma": st.sampled_from([0.0, 0.5137, 1.3721, 9.0]),  # never a distance that a few grid values have exactly
    }
)
