from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import speccascade_local as sc
from speccascade_local.common.errors import SettingError, UnwantedError
from speccascade_local.tokens import grammar as grammar_module
from speccascade_local.tokens import grammar_pool, json_schema
from speccascade_local.tokens.gbnf import from_gbnf
from speccascade_local.tokens.grammar import KEPT_MASKS, Grammar
from speccascade_local.tokens.grammar_pool import MatcherPool
from speccascade_local.tokens.json_schema import from_json_schema
from speccascade_local.tokens.sampler import Mask

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "cats", 1, 12]},
        "age": {"type": "integer", "minimum": -3, "maximum": 120},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "kind", "age", "ok"],
    "additionalProperties": False,
}
NESTED = 'root ::= "[" (root ("," root)*)? "]" | [a-z]{1,3}'


class Words:
    """What the ids of the bundled pair's tokenizer stand for; ends of text and control tokens stand for nothing."""

    def __init__(self, runtime: sc.Runtime) -> None:
        model = runtime._model
        self.tokenizer, self.n_vocab = model.tokenizer.for_grammars, runtime.n_vocab
        self.pieces = [model.tokenizer.piece(token) for token in range(self.n_vocab)]
        self.ends = [token for token in range(self.n_vocab) if model.tokenizer.is_end(token)]
        self.of_byte = {piece[0]: token for token, piece in enumerate(self.pieces) if len(piece) == 1}

    def gbnf(self, text: str) -> Grammar:
        return Grammar(self.tokenizer, from_gbnf(text), self.n_vocab)

    def schema(self, schema: object) -> Grammar:
        return Grammar(self.tokenizer, from_json_schema(schema), self.n_vocab)

    def spell(self, text: bytes, rng: np.random.Generator | None = None) -> list[int]:
        """Tokens that make the text, chosen at random; without ``rng`` byte by byte."""
        ids: list[int] = []
        while text:
            fitting = [token for token, piece in enumerate(self.pieces) if piece and text.startswith(piece)]
            ids.append(int(rng.choice(fitting)) if rng else self.of_byte[text[0]])
            text = text[len(self.pieces[ids[-1]]) :]
        return ids

    def mask(self, text: bytes, begins: Callable[[bytes], bool], complete: Callable[[bytes], bool]) -> Mask:
        """By brute force: every token is asked whether it may continue the text."""
        return np.array(
            [complete(text) if token in self.ends else bool(piece) and begins(text + piece) for token, piece in enumerate(self.pieces)]
        )

    def accepts(self, grammar: Grammar, text: str) -> bool:
        """Whether the text can be written to its end."""
        ids = self.spell(text.encode())
        for j, token in enumerate(ids):
            if not grammar.allowed(ids[:j])[token]:
                return False
        return bool(grammar.allowed(ids)[self.ends].all())

    def walk(self, grammar: Grammar, start: list[int], length: int, rng: np.random.Generator) -> list[int]:
        """A reply that continues ``start`` by tokens that are allowed, up to ``length`` tokens or an end of text."""
        reply = list(start)
        while len(reply) < length:
            allowed = np.flatnonzero(grammar.allowed(reply))
            going_on = [token for token in allowed if token not in self.ends]
            if not going_on:
                break
            reply.append(int(rng.choice(going_on)))
        return reply


@pytest.fixture(scope="session")
def words(demo) -> Words:
    return Words(demo)


# ---------------------------------------------------------------------- small grammars with all their sentences

Spelled = tuple[str, frozenset[str]]  # GBNF, and the language


def _literals() -> st.SearchStrategy[Spelled]:
    texts = st.text("the é", max_size=3)
    return st.one_of(
        texts.map(lambda text: (f'"{text}"', frozenset([text]))),
        st.sets(st.sampled_from("theé"), min_size=1).map(lambda chars: (f"[{''.join(sorted(chars))}]", frozenset(chars))),
    )


def _joined(one: Iterable[str], other: Iterable[str]) -> frozenset[str]:
    return frozenset(x + y for x in one for y in other)


