"""Writes pictures with matplotlib, if installed, and only as .png or .svg: the same figure always gives the same file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from .errors import CatalogError, SettingError
from .pip import install_extra


def figure_class(path: Path) -> Any:
    """Return matplotlib's class ``Figure``. Raises SettingError without matplotlib, or for a file that is neither .png nor .svg."""
    if path.suffix not in (".png", ".svg"):
        raise SettingError(f"the picture is {path.name!r}; its name must end with .png or .svg")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingError(f"drawing needs matplotlib; install it: {install_extra('calibrate')}") from None
    return Figure


def check_writable(path: Path) -> None:
    """Refuse a path to which nothing can be written later. Raises CatalogError."""
    if path.is_dir() or not path.parent.is_dir():
        raise CatalogError(f"{path}: cannot be written ({'it is a folder' if path.is_dir() else 'its folder does not exist'})")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure to a file. Raises CatalogError."""
    from matplotlib import rc_context

    try:
        with rc_context({"svg.hashsalt": "speccascade"}):  # otherwise its ids differ each time
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
    except OSError as error:
        raise CatalogError(f"{path}: cannot be written ({error.strerror})") from error


def svg_text(figure: Any, name: str) -> str:
    """Return the figure as an SVG element of a page; ``name`` makes its ids unique there."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
