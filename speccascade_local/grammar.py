"""GBNF grammars and JSON schemas as masks over token ids, with rollback.

Masks are llguidance's work; here is what a drafted block needs (the mask at any place of it, however the draft ends), and how GBNF is
read. llguidance's own reading of GBNF takes the longest match for each literal, so that ``("a" | "ab") "bc"`` would not allow "abc", and
lets an alternative begin that can never end. Here a token is allowed exactly if its text keeps the text a beginning of a sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import llguidance
import llguidance.numpy
import numpy as np

from .errors import SettingError
from .sampling import Mask

#: Tokens are allowed by their text alone. llguidance would else ask for one spelling where the text is certain, and hide the others.
HEADER = '%llguidance {"no_forcing": true}\n'
#: Between the parts of a JSON text: as much as indented JSON needs, but not without end, or a model may write nothing but blanks.
JSON_BLANKS = {"whitespace_pattern": r" |\n[ \t]{0,20}"}
#: Room for rules that are spelled out character by character, over large vocabularies.
LIMITS = llguidance.LLParserLimits(step_max_items=5_000_000, step_lexer_fuel=5_000_000, verbose_errors=False)
#: How many masks are kept, the latest ones: more than the places of a block, to which a draft may be taken back.
KEPT_MASKS = 128


def from_gbnf(text: str) -> str:
    """A grammar in llama.cpp's GBNF -> llguidance's own form. Raises SettingError with the place that cannot be read.

    Left recursion is fine; alternatives that could never end are dropped.
    """
    if not isinstance(text, str) or not text.strip():
        raise SettingError(f"grammar is {text!r:.40}; it must be a text in GBNF with a rule named root")
    try:
        return _to_lark(_Reader(text).rules())
    except RecursionError:
        raise SettingError("the grammar is not valid GBNF: it is nested too deeply") from None


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
        raise SettingError(f"the JSON schema is {schema!r:.40}; it must be an object, such as {{'type': 'object'}}")
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

    tokenizer: the vocabulary as llguidance wants it, see ``LlamaModel.grammar_tokenizer``. source: from :func:`from_gbnf` or
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
        shared = _shared_length(self._read, reply)
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


def _shared_length(one: list[int], other: list[int]) -> int:
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:  # nearly always, and quick
        return high
    while low < high:  # halving, because comparing slices is much quicker than a loop over tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


# ---------------------------------------------------------------------- GBNF


@dataclass(frozen=True)
class _Chars:
    """One character of a set. ``ranges``: the first and last code points of each part of it."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def __str__(self) -> str:
        ranges = "".join(rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in self.ranges)
        return f"/[{'^' if self.negated else ''}{ranges}]/"


@dataclass(frozen=True)
class _Rule:
    """A rule by its name."""

    name: str


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Choice:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeated:
    part: _Node
    least: int
    most: int | None  # None: without end


