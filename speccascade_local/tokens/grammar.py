"""Grammars and JSON schemas as masks over token ids, with rollback.

Masks are llguidance's work, in a child process with limits, because a grammar comes from whoever asks. Here is what a drafted block needs:
the mask at any place of it, however the draft ends.
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

#: What a grammar may take: to be compiled, with its first mask; for each later mask; for all of them, and per token of the answer.
COMPILE_S, MASK_S, MASKS_S, MASKS_PER_TOKEN_S = 10.0, 2.0, 10.0, 0.02
#: How many masks are kept, the latest ones: more than the places of a block, to which a draft may be taken back.
KEPT_MASKS = 128


class Grammar:
    """A compiled grammar over one reply: a :class:`~speccascade_local.tokens.shaping.Constraint`.

    pool: see ``Tokenizer.for_grammars``. source: from :func:`gbnf.from_gbnf` or :func:`json_schema.from_json_schema`. n_vocab: crops the
    masks. unwanted: asked now and then whether the caller has given up, which ends the work with an UnwantedError.

    Raises SettingError where nothing at all satisfies the grammar, and where it exceeds a limit of time or memory.
    """

    def __init__(self, pool: MatcherPool, source: str, n_vocab: int, unwanted: Callable[[], bool] = lambda: False) -> None:
        self._n_vocab, self._unwanted = n_vocab, unwanted
        self._read: list[int] = []  # what the matcher has consumed
        self._masks: dict[int, Mask] = {}  # by how much of that they follow, oldest first
        self._spent_s = 0.0
        try:
            self._child = pool.take(unwanted)
        except ChildError as error:
            raise SettingError(f"a grammar or schema {error}") from None
        weakref.finalize(self, pool.give_back, self._child).atexit = False  # when Python ends the process ends too
        self._keep(self._ask({"grammar": source}, COMPILE_S)["mask"])
        if not self._masks[0].any():
            raise SettingError("the grammar or schema allows no first token; nothing that this vocabulary can say satisfies it")

    def allowed(self, reply: Sequence[int]) -> Mask:
        """Which ids may follow ``reply``; quick if that has grown, or was taken back, by some tokens since the last call. [n_vocab]

        The array is read-only. Raises SettingError for a reply that breaks the grammar, and stays usable.
        """
        reply = list(reply)
        shared = shared_prefix_length(self._read, reply)
        if shared < len(reply) or shared not in self._masks:  # else the place lies on what is read: the draft may go on from its end
            self._go_on(reply, shared)
            if len(self._read) < len(reply):
                raise SettingError(f"token {reply[len(self._read)]} breaks the grammar or schema after {len(self._read)} tokens")
        return self._masks[len(reply)]

    def _go_on(self, reply: list[int], keep: int) -> None:
        """Go back to the first ``keep`` tokens, and read the rest of ``reply``."""
        left = MASKS_S + MASKS_PER_TOKEN_S * len(reply) - self._spent_s
        if left <= 0:
            raise SettingError(f"the grammar or schema took {self._spent_s:.1f} s of computing for {len(reply)} tokens; make it simpler")
        found = self._ask({"keep": keep, "tokens": reply[keep:]}, MASK_S)
        self._spent_s += found["cpu_s"]
        self._read[keep:] = reply[keep : keep + found["read"]]
        self._masks = {place: mask for place, mask in self._masks.items() if place <= keep}
        if found["read"] == len(reply) - keep:
            self._keep(found["mask"])

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            found = self._child.ask(request | {"seconds": seconds + 1}, seconds, self._unwanted)
        except ChildError as error:
            raise SettingError(f"the grammar or schema {error}; make it simpler") from None
        if "error" in found:
            raise SettingError(f"the grammar or schema cannot be used: {_reason(found['error']):.300}")
        return found

    def _keep(self, text: str) -> None:
        """The mask behind what is read, as the process writes it."""
        bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), bitorder="little")
        mask: Mask = bits[: self._n_vocab].astype(bool)
        mask.flags.writeable = False
        self._masks[len(self._read)] = mask
        if len(self._masks) > KEPT_MASKS:
            del self._masks[next(iter(self._masks))]


def _reason(text: str) -> str:
    """Only the reason: behind it may stand the parser's state, or the grammar as llguidance reads it."""
    reason = re.split(r"\n<state>|\n\s*\d+ \| ", text)[0]
    reason = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", reason)
    return "nothing that this vocabulary can say satisfies it" if "NoExtensionBias" in reason else " ".join(reason.split())
