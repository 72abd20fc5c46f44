"""Where drafts come from: the small model writes a block, token by token.

Every drafted token is drawn from the drafter's own sampling distribution, and its raw row travels with it, because the
rejection test needs the whole distribution and not only the token. Knows nothing of the expert or of rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from .evidence import Rows
from .sampling import Array, Sampler, draw
from .shaping import Shaper
from .verify import Draft


class Session(Protocol):
    """One mutable timeline over a model: what the decoding loop needs, and all that it needs.

    :class:`speccascade_local.session.LlamaSession` is the real one; a toy of ten lines will do in a test.
    """

    @property
    def n_vocab(self) -> int:
        """Width of the rows, and bound of the ids."""

    @property
    def n_ctx(self) -> int:
        """How many tokens the timeline can hold."""

    @property
    def tokens(self) -> list[int]:
        """What the timeline holds, in order. Not to be changed by the caller."""

    def extend(self, tokens: list[int], keep: int) -> Array:
        """Append ``tokens`` and return the logits after each of the last ``keep`` of them, [keep, n_vocab] float32.

        The rows may be a view that is valid until the next call only.
        """

    def rewind(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""


def propose(
    drafter: Session,
    tokens: list[int],
    length: int,
    sampler: Sampler,
    rng: np.random.Generator,
    is_end: Callable[[int], bool],
    *,
    shaper: Shaper,
    reply: list[int],
    look_ahead: bool = False,
) -> Draft:
    """Draft up to ``length`` tokens that continue ``tokens``, of which ``reply`` is the end that was generated.

    The drafter first reads, in one batch, whatever it has not seen of ``tokens``, so no token is ever read twice. A draft ends early
    after an end-of-text token: what would follow could never be used, and since that is decided from drafted tokens alone, the
    distribution of the output does not change. look_ahead: let the drafter read its last token too, for the row that follows it.
    """
    drafted: list[int] = []
    rows: list[Rows] = []
    logits = np.empty((max(length, 0) + look_ahead, drafter.n_vocab), np.float32)
    unread = tokens[len(drafter.tokens) :]
    while not (drafted and is_end(drafted[-1])) and len(rows) < length + look_ahead:
        raw = logits[len(rows) : len(rows) + 1]
        raw[:] = drafter.extend(unread, keep=1)
        rows.append(shaper.rows(raw, [*reply, *drafted], []))
        if len(drafted) < length:
            unread = [int(rows[-1].best[0]) if sampler.temperature == 0 else draw(rows[-1].probs(sampler)[0], rng)]
            drafted += unread
    return Draft(drafted, Rows.joined(rows, logits[: len(rows)]))
