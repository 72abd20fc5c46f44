"""A model's timeline as the decoding loop wants it. Knows nothing of pairs, rules or sampling, and of llama.cpp only its context."""

from __future__ import annotations

from .batch import Part, Rollbacks, Timeline
from .context import LlamaContext
from .errors import SettingError
from .model import LlamaModel
from .sampling import Array


class LlamaSession:
    """One sequence of tokens over a model: the real :class:`~speccascade_local.drafting.Session`.

    n_vocab: crops the rows to fewer ids, for a partner with a slightly smaller vocabulary. timeline: its place in the context, for
    ``LlamaContext.evaluate``, which lets several sessions read at once; made here unless it is given. Raises SessionError if the context
    is closed or full.
    """

    def __init__(self, context: LlamaContext, *, n_vocab: int | None = None, timeline: Timeline | None = None) -> None:
        self.context = context
        self.timeline = timeline or context.open(n_vocab)

    @property
    def model(self) -> LlamaModel:
        """The weights."""
        return self.context.model

    @property
    def n_vocab(self) -> int:
        """Width of the rows."""
        return self.timeline.n_vocab

    @property
    def n_ctx(self) -> int:
        """How many tokens it can hold."""
        return self.context.n_ctx

    @property
    def tokens(self) -> list[int]:
        """What it holds. Not to be changed by the caller."""
        return self.timeline.tokens

    def extend(self, tokens: list[int], keep: int) -> Array:
        """Append ``tokens``; the logits after each of the last ``keep`` of them: see :meth:`LlamaContext.evaluate`. [keep, n_vocab]"""
        return self.context.evaluate([Part(self.timeline, tokens, keep)])[0]

    def rewind(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens. Raises SessionError when the model cannot."""
        self.context.require_open(self.timeline)
        if not 0 <= length <= len(self.tokens):
            raise SettingError(f"cannot rewind to {length}; the session holds {len(self.tokens)} tokens")
        self.context.drop(self.timeline, length)

    @property
    def missing(self) -> int:
        """How many of ``tokens`` the next ``extend`` reads again, because the model's memory could not go back as far and no further."""
        return self.context.rollback.missing(self.timeline)

    def aligned(self, length: int) -> int:
        """How many of its first ``length`` tokens are in the cache as a cold reading would have them: see :meth:`LlamaContext.aligned`."""
        return self.context.aligned(self.timeline, length)

    @property
    def rollbacks(self) -> Rollbacks:
        """What going back has cost so far."""
        return self.timeline.rollbacks

    def close(self) -> None:
        """Make room for another session in the context. Harmless when repeated."""
        self.context.release(self.timeline)
