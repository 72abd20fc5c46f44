"""Write the generated sections of documents, which stand between two comments, and cells of tables."""

from __future__ import annotations

import re
import sys
from pathlib import Path

#: A bar in a cell of a table.
PIPE = "\\|"


def cell(text: str) -> str:
    """Return the text as it may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", PIPE).replace("<", "&lt;")


def write_section(page: Path, name: str, section: str) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->``. Exits if the page has no such comments."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    parts = re.split(f"{opening}.*?{closing}", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    if len(parts) == 1:
        sys.exit(f"{page.name} has no {opening} ... {closing}; write both where the section is to stand")
    page.write_text(f"{opening}\n{section}{closing}".join(parts), encoding="utf-8")