def _larger(parts: st.SearchStrategy[Spelled]) -> st.SearchStrategy[Spelled]:
    def repeat(part: Spelled, least: int, more: int) -> Spelled:
        found, power = set[str](), frozenset([""])
        for count in range(least + more + 1):
            found |= power if count >= least else set()
            power = _joined(power, part[1])
        return f"({part[0]}){{{least},{least + more}}}", frozenset(found)

    return st.one_of(
        st.tuples(parts, parts).map(lambda pair: (f"{pair[0][0]} {pair[1][0]}", _joined(pair[0][1], pair[1][1]))),
        st.tuples(parts, parts).map(lambda pair: (f"({pair[0][0]} | {pair[1][0]})", pair[0][1] | pair[1][1])),
        parts.map(lambda part: (f"({part[0]})?", part[1] | {""})),
        st.builds(repeat, parts, st.integers(0, 2), st.integers(0, 2)),
    )


finite = st.recursive(_literals(), _larger, max_leaves=5)


@settings(max_examples=60)
@given(body=finite, named=st.booleans(), endless=st.booleans(), seed=st.integers(0, 999))
def test_a_token_is_allowed_iff_its_text_begins_a_sentence_and_the_end_iff_the_sentence_is_complete(words, body, named, endless, seed):
    """endless: a rule that comes back to itself, which is read in another way."""
    spelled, language = body
    assume(len(language) < 80)
    sentences = {sentence.encode() for sentence in language}
    beginnings = {sentence[:i] for sentence in sentences for i in range(len(sentence) + 1)}

    def begins(text: bytes) -> bool:
        head = text.rstrip(b"~") if endless else text
        return head in beginnings if head == text else head in sentences

    def complete(text: bytes) -> bool:
        return (text.rstrip(b"~") if endless else text) in sentences

    gbnf = f"root ::= {'body' if named else f'({spelled})'} {'tail' if endless else ''}\nbody ::= {spelled}\n"
    gbnf += 'tail ::= "" | "~" tail\n'
    grammar, rng = words.gbnf(gbnf), np.random.default_rng(seed)
    for text in rng.permutation(np.array(sorted(beginnings), dtype=object))[:6]:
        for tail in (b"", b"~~") if endless and text in sentences else (b"",):
            allowed = grammar.allowed(words.spell(text + tail, rng))
            np.testing.assert_array_equal(allowed, words.mask(text + tail, begins, complete))


@pytest.mark.parametrize(
    ("gbnf", "sentences"),
    [
        ('root ::= ("a" | "ab") "bc"', ["abc", "abbc"]),
        ('root ::= the "!"?\nthe ::= "the"', ["the", "the!"]),
        ('root ::= "a" | "b" x\nx ::= "c" x', ["a"]),  # what begins with b would never end
        ('root ::= "a" | "b" [^\\x00-\\U0010FFFF]', ["a"]),
        ('root ::= "é" | "è" | "😀"', ["é", "è", "😀"]),
        ('root ::= "a" root{0} | "b"', ["a", "b"]),
        ("root ::=", [""]),
    ],
)
def test_masks_are_those_of_a_brute_force_check_in_cases_that_are_easy_to_get_wrong(words, gbnf, sentences):
    complete = {sentence.encode() for sentence in sentences}
    beginnings = {sentence[:i] for sentence in complete for i in range(len(sentence) + 1)}
    for text in beginnings:
        expected = words.mask(text, beginnings.__contains__, complete.__contains__)
        np.testing.assert_array_equal(words.gbnf(gbnf).allowed(words.spell(text)), expected)


