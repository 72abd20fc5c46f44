"""Grammars and JSON schemas as masks over token ids, with rollback.

Masks are llguidance's work; here is what a drafted block needs: the mask at any place of it, however the draft ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np

from .errors import SettingError
from .lark import HEADER
from .sampling import Mask
from .sequences import shared_length

#: Between the parts of a JSON text: as much as indented JSON needs, but not without end, or a model may write nothing but blanks.
JSON_BLANKS = {"whitespace_pattern": r" |\n[ \t]{0,20}"}
#: Room for rules that are spelled out character by character, over large vocabularies.
LIMITS = llguidance.LLParserLimits(step_max_items=5_000_000, step_lexer_fuel=5_000_000, verbose_errors=False)
#: How many masks are kept, the latest ones: more than the places of a block, to which a draft may be taken back.
KEPT_MASKS = 128


def from_json_schema(schema: str | Mapping[str, Any] | bool) -> str:
    """A JSON schema, as text or as an object -> llguidance's own form. Raises SettingError when it is no JSON.

    llguidance's own options, such as ``whitespace_flexible``, may stand in the schema under ``x-guidance``.
    """
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"the JSON schema is not valid JSON: {error}") from None
    if not isinstance(schema, (Mapping, bool)):
        raise SettingError(f'the JSON schema is {schema!r:.40}; it must be an object, such as {{"type": "object"}}')
    if schema is not False:
        schema = {} if schema is True else dict(schema)
        options = schema.get("x-guidance", {})
        if isinstance(options, Mapping) and not {"whitespace_pattern", "whitespace_flexible"} & options.keys():
            schema["x-guidance"] = {**JSON_BLANKS, **options}
    try:
        return f"{HEADER}start: %json {json.dumps(schema, allow_nan=False)}\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingError(f"the JSON schema cannot be used: {error}") from None


class Grammar:
    """A compiled grammar over one reply: a :class:`~speccascade_local.shaping.Constraint`.

    tokenizer: the vocabulary as llguidance wants it, see ``Tokenizer.for_grammars``. source: from :func:`gbnf.from_gbnf` or
    :func:`from_json_schema`. n_vocab: crops the masks. Raises SettingError when nothing at all satisfies the grammar.
    """

    def __init__(self, tokenizer: llguidance.LLTokenizer, source: str, n_vocab: int) -> None:
        self._matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=LIMITS)
        self._n_vocab = n_vocab
        self._bits = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
        self._read: list[int] = []  # what the matcher has consumed
        self._masks: dict[int, Mask] = {}  # by how much of that they follow, oldest first
        self._require_sound(self._matcher)
        if not self.allowed([]).any():
            raise SettingError("the grammar or schema allows no first token; nothing that this vocabulary can say satisfies it")

    def allowed(self, reply: Sequence[int]) -> Mask:
        """Which ids may follow ``reply``; quick if that has grown, or was taken back, by some tokens since the last call. [n_vocab]

        The array is read-only. Raises SettingError for a reply that breaks the grammar, and stays usable.
        """
        reply = list(reply)
        shared = shared_length(self._read, reply)
        mask = self._masks.get(shared) if shared == len(reply) else None
        if mask is None:  # else the place lies on what is read already, which is left as it is: the draft may go on from its end
            self._rewind(shared)
            self._advance(reply[shared:])
            mask = self._masks[len(reply)] = self._mask()
            if len(self._masks) > KEPT_MASKS:
                del self._masks[next(iter(self._masks))]
        return mask

    def _rewind(self, length: int) -> None:
        if length < len(self._read):
            self._matcher.rollback(len(self._read) - length)
            self._require_sound(self._matcher)
            del self._read[length:]
            self._masks = {place: mask for place, mask in self._masks.items() if place <= length}

    def _advance(self, tokens: list[int]) -> None:
        consumed = self._matcher.try_consume_tokens(tokens)
        self._require_sound(self._matcher)
        self._read += tokens[:consumed]
        if consumed < len(tokens):
            raise SettingError(f"token {tokens[consumed]} breaks the grammar or schema after {len(self._read)} tokens")

    def _mask(self) -> Mask:
        # On a copy: in llguidance 1.9 a matcher that has made a mask may make a wrong one after a rollback.
        matcher = self._matcher.deep_copy()
        llguidance.numpy.fill_next_token_bitmask(matcher, self._bits, 0)
        self._require_sound(matcher)
        mask: Mask = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")[: self._n_vocab].astype(bool)
        mask.flags.writeable = False
        return mask

    @staticmethod
    def _require_sound(matcher: llguidance.LLMatcher) -> None:
        if matcher.is_error():
            # Only the reason: behind it may stand the parser's state, or the grammar as llguidance reads it.
            reason = re.split(r"\n<state>|\n\s*\d+ \| ", matcher.get_error())[0]
            reason = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", reason)
            reason = "nothing that this vocabulary can say satisfies it" if "NoExtensionBias" in reason else " ".join(reason.split())
            raise SettingError(f"the grammar or schema cannot be used: {reason:.300}")
