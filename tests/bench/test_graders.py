from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.bench import graders
from speccascade_local.bench.graders import METRICS, last_number, rouge_l
from speccascade_local.common.errors import CatalogError

CASES = [
    ("exact", " Paris.\n", ["Paris."], 1),
    ("exact", "paris.", ["Paris."], 0),
    ("exact", "b", ["a", "b"], 1),
    ("contains", "It is PARIS, of course", ["paris"], 1),
    ("contains", "It is Rome", ["Paris", "Lyon"], 0),
    ("numeric", "3 x 8 = 24. 24 - 14 = 10. The answer is 10.", ["The answer is 10."], 1),
    ("numeric", "The answer is 1,000.50 dollars", ["1000.5"], 1),
    ("numeric", "The answer is 24", ["8 x 3 = 24. 24 - 14 = 10."], 0),
    ("numeric", "minus: -4", ["-4.0"], 1),
    ("numeric", "10-4", ["4"], 1),
    ("numeric", "none at all", ["4"], 0),
    ("numeric", "none at all", ["none either"], 0),
    ("regex", "the cat\nsat", ["^sat$"], 1),
    ("regex", "the cat", ["dog|cow"], 0),
    ("regex", "é😀\u2028x", ["^é.\\u2028", "nothing"], 1),
    ("numeric", "9" * 10_000, ["9" * 10_000 + ".0"], 1),
    ("numeric", "it is 1" + ",000" * 3000, ["1" + "0" * 9000], 1),
    ("numeric", "NaN Infinity -inf 1e999", ["999"], 1),
    ("numeric", "٣", ["3"], 1),
    ("numeric", "-" * 100_000 + "," * 100_000, ["4"], 0),
    ("rouge_l", "the cat sat on the mat", ["the cat sat on the mat"], 1),
    ("rouge_l", "The cat!", ["the cat sat"], 0.8),  # common 2, of 2 and 3 words
    ("rouge_l", "sat cat", ["cat sat"], 0.5),  # order counts
    ("rouge_l", "a b c d", ["x", "a x b y"], 0.5),
    ("rouge_l", "", ["x"], 0),
]


@pytest.mark.parametrize(("metric", "text", "references", "expected"), CASES)
def test_examples_are_graded_as_expected(metric, text, references, expected):
    assert METRICS[metric](text, references) == pytest.approx(expected)


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=8)


@given(words, words)
def test_rouge_l_is_by_the_longest_common_subsequence(one, other):
    def longest(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        return 1 + longest(a[1:], b[1:]) if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))

    common = longest(one, other)
    expected = 2 * common / (len(one) + len(other)) if common else 0
    assert rouge_l(" ".join(one), [" ".join(other)]) == pytest.approx(expected)


@given(st.text(), st.lists(st.text(max_size=5), min_size=1, max_size=3))
def test_every_grade_but_that_of_patterns_lies_between_0_and_1(text, references):
    for name, grader in METRICS.items():
        if name != "regex":  # whose references are no patterns here
            assert 0 <= grader(text, references) <= 1


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_read_with_its_commas_and_its_sign(number):
    assert last_number(f"about {number:,}.") == last_number(str(number)) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    ["9" * 300_000, "1," * 150_000, "-1" * 150_000, "1." * 150_000, "a " * 150_000, "a" * 300_000, "[" * 300_000, "\0" * 300_000],
    ids=lambda text: text[:2],
)
def test_repeated_text_is_graded_fast(text):
    for name, reference in (("exact", text), ("contains", "b"), ("numeric", "1"), ("regex", "b$"), ("rouge_l", "a b " * 500)):
        begun = time.perf_counter()
        assert 0 <= METRICS[name](text, [reference]) <= 1
        assert time.perf_counter() - begun < 10


@pytest.mark.slow
def test_a_pattern_that_would_search_forever_is_an_error(monkeypatch):
    monkeypatch.setattr(graders, "SEARCH_S", 1.0)
    with pytest.raises(CatalogError, match=r"'\(a\+\)\+b' in an answer of 60 characters does not finish within 1 s"):
        METRICS["regex"]("a" * 60, ["(a+)+b"])