@pytest.mark.parametrize(
    ("gbnf", "written", "refused"),
    [
        ('root ::= "\\x41\\u00e9\\U0001F600\\n\\t\\"\\\\"', ['Aé😀\n\t"\\'], ["A"]),
        ("root ::= [\\]\\[\\\\\\x2d]", ["]", "[", "\\", "-"], ["x", ""]),
        ("root ::= [+--]", ["+", ",", "-"], ["."]),
        ("root ::= [a-]", ["a", "-"], ["b"]),
        ("root ::= [a-c/&&~]", ["a", "b", "/", "&", "~"], ["d"]),
        ('root ::= [^"\\n^]', ["a", "é", "\\"], ['"', "\n", "^", ""]),
        ("root ::= [^]", ["a", "\n"], [""]),
        ("root ::= .", ["a", "\n", "😀"], ["", "ab"]),
        ('root ::= "ab"{2}', ["abab"], ["ab", "abb", "ababab"]),
        ('root ::= "a"{2,}', ["aa", "aaaa"], ["a"]),
        ('root ::= "a"{ 1 , 2 }', ["a", "aa"], ["", "aaa"]),
        ('root ::= "a"+ "b"* "c"?', ["a", "aabbc"], ["bc", "acc"]),
        ('root ::= ("a"*)* "b"?+', ["", "aab", "bb"], ["ba"]),
        ('# first\nroot ::= # here\n  "a" (\n  b-1 | # there\n  "c"\n)\r\n\r\nb-1 ::= "b" |\n "d"', ["ab", "ac", "ad"], ["a"]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["a"]),
        ('root ::= x "." | y\nx ::= y "a" | "c"\ny ::= x "b"', ["c.", "cb", "cba.", "cbab"], ["c", "."]),
        ("root ::= unused2 | [x]\nunused2 ::= unused2", ["x"], [""]),
        (NESTED, ["[]", "[[],abc,[x]]", "q"], ["[", "[abcd]", "[,]"]),
        ('root ::= "(" root ")" root | ""', ["", "(())()"], ["(", ")"]),
    ],
)
def test_gbnf_is_read_as_llama_cpp_reads_it(words, gbnf, written, refused):
    grammar = words.gbnf(gbnf)
    assert [text for text in [*written, *refused] if words.accepts(grammar, text)] == written


# ---------------------------------------------------------------------- replies that grow and are taken back

SOURCES = {
    "record": from_json_schema(RECORD),
    "any JSON": from_json_schema(True),
    "nested": from_gbnf(NESTED),
    "overlapping": from_gbnf('root ::= "h"? "hee" root | "a" | ("h" | "he")* "~"'),
    "free": from_gbnf('root ::= ("a" | "ab" | "the " | [x-z])*'),
}


@pytest.mark.slow
@settings(max_examples=60)
@given(
    source=st.sampled_from(sorted(SOURCES)), moves=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=8), data=st.data()
)
def test_a_mask_is_that_of_a_fresh_grammar_however_the_reply_grew_and_was_taken_back(words, source, moves, data):
    used, rng = Grammar(words.tokenizer, SOURCES[source], words.n_vocab), np.random.default_rng(data.draw(st.integers(0, 999)))
    seen: list[list[int]] = [[]]
    for cut, growth in moves:
        kept = seen[-1][: max(0, len(seen[-1]) - cut)]
        writer = used if data.draw(st.booleans()) else Grammar(words.tokenizer, SOURCES[source], words.n_vocab)
        seen.append(words.walk(writer, kept, len(kept) + growth, rng))
        for reply in (seen[-1], data.draw(st.sampled_from(seen))):
            fresh = Grammar(words.tokenizer, SOURCES[source], words.n_vocab).allowed(reply)
            np.testing.assert_array_equal(used.allowed(reply), fresh)


def test_a_reply_may_be_taken_back_by_more_than_the_masks_that_are_kept(words):
    grammar, rng = words.gbnf('root ::= "a"{0,200} ([x-z] "b"?)*'), np.random.default_rng(1)
    reply = words.walk(grammar, [], 3 * KEPT_MASKS, rng)
    asked = {place: grammar.allowed(reply[:place]) for place in (2 * KEPT_MASKS, 5, 3 * KEPT_MASKS, 0, 2 * KEPT_MASKS + 1)}
    assert len(grammar._masks) <= KEPT_MASKS
    for place, mask in asked.items():
        np.testing.assert_array_equal(mask, words.gbnf('root ::= "a"{0,200} ([x-z] "b"?)*').allowed(reply[:place]))


