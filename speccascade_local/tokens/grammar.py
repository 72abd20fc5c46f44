"""Grammars and JSON schemas as masks over token ids, with rollback.

llguidance computes the masks in a child process with limits, because grammars come from untrusted requests. This module returns the mask at
any place of a drafted block, wherever the draft ends.
"""

from __future__ import annotations

import base64
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..common.errors import SettingError
from ..common.limited_child import ChildError
from .grammar_pool import MatcherPool
from .prompt import shared_prefix_length
from .sampler import Mask

#: Limits of a grammar: compiling, with its first mask; each later mask; all of them, plus a share per token of the reply.
COMPILE_S, MASK_S, MASKS_S, MASKS_PER_TOKEN_S = 10.0, 2.0, 10.0, 0.02
#: How many of the latest masks are kept: more than the places of a block, to which a rollback may go.
KEPT_MASKS = 128


class Grammar:
    """A compiled grammar over one reply: a :class:`~speccascade_local.tokens.shaping.Constraint`.

    Raises SettingError where nothing satisfies the grammar, or it exceeds a limit of time or memory.

    Args:
        pool: As from ``Tokenizer.for_grammars``.
        source: As from :func:`gbnf.from_gbnf` or :func:`json_schema.from_json_schema`.
        n_vocab: The length of the masks.
        unwanted: Polled while waiting; True ends the work with an UnwantedError.
    """

    def __init__(self, pool: MatcherPool, source: str, n_vocab: int, unwanted: Callable[[], bool] = lambda: False) -> None:
        self._n_vocab, self._unwanted = n_vocab, unwanted
        self._read: list[int] = []  # the tokens that the matcher has consumed
        self._masks: dict[int, Mask] = {}  # by the number of tokens that they follow, oldest first
        self._spent_s = 0.0
        try:
            self._child = pool.take(unwanted)
        except ChildError as error:
            raise SettingError(f"a grammar or schema {error}") from None
        weakref.finalize(self, pool.give_back, self._child).atexit = False  # the process ends with Python
        self._add_mask(self._ask({"grammar": source}, COMPILE_S)["mask"])
        if not self._masks[0].any():
            raise SettingError("the grammar or schema allows no first token; nothing that this vocabulary can say satisfies it")

    def allowed(self, reply: Sequence[int]) -> Mask:
        """Return which ids may follow ``reply``, as a read-only mask. [n_vocab]

        It is quick if the reply grew or was rolled back by a few tokens since the last call. Raises SettingError for a reply that breaks
        the grammar, and stays usable.
        """
        reply = list(reply)
        shared = shared_prefix_length(self._read, reply)
        if shared < len(reply) or shared not in self._masks:  # else the mask is known, and the matcher need not move
            self._advance(reply, shared)
            if len(self._read) < len(reply):
                raise SettingError(f"token {reply[len(self._read)]} breaks the grammar or schema after {len(self._read)} tokens")
        return self._masks[len(reply)]

    def _advance(self, reply: list[int], keep: int) -> None:
        """Roll back to the first ``keep`` tokens and read the rest of ``reply``."""
        left = MASKS_S + MASKS_PER_TOKEN_S * len(reply) - self._spent_s
        if left <= 0:
            raise SettingError(f"the grammar or schema took {self._spent_s:.1f} s of computing for {len(reply)} tokens; make it simpler")
        answer = self._ask({"keep": keep, "tokens": reply[keep:]}, MASK_S)
        self._spent_s += answer["cpu_s"]
        self._read[keep:] = reply[keep : keep + answer["read"]]
        self._masks = {place: mask for place, mask in self._masks.items() if place <= keep}
        if answer["read"] == len(reply) - keep:
            self._add_mask(answer["mask"])

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            answer = self._child.ask(request | {"seconds": seconds + 1}, seconds, self._unwanted)
        except ChildError as error:
            raise SettingError(f"the grammar or schema {error}; make it simpler") from None
        if "error" in answer:
            raise SettingError(f"the grammar or schema cannot be used: {_reason(answer['error']):.300}")
        return answer

    def _add_mask(self, text: str) -> None:
        """Keep the mask that follows the tokens read, which the process writes in base64."""
        bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), bitorder="little")
        mask: Mask = bits[: self._n_vocab].astype(bool)
        mask.flags.writeable = False
        self._masks[len(self._read)] = mask
        if len(self._masks) > KEPT_MASKS:
            del self._masks[next(iter(self._masks))]


def _reason(text: str) -> str:
    """Return the reason alone, without llguidance's parser state or its form of the grammar."""
    reason = re.split(r"\n<state>|\n\s*\d+ \| ", text)[0]
    reason = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", reason)
    return "nothing that this vocabulary can say satisfies it" if "NoExtensionBias" in reason else " ".join(reason.split())
