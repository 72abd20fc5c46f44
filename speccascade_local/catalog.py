"""``models.yaml`` -> checked pairs.

A pair names two GGUF files and the rule that suits them. Several files may exist; they are read in a fixed order and the first one
that has a pair of that name wins. Knows nothing of what is inside a GGUF file.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from . import methods
from .checked_yaml import read_yaml
from .errors import CatalogError, SettingError

#: The pair that ships with the package, used where none is named.
BUNDLED_PAIR = "demo"
#: In place of a drafter's file: no second model, drafts are copied from the text.
NGRAM = "ngram"
_PACKAGE = Path(__file__).parent
BUNDLED = "bundled:"
_CALIBRATED = "calibrated:"


def _is_rule(text: str) -> str:
    """Checked as far as that runs no code and opens no file of the user's; the rest when the pair is loaded."""
    if methods.is_custom(text) or text.startswith(_CALIBRATED):
        return text
    try:
        return str(methods.parse(text))
    except SettingError as error:
        raise ValueError(str(error)) from None


class PairEntry(BaseModel):
    """One pair as it stands in the file. Paths are relative to the file's folder; ``bundled:NAME`` is inside this package."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    description: str = ""
    drafter: Annotated[str, Field(min_length=1)]
    expert: Annotated[str, Field(min_length=1)]
    small: Annotated[str, Field(min_length=1)] | None = None
    rule: Annotated[str, AfterValidator(_is_rule)] | None = None

    @model_validator(mode="after")
    def _is_a_chain(self) -> PairEntry:
        if self.small and self.drafter == NGRAM:
            raise ValueError("a small model drafts for a drafter, and drafter 'ngram' is none; name the small model as the drafter")
        return self


class CatalogFile(BaseModel):
    """The whole of a ``models.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    pairs: dict[str, PairEntry]


@dataclass(frozen=True)
class Pair:
    """Two model files, ready to load, and where they were named (None: by the caller).

    drafter: may be ``ngram`` in place of a file. small: a third model, which drafts for the drafter.
    """

    name: str
    drafter: Path
    expert: Path
    rule: str | None = None
    description: str = ""
    source: Path | None = None
    small: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The model files by role, from the smallest model to the largest."""
        named = {"small": self.small, "drafter": None if str(self.drafter) == NGRAM else self.drafter, "expert": self.expert}
        return {role: path for role, path in named.items() if path}

    @property
    def missing(self) -> list[Path]:
        """The files that are not there."""
        return [path for path in self.files.values() if not _is_file(path)]


def search_path(models: str | os.PathLike[str] | None = None) -> list[Path]:
    """Where ``models.yaml`` is looked for, first to last.

    ``models``, $SPECCASCADE_MODELS, the current folder, the user's configuration folder, this package. The first two must exist
    when given; the others may be absent. Raises CatalogError.
    """
    named = [(models, "--models"), (os.environ.get("SPECCASCADE_MODELS"), "$SPECCASCADE_MODELS")]
    found: list[Path] = []
    for value, origin in named:
        if value:
            path = _expanded(value)
            if not _is_file(path):
                kind = "no such file" if not os.path.exists(path) else "a folder" if os.path.isdir(path) else "no plain file"
                raise CatalogError(f"{path}: {kind} (named by {origin}); give the path of a models.yaml")
            found.append(path)
    found += [path for path in (Path("models.yaml"), users_own()) if _is_file(path)]
    distinct: dict[Path, Path] = {}
    for path in [*found, packaged()]:
        distinct.setdefault(path.resolve(), path)  # a file named twice counts where it is named first
    return list(distinct.values())


def read_file(path: Path) -> dict[str, Pair]:
    """The pairs of one file. Raises CatalogError with file, key path and line."""
    return {
        name: Pair(
            name,
            _resolve(entry.drafter, path),
            _resolve(entry.expert, path),
            _rule(entry.rule, path),
            entry.description,
            path,
            _resolve(entry.small, path) if entry.small else None,
        )
        for name, entry in read_yaml(path, CatalogFile).pairs.items()
    }


def known_pairs(models: str | os.PathLike[str] | None = None) -> dict[str, Pair]:
    """All pairs of all files on the search path, by name. Raises CatalogError."""
    pairs: dict[str, Pair] = {}
    for path in search_path(models):
        for name, pair in read_file(path).items():
            pairs.setdefault(name, pair)
    return pairs


def find(name: str, models: str | os.PathLike[str] | None = None) -> Pair:
    """The pair of this name, from the first file that has it. Raises CatalogError with the known names."""
    for path in search_path(models):
        pairs = read_file(path)
        if name in pairs:
            return pairs[name]
    known = known_pairs(models)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    files = ", ".join(map(str, search_path(models)))
    raise CatalogError(
        f"unknown pair {name!r}; known are {', '.join(sorted(known))}{hint} "
        f"(read: {files}; add your own to a models.yaml, or name two files with --drafter and --expert)"
    )


def default() -> Pair:
    """The pair where none is named: the bundled one, with the rule that the user's own file may give it; no other file is looked at.

    Raises CatalogError for a file of the user's own that cannot be read.
    """
    own = read_file(users_own()) if users_own().exists() else {}
    return own.get(BUNDLED_PAIR) or bundled()


def bundled() -> Pair:
    """The pair that ships with the package, whatever other files say."""
    return read_file(packaged())[BUNDLED_PAIR]


def users_own() -> Path:
    """The user's models.yaml, which need not exist."""
    return platformdirs.user_config_path("speccascade") / "models.yaml"


def packaged() -> Path:
    """The models.yaml of this package."""
    inside = _PACKAGE / "models.yaml"
    return inside if inside.exists() else _PACKAGE.parent / "models.yaml"  # in a checkout the one copy stands at the top


def _resolve(text: str, source: Path) -> Path:
    if text == NGRAM:
        return Path(text)
    if text.startswith(BUNDLED):
        return _PACKAGE / "demo" / text.removeprefix(BUNDLED)
    return source.parent / _expanded(text)


def _rule(text: str | None, source: Path) -> str | None:
    """A calibration's path starts at the file's folder too."""
    if text is None or not text.startswith(_CALIBRATED):
        return text
    return f"{_CALIBRATED}{_resolve(text.removeprefix(_CALIBRATED), source)}"


def _is_file(path: Path) -> bool:
    """Like ``Path.is_file``, and False also for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def _expanded(text: str | os.PathLike[str]) -> Path:
    """``~`` resolved; a home that does not exist stays as it is written, and the file is then missing."""
    return Path(os.path.expanduser(text))