def test_a_token_that_is_rolled_back_leaves_no_trace_in_later_masks(words):
    """llguidance's own rollback forgets that "ee" may follow, once a mask was made after the token that is rolled back."""
    gbnf = 'root ::= "h"? "hee" tail\ntail ::= "" | "~" tail'
    grammar, (h, e) = words.gbnf(gbnf), words.spell(b"he")
    grammar.allowed([h, e])
    np.testing.assert_array_equal(grammar.allowed([h, h]), words.gbnf(gbnf).allowed([h, h]))


def test_a_long_reply_is_read_once_but_for_what_was_dropped(words, monkeypatch):
    """Blocks of 5 by the drafter and then the expert; every other draft loses its last 3 tokens."""
    grammar = words.gbnf('root ::= ("a" | "b")*')
    ask, counts = grammar._child.ask, {"held": 0, "read": 0, "forgotten": 0}

    def counting(request: Mapping[str, Any], *limits: Any) -> dict[str, Any]:
        counts["forgotten"] += counts["held"] - request["keep"]
        counts["read"] += len(request["tokens"])
        counts["held"] = request["keep"] + len(request["tokens"])
        return ask(request, *limits)

    monkeypatch.setattr(grammar._child, "ask", counting)
    a, b = words.spell(b"ab")
    reply: list[int] = []
    drops = 0
    while len(reply) < 2_000:
        drafted = [a] * 5
        for _ in ("drafter", "expert"):
            for j in range(6):
                grammar.allowed([*reply, *drafted[:j]])
        lost = len(reply) % 2
        reply += [a, a, b] if lost else [*drafted, b]
        drops += lost
    grammar.allowed(reply)
    assert counts == {"held": len(reply), "read": len(reply) + 3 * drops, "forgotten": 3 * drops}


def test_a_reply_that_breaks_the_grammar_is_refused_and_leaves_it_usable(words, capfd):
    grammar = words.gbnf('root ::= "ab" "c"*')
    good, bad = words.spell(b"ab"), words.spell(b"aq")
    before = grammar.allowed(good).copy()
    for broken in (bad, [*good, *bad], [*good, words.ends[0], good[0]]):
        with pytest.raises(SettingError, match="breaks the grammar or schema after"):
            grammar.allowed(broken)
        np.testing.assert_array_equal(grammar.allowed(good), before)
    assert capfd.readouterr() == ("", "")


def test_a_mask_cannot_be_changed_by_who_asked_for_it(words):
    with pytest.raises(ValueError, match="read-only"):
        words.gbnf('root ::= "a"').allowed([])[0] = True


# ---------------------------------------------------------------------- schemas


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 9999))
def test_the_end_of_a_json_text_is_allowed_exactly_where_it_is_valid(words, seed):
    grammar = words.schema(RECORD)
    reply = words.walk(grammar, [], 400, np.random.default_rng(seed))
    jsonschema.validate(json.loads(b"".join(words.pieces[token] for token in reply)), RECORD)
    for place in range(len(reply) + 1):
        text = b"".join(words.pieces[token] for token in reply[:place]).decode(errors="replace")
        try:
            jsonschema.validate(json.loads(text), RECORD)
            complete = True
        except ValueError:
            complete = False
        np.testing.assert_array_equal(grammar.allowed(reply[:place])[words.ends], complete)


@pytest.mark.parametrize(
    ("schema", "written", "refused"),
    [
        ({"enum": ["the", "them", 1, 12]}, ['"the"', '"them"', "1", "12"], ["the", "2", '"th"']),
        ('{"type": "boolean"}', ["true", "false"], ["null"]),
        (MappingProxyType({"type": "null"}), ["null"], ["0"]),
        (True, ["null", '{"a": [1, {}]}', '{\n  "a": [\n    1\n  ]\n}'], ["{", '{"a":' + 9 * " \n" + "1}"]),
        ({"type": "array", "items": {"type": "integer"}, "x-guidance": {"whitespace_flexible": False}}, ["[1,2]"], ["[1, 2]"]),
        ({"type": "array", "x-guidance": {"whitespace_pattern": " *"}}, ["[1,     2]"], ["[1,\n2]"]),
    ],
    ids=str,
)
def test_a_schema_says_which_texts_can_be_written_with_blanks_that_come_to_an_end(words, schema, written, refused):
    grammar = words.schema(schema)
    assert [text for text in [*written, *refused] if words.accepts(grammar, text)] == written


