"""Split a document into statements, its sentences and rows of tables, and find the words in each that need evidence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt  # rich depends on it
from markdown_it.token import Token

#: The generated sections of a document, which have tests of their own.
GENERATED = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->", re.DOTALL)
SENTENCE_END = re.compile(r"(?:(?<=[.!?])[)\"]?\s+(?=[(\"“]?[A-Z`])|(?<=:)\s+(?=[A-Z][a-z]))")
CODE = re.compile(r"`[^`]*`")
CELLS = " | "

NUMBER_WORDS = "ten|eleven|twelve|twenty|thirty|forty|fifty|sixty|hundred|thousand|million|twice|half"
UNIVERSAL_WORDS = "never|always|every|everything|only|exactly|same"
TRIGGER = re.compile(
    rf"\b(?:{NUMBER_WORDS}|{UNIVERSAL_WORDS})s?\b|(?<![\w.,/@-])[−+-]?\d+(?:[.,]\d+)*(?:th)?(?!\w)",
    re.IGNORECASE,
)
#: Numbers that measure nothing: a setting, a year, the number of a paper, a version.
NAMES = re.compile(
    r"\b(?:temperatures? [01]|T = [01])(?!\.?\d)(?: and 1(?!\.?\d))?"
    r"|\b(?:19|20)\d\d\b|\b\d{4}\.\d{4,5}\b|\bPython \d\.\d+|\b\d+\.\d+\.\d+\b"
)


@dataclass(frozen=True)
class Statement:
    """One sentence, or one row of a table with bars between its cells; without emphasis and without the targets of links."""

    line: int
    text: str
    links: tuple[str, ...] = ()

    def triggers(self) -> list[tuple[int, int]]:
        """Return the spans of the numbers and words that need evidence."""
        plain = _masked(NAMES, _masked(CODE, self.text))
        return [match.span() for match in TRIGGER.finditer(plain)]


@dataclass(frozen=True)
class _Text:
    """A paragraph or cell, with the line of each character, and the end and target of each link."""

    text: str
    lines: list[int]
    links: list[tuple[int, str]]


def statements(markdown: str) -> Iterator[Statement]:
    """Yield the statements of a document, without headings, blocks of code, heads of tables and generated sections."""
    markdown = GENERATED.sub(lambda section: "\n" * section[0].count("\n"), markdown)
    line, opened, row = 0, "", list[_Text]()
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        line = token.map[0] + 1 if token.map else line
        if token.type == "inline" and opened == "paragraph_open":
            yield from _sentences(_read(token, line))
        elif token.type == "inline" and opened == "td_open":
            row.append(_read(token, line))
        elif token.type == "tr_close" and row:
            targets = tuple(target for cell in row for _, target in cell.links)
            yield Statement(line, " ".join(CELLS.join(cell.text for cell in row).split()), targets)
            row.clear()
        opened = token.type


def _read(token: Token, line: int) -> _Text:
    text, lines, links, target = "", list[int](), list[tuple[int, str]](), ""
    for child in token.children or ():
        piece = {"code_inline": f"`{child.content}`", "text": child.content, "softbreak": " "}.get(child.type, "")
        if child.type == "link_open":
            target = str(child.attrs["href"])
        elif child.type == "link_close":
            links.append((len(text), target))
            target = ""
        elif target and piece.isdigit():
            piece = ""  # a link that is called by its number
        text += piece
        lines += [line] * len(piece)
        line += child.type == "softbreak"
    return _Text(text, lines, links)


def _sentences(whole: _Text) -> Iterator[Statement]:
    start = 0
    for end in [*(match.end() for match in SENTENCE_END.finditer(whole.text)), len(whole.text)]:
        if whole.text[start:end].strip():
            targets = tuple(target for at, target in whole.links if start < at <= end)
            yield Statement(whole.lines[start], whole.text[start:end].strip(), targets)
        start = end


def _masked(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda match: "`" * len(match[0]), text)
