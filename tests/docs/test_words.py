"""Documents, docstrings, comments and messages use plain English and the field's words."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Folders whose Python files are checked: comments, docstrings and messages.
CODE = ("scripts/docs",)
#: Not CHANGELOG.md, which is history.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

#: A pattern for words to avoid, and what to say instead.
WORDS = {
    r"tell|tells|telling|told|foretell|foretells|foretold": "say, show, report, print, distinguish or estimate",
    r"mend|mends|mended|mending": "fix",
    r"so many|so much(?! \w+er\b)": "the number: n tokens, up to n, this many",
    r"whoever|whomever": "the caller, or: anyone who",
    r"nobody|somebody|anybody": "no one, a user, another client",
    r"of which|of whom": "a sentence of its own",
    r"(?:is|are|was|were|be) had": "a verb: the interval has, there are",
    r"there (?:is|are) not(?! (?:an?|any|enough|yet|only)\b)": "no: there is no",
    r"anew": "again, or: new",
    r"whichever": "the one that, or: any",
    r"thereof|therein|wherein|whereby|thence|whence": "of it, in it, in which, so",
    r"meanwhile": "while it runs",
    r"beforehand": "before, in advance",
    r"by (?:itself|themselves)": "alone, or: automatically",
    r"(?:go|goes|going|gone|went) on(?! (?:the|an?|one|each|GPUs?|disk)\b)": "continue or resume",
    r"what is written": "the noun: the text, the file",
    r"hinder|hinders|hindered": "slow down, or: block",
    r"comes? to(?= [\d.]+ ?[×%])": "is, reaches",
    r"behind (?:a|an|the|its|each|every) (?:draft|drafts|block|answer|rule|text|word|token|request)": "after",
    r"for ever": "forever",
    r"in the making": "in progress",
    r"be (?:it|they|the \w+) ever so": "however",
    r"colour\w*|favour\w*|behaviour\w*|honour\w*|licence[ds]?": "American spelling: color, favorite, behavior, license",
    r"(?:normali|optimi|initiali|recogni|summari|tokeni|quanti|seriali)s(?:e|es|ed|ing|ation)": "American spelling: -ize",
}
PATTERNS = {re.compile(rf"(?<![\w-])(?:{words})(?![\w-])".replace(" ", r"\s+"), re.IGNORECASE): better for words, better in WORDS.items()}
#: Fenced code, what a script writes between its two comments, code spans and the targets of links.
NO_PROSE = re.compile(r"^```.*?^```|<!-- (\w+) -->.*?<!-- /\1 -->|^ {4,}\S[^\n]*|``[^`]+``|`[^`]+`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"``[^`]+``|`[^`]+`")


def blank_out(pattern: re.Pattern[str], text: str) -> str:
    """Return the text with a blank in place of each character that the pattern matches; line breaks stay."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def complaints(text: str, where: str, first_line: int = 1) -> Iterator[str]:
    """Each word to avoid, as ``file:line: the word: what to use instead``."""
    for pattern, better in PATTERNS.items():
        for match in pattern.finditer(text):
            line = first_line + text.count("\n", 0, match.start())
            yield f"{where}:{line}: {' '.join(match[0].split())!r}: use {better}"


def in_page(markdown: str, where: str) -> Iterator[str]:
    """Complaints about the prose of a page."""
    yield from complaints(blank_out(NO_PROSE, markdown), where)


def in_code(source: str, where: str) -> Iterator[str]:
    """Complaints about comments, docstrings and other literal texts; a literal of one word is a name, and left alone."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from complaints(blank_out(CODE_SPAN, token.string), where, token.start[0])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield from complaints(blank_out(CODE_SPAN, node.value), where, node.lineno)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_plain_words(page):
    assert not list(in_page(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()))


@pytest.mark.parametrize("folder", CODE)
def test_code_uses_plain_words(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert not [each for path in files for each in in_code(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())]


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("The doctor tells what is missing.", "tells"),
        ("It foretold the speed.", "foretold"),
        ("Mends the installation.", "Mends"),
        ("At most so\nmany tokens.", "so many"),
        ("Whoever asks.", "Whoever"),
        ("There is not a rule; there is not memory for it.", "there is not"),
        ("The rule goes on from there.", "goes on"),
        ("It comes to 0.96 × of that.", "comes to"),
        ("Copies behind a draft.", "behind a draft"),
        ("A coloured word.", "coloured"),
        ("Normalise it.", "Normalise"),
    ],
)
def test_a_word_to_avoid_is_reported_once_with_its_line(sentence, word):
    (complaint,) = in_page(f"# Title\n\n{sentence}\n", "page.md")
    assert complaint.startswith("page.md:3: ")
    assert f"'{word}': use " in complaint


@pytest.mark.parametrize(
    "sentence",
    [
        "`told` and `--mend so many` are code.",
        "See [this page](told.md).",
        "```\nas it is told\n```",
        "    scripts/tell it\n",
        "<!-- cli -->\nwhat it tells\n<!-- /cli -->",
        "It is so much faster. Layers go on the GPU. There is not enough memory. An intelligent, amended, four-colorable storyteller.",
    ],
)
def test_code_and_plain_words_are_left_alone(sentence):
    assert not list(in_page(f"{sentence}\n", "page.md"))


def test_comments_docstrings_and_messages_of_code_are_read_and_names_are_not():
    source = '"""Tells it."""\n\ntold = "told"  # so many\nraise ValueError(f"{told} mends it")\n'
    assert [complaint.split(":")[1] for complaint in in_code(source, "module.py")] == ["3", "1", "4"]