# ---------------------------------------------------------------------- what cannot be used


def refusal(use: Callable[[], object]) -> str:
    with pytest.raises(SettingError) as caught:
        use()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    message = str(caught.value)
    assert "\n" not in message
    assert "<state>" not in message
    assert "%llguidance" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("gbnf", "message"),
    [
        ("", "it must be a text in GBNF with a rule named root"),
        (" \n", "it must be a text in GBNF with a rule named root"),
        (5, "grammar is 5; it must be a text"),
        (None, "grammar is None; it must be a text"),
        ('start ::= "a"', "no rule named root"),
        ("# nothing but a comment", "no rule named root"),
        ("root ::= root", "no text satisfies the grammar"),
        ('root ::= "a" root', "no text satisfies the grammar"),
        ('root ::= root "a"', "no text satisfies the grammar"),
        ('root ::= x\nx ::= y "a"\ny ::= x', "no text satisfies the grammar"),
        ("root ::= [^\\x00-\\uD7FF\\uE000-\\U0010FFFF]", "no text satisfies the grammar"),
        ('root ::= "a" missing', "no rule named 'missing', in line 1 at 'missing'"),
        ('root ::= "a"\nother ::= gone', "no rule named 'gone', in line 2"),
        ('root ::= "a"\nroot ::= "b"', "rule 'root' is defined twice, in line 2"),
        ('root = "a"', "::= was expected here, in line 1 at '= \"a\"'"),
        ('::= "a"', "a rule's name was expected here"),
        ('root ::= "a', '" is not closed, in line 1'),
        ("root ::= [ab", "[ is not closed"),
        ("root ::= [a-", "[ is not closed"),
        ('root ::= ("a"', ") was expected here"),
        ('root ::= "a")', "a rule, or the end of a line, was expected here"),
        ('root ::= *"a"', "a rule, or the end of a line, was expected here"),
        ('root ::= "a"{,3}', "expected here, in line 1 at '{,3}'"),
        ('root ::= "a"{' + 5000 * "9" + "}", "expected here"),
        ('root ::= "a"{3,2}', "{3,2} asks for at most 2 and at least 3"),
        ("root ::= []", "this set of characters is empty"),
        ("root ::= [z-a]", "ends before it begins, in line 1 at '[z-a]'"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\x4"', "unknown escape"),
        ('root ::= "\\uD800"', "this is not a character"),
        ('root ::= "\ud800"', "this is not a character"),
        ('root ::= "\\U00110000"', "this is not a character"),
        ("root ::= " + 5000 * "(" + '"a"' + 5000 * ")", "nested too deeply"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_in_one_clear_line(words, gbnf, message):
    assert message in refusal(lambda: words.gbnf(gbnf))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        (100_000 * "[", "not valid JSON"),
        ("[]", "the JSON schema is []; it must be an object"),
        (7, "the JSON schema is 7; it must be an object"),
        (None, "the JSON schema is None; it must be an object"),
        ({"const": {1, 2}}, "set is not JSON serializable"),
        ({"const": float("nan")}, "not JSON compliant"),
        ({"x-guidance": 5}, "invalid type: integer `5`"),
        (False, "schema is false"),
        ("false", "schema is false"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum (3) is greater than maximum (2)"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"type": "text"}, "Invalid type: text"),
        ({"type": 5}, "type must be a string"),
        ({"$ref": "#"}, "nothing that this vocabulary can say satisfies it"),
        ({"$ref": "#/nowhere"}, "'/nowhere' does not exist"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "required property 'a' is unsatisfiable"),
    ],
    ids=lambda value: f"{value!s:.60}",
)
def test_a_schema_that_cannot_be_used_is_refused_in_one_clear_line(words, schema, message):
    assert message in refusal(lambda: words.schema(schema))


def test_a_schema_that_holds_itself_is_refused():
    schema: dict[str, object] = {}
    schema["items"] = schema
    assert "Circular reference" in refusal(lambda: from_json_schema(schema))


def few_words(*pieces: bytes) -> Mapping[str, Any]:
    """A vocabulary of an end of text and a few words, without single bytes."""
    return {"pool": MatcherPool([b"</s>", *pieces], [0]), "n_vocab": 1 + len(pieces)}


def test_a_grammar_whose_characters_no_token_can_make_is_refused():
    vocabulary = few_words(b"a", b"b", b"ab")
    for unsayable in (from_gbnf('root ::= "x"'), from_json_schema(True)):
        assert "nothing that this vocabulary can say satisfies it" in refusal(partial(Grammar, source=unsayable, **vocabulary))
    cropped = {**vocabulary, "n_vocab": 1}
    assert "nothing that this vocabulary can say satisfies it" in refusal(lambda: Grammar(source=from_gbnf('root ::= "ab"'), **cropped))
    np.testing.assert_array_equal(Grammar(source=from_gbnf('root ::= "ab"'), **vocabulary).allowed([]), [0, 1, 0, 1])


def test_masks_are_cropped_to_the_ids_that_both_models_have(words):
    whole, cropped = words.schema(True).allowed([]), Grammar(words.tokenizer, from_json_schema(True), 40).allowed([])
    np.testing.assert_array_equal(cropped, whole[:40])


# ---------------------------------------------------------------------- what takes too much


def chain(length: int, *, backwards: bool = False) -> str:
    """Rules that each ask for the next one only."""
    rules = [f"r{n} ::= r{n - 1}" for n in range(1, length)]
    return "\n".join([f"root ::= r{length - 1}", *(rules if backwards else rules[::-1]), 'r0 ::= "a"'])


def referring(length: int, link: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
    """Schemas that each refer to the next one. link: how."""
    return {"$ref": "#/$defs/0", "$defs": {str(n): link(f"#/$defs/{n + 1}") for n in range(length)} | {str(length): {"type": "null"}}}


LINKS: dict[str, Callable[[str], Mapping[str, Any]]] = {
    "objects": lambda place: {"type": "object", "properties": {"a": {"$ref": place}}, "required": ["a"]},
    "lists": lambda place: {"type": "array", "items": {"$ref": place}},
    "references": lambda place: {"$ref": place},
}


@pytest.mark.parametrize("backwards", [False, True])
def test_rules_that_ask_for_one_another_too_long_are_refused_and_fewer_are_not(words, backwards):
    assert "over 5500 steps; at most 1000" in refusal(lambda: from_gbnf(chain(5500, backwards=backwards)))
    assert words.accepts(words.gbnf(chain(900, backwards=backwards)), "a")


@pytest.mark.slow
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_references_that_follow_one_another_too_long_are_refused_and_fewer_are_not(words, link):
    assert "schemas deep" in refusal(lambda: from_json_schema(referring(3_000, link)))
    assert "more than 20000 schemas" in refusal(lambda: from_json_schema(referring(30_000, link)))
    assert words.schema(referring(300, link)).allowed([]).any()


def test_a_grammar_whose_process_dies_is_refused_and_the_next_one_compiles(words):
    grammar, a = words.gbnf('root ::= "a"*'), words.spell(b"a")
    grammar._child.process.kill()
    grammar._child.process.wait()
    assert "brought down its process (signal 9)" in refusal(lambda: grammar.allowed(a))
    assert words.accepts(words.gbnf('root ::= "a"'), "a")


@pytest.mark.slow
@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949, 9941)]},
        {"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{n}}}$"} for n in range(199)]},
    ],
)
def test_a_grammar_that_takes_too_long_or_too_much_is_refused(words, schema, monkeypatch):
    monkeypatch.setattr(grammar_module, "COMPILE_S", 0.3)
    assert "does not finish within 0.3 seconds" in refusal(lambda: words.schema(schema))
    monkeypatch.setattr(grammar_module, "COMPILE_S", 60.0)
    monkeypatch.setattr(grammar_pool, "MEMORY_BYTES", 60_000_000)
    small = MatcherPool([b"</s>", *(bytes([byte]) for byte in range(32, 127))], [0])
    assert "needs more than 60 MB of memory" in refusal(lambda: Grammar(small, from_json_schema(schema), 96))


