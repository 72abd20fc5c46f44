"""Check that each claim of the documents has its evidence, and write the table of docs/claims.md.

    python scripts/docs/claims.py             # checks, then writes the table
    python scripts/docs/claims.py --missing   # prints lines for scripts/docs/claims.yaml for each sentence that is in no claim yet

scripts/docs/claims.yaml has the claims, page by page. docs/claims.md says what counts as a claim and as evidence.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from evidence import wrong_command, wrong_result, wrong_source, wrong_test, wrong_value
from sections import cell, write_section
from statements import Statement, statements

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "scripts" / "docs" / "claims.yaml"
PAGE = ROOT / "docs" / "claims.md"
KINDS = ("test", "result", "value", "command", "source", "exempt")
#: Reasons why a sentence needs no evidence.
REASONS = ("advice", "definition", "example", "instruction", "navigation", "others")
SHORTEST_PHRASE = 3  # words: a shorter phrase could cover other sentences too


@dataclass(frozen=True)
class Claim:
    """Words of a page, and their evidence by its kind, as in the file."""

    page: str
    phrases: tuple[str, ...]
    evidence: dict[str, Any]

    @property
    def exempt(self) -> bool:
        return "exempt" in self.evidence


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """Return all claims of the file in its order. Exits where an entry has no words or no evidence."""
    claims = []
    for page, entries in (yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader) or {}).items():
        for entry in entries:
            evidence = {kind: value for kind, value in entry.items() if kind != "says"}
            if "says" not in entry or not evidence or not set(evidence) <= set(KINDS):
                sys.exit(f"{path.name}, {page}: {entry} needs 'says' and one or more of {', '.join(KINDS)}")
            claims.append(Claim(page, tuple(" ".join(phrase.split()) for phrase in _as_list(entry["says"])), evidence))
    return claims


def pages(root: Path = ROOT) -> list[str]:
    """Return README.md and all of docs/, as paths from the root."""
    return ["README.md", *(path.relative_to(root).as_posix() for path in sorted((root / "docs").glob("*.md")))]


def unlisted(page: str, claims: list[Claim], root: Path = ROOT) -> Iterator[Statement]:
    """Yield the statements of a page with a number or word that is in no phrase of a claim."""
    phrases = [phrase for claim in claims if claim.page == page for phrase in claim.phrases]
    for statement in statements((root / page).read_text(encoding="utf-8")):
        spans = [(at, at + len(phrase)) for phrase in phrases for at in _places(phrase, statement.text)]
        if not all(any(first <= start and end <= last for first, last in spans) for start, end in statement.triggers()):
            yield statement


def faults(claims: list[Claim], root: Path = ROOT) -> Iterator[str]:
    """Yield all that is wrong, with the place and what to do."""
    for page in sorted({claim.page for claim in claims} - set(pages(root))):
        yield f"claims.yaml: no page {page}; the pages are README.md and docs/*.md"
    for page in pages(root):
        on_page = list(statements((root / page).read_text(encoding="utf-8")))
        for claim in claims:
            if claim.page == page:
                yield from _claim_faults(claim, on_page, root)
        for statement in unlisted(page, claims, root):
            yield (
                f"{page}:{statement.line}: in no claim: {statement.text}\n"
                f"  show it by a test or a result, correct it, or exempt it, in scripts/docs/claims.yaml under {page}:\n"
                f"{suggestion(statement, page, claims, root)}"
            )


def _claim_faults(claim: Claim, on_page: list[Statement], root: Path) -> Iterator[str]:
    for phrase in claim.phrases:
        where = next((statement for statement in on_page if phrase in statement.text), None)
        if len(phrase.split()) < SHORTEST_PHRASE:
            yield f"claims.yaml: {claim.page}: {phrase!r} has fewer than {SHORTEST_PHRASE} words; quote more of the sentence"
        if where is None:
            yield f"{claim.page}: no longer says: {phrase}\n  in scripts/docs/claims.yaml put what it says now in its place, or remove it"
            continue
        if claim.exempt and not Statement(0, phrase).triggers():
            yield f"claims.yaml: {claim.page}: {phrase!r} is exempt and has neither number nor word that needs it; remove it"
        for fault in _evidence_faults(claim, phrase, where, root):
            yield f"{claim.page}:{where.line}: {phrase}\n  its evidence in scripts/docs/claims.yaml: {fault}"


def _evidence_faults(claim: Claim, phrase: str, where: Statement, root: Path) -> Iterator[str]:
    """Yield what is wrong with the evidence of one phrase."""
    for kind, value in claim.evidence.items():
        if kind == "test":
            yield from (fault for name in _as_list(value) for fault in wrong_test(name, root))
        elif kind == "result":
            for path, figures in value.items():
                yield from wrong_result(path, figures if isinstance(figures, dict) else _as_list(figures), where.text, root)
        elif kind == "value":
            yield from (fault for name, figure in value.items() for fault in wrong_value(name, figure, where.text))
        elif kind == "command":
            yield from (fault for command in _as_list(value) for fault in wrong_command(command, root))
        elif kind == "source":
            yield from (fault for address in _as_list(value) for fault in wrong_source(address, where.text, where.links))
        elif value not in REASONS:
            yield f"{value!r} is no reason; there are {', '.join(REASONS)}"


def suggestion(statement: Statement, page: str, claims: list[Claim], root: Path = ROOT) -> str:
    """Lines for claims.yaml that take a statement in, with the evidence of what the page on_page in its place before, if it did."""
    text = " ".join((" ".join(each.text for each in statements((root / page).read_text(encoding="utf-8")))).split())
    gone = {phrase: claim for claim in claims if claim.page == page for phrase in claim.phrases if phrase not in text}
    near = difflib.get_close_matches(statement.text, gone, 1, 0.5)
    evidence = gone[near[0]].evidence if near else {"test": "tests/test_....py::test_..."}
    entry = yaml.safe_dump([{"says": statement.text, **evidence}], allow_unicode=True, width=10**9, sort_keys=False)
    was = f"  # was: {near[0]}\n" if near else ""
    return was + textwrap.indent(entry, "  ")


def table(claims: list[Claim]) -> str:
    """Return all claims and their evidence, a table for each page."""
    parts = []
    for page in dict.fromkeys(claim.page for claim in claims):
        mine = [claim for claim in claims if claim.page == page]
        with_evidence = [claim for claim in mine if not claim.exempt]
        exempt = sum(len(claim.phrases) for claim in mine if claim.exempt)
        target = "../README.md" if page == "README.md" else Path(page).name
        parts.append(f"## {Path(page).name}\n\n[The page]({target}). Exempt sentences: {exempt}.\n\n")
        if with_evidence:
            parts.append("| claim | shown by |\n|---|---|\n")
            parts += [f"| {cell('; '.join(claim.phrases))} | {cell(_evidence_text(claim))} |\n" for claim in with_evidence]
            parts.append("\n")
    return "".join(parts)


def _evidence_text(claim: Claim) -> str:
    texts = []
    for kind, value in claim.evidence.items():
        if kind == "result":
            for path, figures in value.items():
                where = [f"{figure} at `{place}`" for place, figure in figures.items()] if isinstance(figures, dict) else _as_list(figures)
                texts.append(f"`{path}`: {', '.join(where)}")
        elif kind == "value":
            texts += [f"`{name}`: {figure}" for name, figure in value.items()]
        else:
            texts += [each if kind == "source" else f"`{each}`" for each in _as_list(value)]
    return "; ".join(texts)


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _places(phrase: str, text: str) -> Iterator[int]:
    at = text.find(phrase)
    while at >= 0:
        yield at
        at = text.find(phrase, at + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--missing", action="store_true", help="print lines for scripts/docs/claims.yaml and check nothing")
    claims = read_claims()
    if parser.parse_args().missing:
        for page in pages():
            missing = [suggestion(statement, page, claims) for statement in unlisted(page, claims)]
            print(f"{page}:\n{''.join(missing)}" if missing else "", end="")
        return
    problems = list(faults(claims))
    if problems:
        sys.exit("\n".join([*problems, f"{len(problems)} faults; docs/claims.md says what counts as a claim"]))
    write_section(PAGE, "claims", table(claims))


if __name__ == "__main__":
    main()
