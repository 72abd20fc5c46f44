"""Rows of logits and rules for property tests: ties, one-hots, masked ids, tiny and wide vocabularies."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from speccascade_local import rules

#: A grid: values tie exactly or differ clearly, so that no test hangs on the last bit of a comparison.
_values = st.one_of(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 8.0]), st.integers(-12 * 64, 12 * 64).map(lambda n: n / 64))


@st.composite
def logit_rows(draw, n_rows: int = 1, n_vocab: int | None = None, masked: bool = True) -> np.ndarray:
    """[n_rows, n_vocab] float32 with at least one finite logit per row."""
    width = n_vocab or draw(st.integers(1, 9))
    rows = np.array(draw(st.lists(st.lists(_values, min_size=width, max_size=width), min_size=n_rows, max_size=n_rows)), np.float32)
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


def alphas(rule: type[rules.AlphaRule]) -> st.SearchStrategy[float]:
    low, high = max(rule.low, -3.0), min(rule.high, 3.0)
    return st.one_of(st.sampled_from([low, high, 0.0]), st.floats(low, high))


all_rules = st.one_of(
    st.just(rules.Strict()),
    st.just(rules.Never()),
    *(alphas(rule).map(rule) for rule in rules.ALPHA_RULES.values()),
)

sampler_settings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 3]),
        "top_p": st.sampled_from([1.0, 0.9137, 0.4321]),  # never the exact mass of a few equal tokens
        "min_p": st.sampled_from([0.0, 0.1, 1.0]),
    }
)
