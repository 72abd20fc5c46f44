"""Reads pairs from ``models.yaml``: two models each, and the rule that suits them.

Several such files may exist. They are read in a fixed order, and the first one that has a pair of a name wins.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from ..common.errors import CatalogError
from ..common.files import PACKAGE, expand_user
from ..common.yaml_files import LineOf, read_yaml_with_lines
from ..rules.registry import is_custom
from .catalog_schema import CALIBRATED, CatalogFile, PairEntry
from .hub_cache import is_file
from .source import NGRAM, ModelSource, model_source, resolve_path

#: The pair that ships with the package, used if none is named.
BUNDLED_PAIR = "demo"


@dataclass(frozen=True)
class Pair:
    """Two models, and what a ``models.yaml`` says about them."""

    name: str
    drafter: Path  # the file of the small model, or ``ngram``
    expert: Path  # the file of the large model
    rule: str | None = None  # the rule that suits the pair
    description: str = ""
    source: Path | None = None  # the ``models.yaml`` that defines it; None if the caller named two files
    models: Mapping[str, ModelSource] = field(default_factory=dict)  # more about each model, by role
    family: str | None = None  # the family of both models
    context: int | None = None  # tokens that both were trained for
    seen_in: str | None = None  # the source of these facts
    rpc: tuple[str, ...] = ()  # machines that share the expert, ``host:port`` each
    code_line: int | None = None  # the line of ``source`` that names code as the rule, if one does
    rpc_line: int | None = None  # the line of ``source`` that names such machines, if one does

    def __post_init__(self) -> None:
        models = {role: self.models.get(role) or ModelSource(path, str(path)) for role, path in self.files.items()}
        object.__setattr__(self, "models", models)

    @property
    def files(self) -> dict[str, Path]:
        """The model files by role, the drafter first."""
        return ({} if str(self.drafter) == NGRAM else {"drafter": self.drafter}) | {"expert": self.expert}

    @property
    def missing(self) -> list[Path]:
        """The files that are not on this machine, adapters and shards included."""
        return [path for model in self.models.values() for source in model.sources for path in source.missing]

    @property
    def demands(self) -> dict[str, str]:
        """What a stranger's file demands beyond data, in words: "code" to run, and "rpc" machines to send text to."""
        if self.source is None or not (self.code_line or self.rpc_line):
            return {}
        if self.source.resolve() in (user_file().resolve(), packaged_file().resolve()):
            return {}
        demands = {
            "code": (self.code_line, f"runs code, the rule {self.rule}"),
            "rpc": (self.rpc_line, f"sends what it reads to other machines, {', '.join(self.rpc)}"),
        }
        return {name: f"{self.source}, line {line}: pair {self.name!r} {what}" for name, (line, what) in demands.items() if line}

    def check_files(self) -> None:
        """Raise CatalogError for files that cannot be used. A plain path without a file passes: opening it gives a better reason."""
        for role, model in self.models.items():
            for source in model.sources:
                problem = source.problem()
                if problem:
                    what = role if source is model else f"{role}'s LoRA adapter"
                    advice = f"; fetch it: speccascade pull {shlex.quote(self.name)}" if source.hub and not source.trouble else ""
                    raise CatalogError(f"pair {self.name!r}, {what}: {problem}{advice}")
                if source is not model and source.missing:
                    raise CatalogError(f"pair {self.name!r}, {role}'s LoRA adapter: {source.path}: no such file; check its path")


