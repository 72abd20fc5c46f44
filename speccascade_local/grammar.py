"""GBNF grammars and JSON schemas as masks over token ids, with rollback.

Parsing and masks are llguidance's work; here is what a drafted block needs: the mask at any place of it, however the draft ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np

from .errors import SettingError
from .sampling import Mask


def from_gbnf(text: str) -> str:
    """A grammar in llama.cpp's GBNF -> llguidance's own form. Raises SettingError with the place that cannot be read."""
    if not isinstance(text, str) or not text.strip():
        raise SettingError(f"grammar is {text!r:.40}; it must be a text in GBNF with a rule named root")
    try:
        return llguidance.grammar_from("gbnf", text)
    except ValueError as error:
        raise SettingError(f"the grammar is not valid GBNF: {' '.join(str(error).split())[:300]}") from None


def from_json_schema(schema: str | Mapping[str, Any] | bool) -> str:
    """A JSON schema, as text or as an object -> llguidance's own form. Raises SettingError when it is no JSON."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise SettingError(f"the JSON schema is not valid JSON: {error}") from None
    if not isinstance(schema, (Mapping, bool)):
        raise SettingError(f"the JSON schema is {schema!r:.40}; it must be an object, such as {{'type': 'object'}}")
    try:
        return llguidance.grammar_from("json_schema", json.dumps(schema))
    except (TypeError, ValueError) as error:
        raise SettingError(f"the JSON schema cannot be used: {error}") from None


class Grammar:
    """A compiled grammar over one reply: a :class:`~speccascade_local.shaping.Constraint`.

    tokenizer: the vocabulary as llguidance wants it, see ``LlamaModel.grammar_tokenizer``. source: from :func:`from_gbnf` or
    :func:`from_json_schema`. n_vocab: crops the masks. Raises SettingError when nothing at all satisfies the grammar.
    """

    def __init__(self, tokenizer: llguidance.LLTokenizer, source: str, n_vocab: int) -> None:
        self._matcher = llguidance.LLMatcher(tokenizer, source)
        self._n_vocab = n_vocab
        self._bits = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
        self._read: list[int] = []  # what the matcher has consumed
        self._masks: list[Mask | None] = [None]  # one more than that
        self._require_sound()
        if not self.allowed([]).any():
            raise SettingError("the grammar or schema allows no first token; nothing could ever satisfy it")

    def allowed(self, reply: Sequence[int]) -> Mask:
        """Which ids may follow ``reply``, which has grown, or was taken back by some tokens, since the last call. [n_vocab]"""
        shared = _shared_length(self._read, list(reply))
        if shared < len(reply):  # else the place lies on what is read already, and its mask stays known
            self._rewind(shared)
            for token in reply[shared:]:
                self._advance(token)
        mask = self._masks[len(reply)]
        if mask is None:
            self._rewind(len(reply))
            mask = self._masks[-1] = self._mask()
        return mask

    def _rewind(self, length: int) -> None:
        if length < len(self._read):
            self._matcher.rollback(len(self._read) - length)
            self._require_sound()
            del self._read[length:], self._masks[length + 1 :]

    def _advance(self, token: int) -> None:
        if self._masks[-1] is None:
            self._masks[-1] = self._mask()
        self._matcher.consume_token(token)
        self._require_sound()
        self._read.append(token)
        self._masks.append(None)

    def _mask(self) -> Mask:
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits, 0)
        self._require_sound()
        return np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")[: self._n_vocab].astype(bool)

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().split("\n<state>")[0]
            raise SettingError(f"the grammar or schema cannot be used: {' '.join(reason.split())[:300]}")


def _shared_length(one: list[int], other: list[int]) -> int:
    length = min(len(one), len(other))
    if one[:length] == other[:length]:  # nearly always, and quick
        return length
    return next(i for i in range(length) if one[i] != other[i])