_Node: TypeAlias = _Chars | _Rule | _Sequence | _Choice | _Repeated

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANKS = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:\s|#[^\r\n]*)*")
_REPETITION = re.compile(r"[*+?]|\{\s*([0-9]{1,9})\s*(?:(,)\s*([0-9]{0,9})\s*)?\}")
_CHARACTER = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([trn\\\"\[\]]))|([^\\\r\n])")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
_ANY = _Chars(((0, 0x10FFFF),))


class _Reader:
    """A GBNF text, read from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._mentioned: dict[str, int] = {}  # rule -> where it is asked for

    def rules(self) -> dict[str, _Node]:
        """Every rule by its name."""
        found: dict[str, _Node] = {}
        self._skip(_BLANK_LINES)
        while self._at < len(self._text):
            start = self._at
            name = self._name()
            if name in found:
                self._fail(f"rule {name!r} is defined twice", start)
            self._skip(_BLANKS)
            self._expect("::=")
            self._skip(_BLANK_LINES)
            found[name] = self._choice(_BLANKS)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self._fail("a rule, or the end of a line, was expected here")
            self._skip(_BLANK_LINES)
        if "root" not in found:
            raise SettingError("the grammar is not valid GBNF: it has no rule named root")
        for name, place in self._mentioned.items():
            if name not in found:
                self._fail(f"there is no rule named {name!r:.40}", place)
        return found

    def _choice(self, blanks: re.Pattern[str]) -> _Node:
        parts = [self._sequence(blanks)]
        while self._peek() == "|":
            self._at += 1
            self._skip(_BLANK_LINES)
            parts.append(self._sequence(blanks))
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _sequence(self, blanks: re.Pattern[str]) -> _Node:
        parts: list[_Node] = []
        while (part := self._part()) is not None:
            self._skip(blanks)
            while repetition := _REPETITION.match(self._text, self._at):
                part = self._repeated(part, repetition)
                self._skip(blanks)
            parts.append(part)
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _part(self) -> _Node | None:
        start = self._at
        following = self._peek()
        if following == '"':
            return _Sequence(tuple(_Chars(((code, code),)) for code in self._until('"')))
        if following == "[":
            return self._set()
        if following == "(":
            self._at += 1
            self._skip(_BLANK_LINES)
            group = self._choice(_BLANK_LINES)
            self._expect(")")
            return group
        if following == ".":
            self._at += 1
            return _ANY
        if _NAME.match(self._text, start):
            name = self._name()
            self._mentioned.setdefault(name, start)
            return _Rule(name)
        return None

    def _repeated(self, part: _Node, repetition: re.Match[str]) -> _Node:
        counts = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(repetition[0])
        if counts is None:
            least = int(repetition[1])
            most = least if not repetition[2] else int(repetition[3]) if repetition[3] else None
            if most is not None and most < least:
                self._fail(f"{repetition[0]} asks for at most {most} and at least {least}")
            counts = least, most
        self._at = repetition.end()
        return _Repeated(part, *counts)

    def _set(self) -> _Chars:
        start = self._at
        negated = self._text.startswith("[^", start)
        self._at += negated
        ranges: list[tuple[int, int]] = []
        characters = self._until("]")
        for first in characters:
            last = first
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = next(characters)
            if last < first:
                self._fail("a range of characters ends before it begins", start)
            ranges.append((first, last))
        if not ranges and not negated:
            self._fail("this set of characters is empty", start)
        return _Chars(tuple(ranges), negated) if ranges else _ANY

    def _until(self, closing: str) -> Iterator[int]:
        """The code points of the characters behind this one, up to and with the closing one."""
        start = self._at
        self._at += 1
        while self._peek() != closing:
            character = _CHARACTER.match(self._text, self._at)
            if not character:
                self._fail(
                    "unknown escape" if self._peek() == "\\" else f"{self._text[start]} is not closed",
                    None if self._peek() == "\\" else start,
                )
            *codes, escaped, plain = character.groups()
            code = next((int(digits, 16) for digits in codes if digits), None)
            code = ord(_ESCAPES.get(escaped, escaped) if escaped else plain) if code is None else code
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                self._fail("this is no character")
            self._at = character.end()
            yield code
        self._at += 1

    def _name(self) -> str:
        name = _NAME.match(self._text, self._at)
        if not name:
            self._fail("a rule's name was expected here")
        self._at = name.end()
        return name[0]

    def _expect(self, what: str) -> None:
        if not self._text.startswith(what, self._at):
            self._fail(f"{what} was expected here")
        self._at += len(what)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, blanks: re.Pattern[str]) -> None:
        match = blanks.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _fail(self, reason: str, place: int | None = None) -> NoReturn:
        place = self._at if place is None else place
        line = self._text.count("\n", 0, place) + 1
        raise SettingError(f"the grammar is not valid GBNF: {reason}, in line {line} at {self._text[place : place + 20]!r}")


def _to_lark(rules: Mapping[str, _Node]) -> str:
    """The rules in llguidance's dialect of Lark, spelled out character by character.

    Where no rule comes back to itself all of them are one pattern, for which there is a quick automaton. Raises SettingError when
    nothing satisfies the root.
    """
    ends: set[str] = set()  # the rules of which at least one sentence ends
    while more := {name for name, node in rules.items() if name not in ends and _pruned(node, ends) is not None}:
        ends |= more
    if "root" not in ends:
        raise SettingError("no text satisfies the grammar: no way through its rule root ever ends")
    used: dict[str, _Node] = {}
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name not in used and (node := _pruned(rules[name], ends)) is not None:
            used[name] = node
            waiting += _mentioned(node)
    # Names of patterns are written in capitals.
    spelled = {name: f"{'r' if _comes_back(used) else 'R'}{i}" for i, name in enumerate(used)}
    lines = [f"{spelled[name]}: {_spelled(node, spelled)}" for name, node in used.items()]
    return "\n".join([HEADER + f"start: {spelled['root']}", *lines, ""])


def _pruned(node: _Node, ends: set[str]) -> _Node | None:
    """The node without what can never end; None if that is all of it."""
    if isinstance(node, _Rule):
        return node if node.name in ends else None
    if isinstance(node, _Sequence):
        parts = [_pruned(part, ends) for part in node.parts]
        return None if None in parts else _Sequence(tuple(part for part in parts if part is not None))
    if isinstance(node, _Choice):
        left = [part for part in (_pruned(part, ends) for part in node.parts) if part is not None]
        return _Choice(tuple(left)) if left else None
    if isinstance(node, _Repeated):
        part = _pruned(node.part, ends)
        if part is None or node.most == 0:
            return None if node.least else _Sequence(())
        return _Repeated(part, node.least, node.most)
    return None if node.negated and _covers_all(node.ranges) else node


def _covers_all(ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether no character lies outside the ranges. The codes D800 to DFFF are none."""
    reached = 0
    for low, high in sorted([*ranges, (0xD800, 0xDFFF)]):
        if low > reached:
            return False
        reached = max(reached, high + 1)
    return reached > 0x10FFFF


def _mentioned(node: _Node) -> set[str]:
    if isinstance(node, _Rule):
        return {node.name}
    parts = node.parts if isinstance(node, (_Sequence, _Choice)) else (node.part,) if isinstance(node, _Repeated) else ()
    return {name for part in parts for name in _mentioned(part)}


def _comes_back(rules: Mapping[str, _Node]) -> bool:
    """Whether some rule mentions itself, over others or not."""
    left = {name: _mentioned(node) for name, node in rules.items()}
    while ready := [name for name, mentioned in left.items() if not mentioned & left.keys()]:
        for name in ready:
            del left[name]
    return bool(left)


def _spelled(node: _Node, names: Mapping[str, str]) -> str:
    if isinstance(node, _Chars):
        return str(node)
    if isinstance(node, _Rule):
        return names[node.name]
    if isinstance(node, _Repeated):
        return f"({_spelled(node.part, names)}){{{node.least},{'' if node.most is None else node.most}}}"
    between = " " if isinstance(node, _Sequence) else " | "
    return f"({between.join(_spelled(part, names) for part in node.parts)})" if node.parts else '""'