def search_path(models: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the ``models.yaml`` files in the order in which they are read.

    They are ``models``, $SPECCASCADE_MODELS, and those of the current folder, the user's configuration folder and this package. The first
    two must exist if they are named. Raises CatalogError.
    """
    files: list[Path] = []
    for value, origin in ((models, "--models"), (os.environ.get("SPECCASCADE_MODELS"), "$SPECCASCADE_MODELS")):
        if value:
            path = expand_user(value)
            if not is_file(path):
                kind = "no such file" if not os.path.exists(path) else "a folder" if os.path.isdir(path) else "no plain file"
                raise CatalogError(f"{path}: {kind} (named by {origin}); give the path of a models.yaml")
            files.append(path)
    files += [path for path in (Path("models.yaml"), user_file()) if is_file(path)]
    distinct: dict[Path, Path] = {}
    for path in [*files, packaged_file()]:
        distinct.setdefault(path.resolve(), path)  # a file that is named twice has its first place
    return list(distinct.values())


def read_file(path: Path) -> dict[str, Pair]:
    """Return the pairs of one file by name. Raises CatalogError with file, line and key."""
    catalog, line_of = read_yaml_with_lines(path, CatalogFile)
    return {name: _pair(name, entry, path, line_of) for name, entry in catalog.pairs.items()}


def _pair(name: str, entry: PairEntry, path: Path, line_of: LineOf) -> Pair:
    models = {role: model_source(getattr(entry, role), path.parent) for role in ("drafter", "expert")}
    return Pair(
        name,
        models["drafter"].path,
        models["expert"].path,
        _rule(entry.rule, path),
        entry.description,
        source=path,
        models=models,
        family=entry.family,
        context=entry.context,
        seen_in=entry.source,
        rpc=tuple(entry.rpc),
        code_line=line_of(("pairs", name, "rule")) if entry.rule and is_custom(entry.rule) else None,
        rpc_line=line_of(("pairs", name, "rpc")) if entry.rpc else None,
    )


def known_pairs(models: str | os.PathLike[str] | None = None) -> dict[str, Pair]:
    """Return all pairs of all files on the search path, by name. Raises CatalogError."""
    pairs: dict[str, Pair] = {}
    for path in search_path(models):
        for name, pair in read_file(path).items():
            pairs.setdefault(name, pair)
    return pairs


def find(name: str, models: str | os.PathLike[str] | None = None) -> Pair:
    """Return the pair of this name from the first file that has it. Raises CatalogError with the nearest names."""
    files = search_path(models)
    for path in files:
        pairs = read_file(path)
        if name in pairs:
            return pairs[name]
    known = known_pairs(models)
    near = _near(str(name), list(known))
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise CatalogError(
        f"unknown pair {name!r}{hint} ('speccascade models' lists all {len(known)}, from {', '.join(map(str, files))}; "
        "add your own to a models.yaml, or name two files with --drafter and --expert)"
    )


def _near(name: str, known: list[str]) -> list[str]:
    """Return up to three names like this one: spelled alike, or containing it."""
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=3)
    within = sorted(each for each in folded if name and name.casefold() in each and each not in close)
    return [folded[each] for each in [*close, *within][:3]]


def default() -> Pair:
    """Return the bundled pair, as the user's own file redefines it if it does. No other file is read. Raises CatalogError."""
    own = read_file(user_file()) if user_file().exists() else {}
    return own.get(BUNDLED_PAIR) or bundled_pair()


def bundled_pair() -> Pair:
    """Return the pair that ships with the package, whatever other files say."""
    return read_file(packaged_file())[BUNDLED_PAIR]


def user_file() -> Path:
    """Return the path of the user's models.yaml, which need not exist."""
    return platformdirs.user_config_path("speccascade") / "models.yaml"


def packaged_file() -> Path:
    """Return the path of this package's models.yaml."""
    inside = PACKAGE / "models.yaml"
    return inside if inside.exists() else PACKAGE.parent / "models.yaml"  # in a checkout the only copy is at the top


def _rule(text: str | None, source: Path) -> str | None:
    """Return the rule; the path of a calibration starts at the file's folder, as those of models do."""
    if text is None or not text.startswith(CALIBRATED):
        return text
    return f"{CALIBRATED}{resolve_path(text.removeprefix(CALIBRATED), source.parent)}"
