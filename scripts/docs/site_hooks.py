"""Hooks for mkdocs that make a site of documents which are also read in the repository.

Documents link to files outside docs/ by relative paths, as code hosts want it. Such a file becomes part of the site, below repository/,
and all links lead there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: The address of a link or picture that is no anchor and on no other host.
LINK = re.compile(r"(\]\()(?!#|[a-z]+:)([^)\s#]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    waiting = [DOCS / file.src_uri for file in files if file.is_documentation_page()]
    seen = {DOCS / file.src_uri for file in files}
    while waiting:
        for target in _targets(waiting.pop()):
            if target in seen or not target.is_file():  # mkdocs warns about broken links
                continue
            seen.add(target)
            files.append(File.generated(config, _place(target), abs_src_path=str(target)))
            waiting += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Return the page with its links as they are in the site."""
    source = Path(page.file.abs_src_path)

    def in_site(link: re.Match[str]) -> str:
        target = _place(_resolved(source, link[2]))
        return link[1] + os.path.relpath(target, os.path.dirname(page.file.src_uri) or ".")

    return LINK.sub(in_site, markdown)


def _targets(page: Path) -> Iterator[Path]:
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        yield _resolved(page, link[2])


def _resolved(page: Path, link: str) -> Path:
    return Path(os.path.normpath(page.parent / link))


def _place(target: Path) -> str:
    """Return the path of a file of the repository in the site."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    return f"repository/{target.relative_to(ROOT).as_posix()}" if target.is_relative_to(ROOT) else target.as_posix()