def test_all_masks_of_an_answer_together_have_a_limit(words, monkeypatch):
    grammar, a = words.gbnf('root ::= "a"*'), words.spell(b"a")
    monkeypatch.setattr(grammar_module, "MASKS_S", 0.0)
    monkeypatch.setattr(grammar_module, "MASKS_PER_TOKEN_S", 0.0)
    assert "of computing for 1 tokens; make it simpler" in refusal(lambda: grammar.allowed(a))


@pytest.mark.parametrize(
    ("value", "passes"), [(7, True), (0.01, True), (100_000, True), (1e5, True), (100_003, False), (1e9, False), (1.2345678, False)]
)
def test_multiples_are_as_large_as_can_be_computed(value, passes):
    schema = {"properties": {"a": {"items": [{"type": "number", "multipleOf": value}]}}}
    if passes:
        from_json_schema(schema)
    else:
        assert "multipleOf is" in refusal(lambda: from_json_schema(schema))


def test_a_caller_that_gives_up_does_not_wait_for_a_grammar(words):
    slow = from_json_schema({"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949, 9941)]})
    gone = threading.Event()
    threading.Timer(0.2, gone.set).start()
    with pytest.raises(UnwantedError):
        Grammar(words.tokenizer, slow, words.n_vocab, gone.is_set)


@pytest.mark.slow
def test_a_process_serves_one_grammar_after_the_other_and_waits_only_for_a_while(monkeypatch):
    vocabulary = few_words(b"a", b"b")
    pool, children = vocabulary["pool"], []
    for text in "abab":
        grammar = Grammar(source=from_gbnf(f'root ::= "{text}"'), **vocabulary)
        children.append(grammar._child)
        del grammar
    assert len({id(child) for child in children}) == 1
    monkeypatch.setattr(grammar_pool, "IDLE_S", 0.0)
    pool.give_back(pool.take(lambda: False))
    children[0].process.wait(60)


# ---------------------------------------------------------------------- annotations


@pytest.mark.parametrize("kept", sorted(json_schema.FORMATS))
def test_the_formats_that_are_kept_are_those_that_hold(words, kept):
    """An older or newer llguidance that knows fewer would say so here."""
    grammar = words.schema({"type": "string", "format": kept})
    assert not words.accepts(grammar, '"~"')


@pytest.mark.parametrize("note", ["path", "binary", "password", "int32", "byte", "phone", "regex", "uri-reference", "made-up"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda schema: schema,
        lambda schema: {"anyOf": [schema, {"type": "null"}]},
        lambda schema: {"type": "array", "items": schema},
        lambda schema: {"$ref": "#/components/a~1b", "components": {"a/b": schema}},
    ],
)
def test_a_format_that_is_only_a_note_changes_nothing(words, note, wrap):
    with_note, without = (words.schema(wrap({"type": "string", **more})) for more in ({"format": note}, {}))
    np.testing.assert_array_equal(with_note.allowed([]), without.allowed([]))


def test_what_only_looks_like_a_format_stays(words):
    schema = {
        "type": "object",
        "properties": {"format": {"const": {"format": "path"}}},
        "required": ["format"],
        "additionalProperties": False,
    }
    assert words.accepts(words.schema(schema), '{"format": {"format": "path"}}')
    assert not words.accepts(words.schema(schema), '{"format": {}}')


def test_a_schema_of_the_caller_stays_as_it_was():
    schema = {"type": "string", "format": "path", "uniqueItems": False}
    from_json_schema(schema)
    assert schema == {"type": "string", "format": "path", "uniqueItems": False}
