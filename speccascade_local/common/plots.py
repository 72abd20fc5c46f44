"""Pictures in files: matplotlib if it is there, and only the two kinds of file that are made the same every time.

Knows nothing of what is drawn.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from .errors import CatalogError, SettingError
from .pip import install_extra


def figure_class(path: Path) -> Any:
    """The class ``Figure`` of matplotlib. Raises SettingError without matplotlib, or for a file that is neither .png nor .svg."""
    if path.suffix not in (".png", ".svg"):
        raise SettingError(f"the picture is {path.name!r}; its name must end with .png or .svg")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingError(f"drawing needs matplotlib; install it: {install_extra('calibrate')}") from None
    return Figure


def check_writable(path: Path) -> None:
    """Refuse now what could not be written later. Raises CatalogError."""
    if path.is_dir() or not path.parent.is_dir():
        raise CatalogError(f"{path}: cannot be written ({'it is a folder' if path.is_dir() else 'its folder does not exist'})")


def save_figure(figure: Any, path: Path) -> None:
    """Write the file; the same figure gives the same file. Raises CatalogError."""
    from matplotlib import rc_context

    try:
        with rc_context({"svg.hashsalt": "speccascade"}):  # else the ids inside differ each time
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
    except OSError as error:
        raise CatalogError(f"{path}: cannot be written ({error.strerror})") from error


def svg_text(figure: Any, name: str) -> str:
    """The drawing as an SVG element that stands in a page; ``name`` keeps its ids apart from those of others there."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
