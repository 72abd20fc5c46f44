"""``models.yaml`` -> checked pairs.

A pair names two models and the rule that suits them. Several files may exist; they are read in a fixed order and the first one that
has a pair of that name wins. Knows nothing of what is inside a GGUF file, and fetches nothing.
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
from ..common.files import PACKAGE
from ..common.yaml_files import LineOf, read_yaml_with_lines
from ..rules.registry import is_custom
from .catalog_schema import CALIBRATED, CatalogFile, PairEntry
from .hub_cache import is_file
from .source import NGRAM, ModelSource, model_source, resolve_path

#: The pair that ships with the package, used where none is named.
BUNDLED_PAIR = "demo"


@dataclass(frozen=True)
class Pair:
    """Two models, and where they were named (None: by the caller).

    drafter: may be ``ngram`` in place of a file. models: by role, what else was
    said of each. context: tokens that the catalog says both were trained for. seen_in: where the catalog's facts come from. rpc: machines
    that share the expert. code_line, rpc_line: where ``source`` names code as the rule, and such machines; None where it does not.
    """

    name: str
    drafter: Path
    expert: Path
    rule: str | None = None
    description: str = ""
    source: Path | None = None
    models: Mapping[str, ModelSource] = field(default_factory=dict)
    family: str | None = None
    context: int | None = None
    seen_in: str | None = None
    rpc: tuple[str, ...] = ()
    code_line: int | None = None
    rpc_line: int | None = None

    def __post_init__(self) -> None:
        models = {role: self.models.get(role) or ModelSource(path, str(path)) for role, path in self.files.items()}
        object.__setattr__(self, "models", models)

    @property
    def files(self) -> dict[str, Path]:
        """The model files by role, from the smallest model to the largest."""
        named = {"drafter": None if str(self.drafter) == NGRAM else self.drafter, "expert": self.expert}
        return {role: path for role, path in named.items() if path}

    @property
    def missing(self) -> list[Path]:
        """The files that are not there, adapters and shards among them."""
        return [path for model in self.models.values() for source in model.sources for path in source.missing]

    @property
    def demands(self) -> dict[str, str]:
        """What the pair wants beyond data, in words, under "code" and "rpc"; empty where the user's own file, or the package's, says so."""
        if self.source is None or not (self.code_line or self.rpc_line):
            return {}
        if self.source.resolve() in (user_file().resolve(), packaged_file().resolve()):
            return {}
        wants = {
            "code": (self.code_line, f"runs code, the rule {self.rule}"),
            "rpc": (self.rpc_line, f"sends what it reads to other machines, {', '.join(self.rpc)}"),
        }
        return {name: f"{self.source}, line {line}: pair {self.name!r} {what}" for name, (line, what) in wants.items() if line}

    def check_files(self) -> None:
        """Refuse what was named and cannot be used. Raises CatalogError, which says what to do.

        A plain path with nothing there passes: whoever opens it knows more.
        """
        for role, model in self.models.items():
            for source in model.sources:
                problem = source.problem()
                if problem:
                    what = role if source is model else f"{role}'s LoRA adapter"
                    todo = f"; fetch it: speccascade pull {shlex.quote(self.name)}" if source.hub and not source.trouble else ""
                    raise CatalogError(f"pair {self.name!r}, {what}: {problem}{todo}")
                if source is not model and source.missing:
                    raise CatalogError(f"pair {self.name!r}, {role}'s LoRA adapter: {source.path}: no such file; check its path")


def search_path(models: str | os.PathLike[str] | None = None) -> list[Path]:
    """Where ``models.yaml`` is looked for, first to last.

    ``models``, $SPECCASCADE_MODELS, the current folder, the user's configuration folder, this package. The first two must exist
    when given; the others may be absent. Raises CatalogError.
    """
    named = [(models, "--models"), (os.environ.get("SPECCASCADE_MODELS"), "$SPECCASCADE_MODELS")]
    found: list[Path] = []
    for value, origin in named:
        if value:
            path = _expand(value)
            if not is_file(path):
                kind = "no such file" if not os.path.exists(path) else "a folder" if os.path.isdir(path) else "no plain file"
                raise CatalogError(f"{path}: {kind} (named by {origin}); give the path of a models.yaml")
            found.append(path)
    found += [path for path in (Path("models.yaml"), user_file()) if is_file(path)]
    distinct: dict[Path, Path] = {}
    for path in [*found, packaged_file()]:
        distinct.setdefault(path.resolve(), path)  # a file named twice counts where it is named first
    return list(distinct.values())


def read_file(path: Path) -> dict[str, Pair]:
    """The pairs of one file. Raises CatalogError with file, key path and line."""
    catalog, line_of = read_yaml_with_lines(path, CatalogFile)
    return {name: _pair(name, entry, path, line_of) for name, entry in catalog.pairs.items()}


def _pair(name: str, entry: PairEntry, path: Path, line_of: LineOf) -> Pair:
    named = {"drafter": entry.drafter, "expert": entry.expert}
    models = {role: model_source(each, path.parent) for role, each in named.items()}
    return Pair(
        name,
        models["drafter"].path,
        models["expert"].path,
        _rule(entry.rule, path),
        entry.description,
        path,
        models,
        entry.family,
        entry.context,
        entry.source,
        tuple(entry.rpc),
        line_of(("pairs", name, "rule")) if entry.rule and is_custom(entry.rule) else None,
        line_of(("pairs", name, "rpc")) if entry.rpc else None,
    )


def known_pairs(models: str | os.PathLike[str] | None = None) -> dict[str, Pair]:
    """All pairs of all files on the search path, by name. Raises CatalogError."""
    pairs: dict[str, Pair] = {}
    for path in search_path(models):
        for name, pair in read_file(path).items():
            pairs.setdefault(name, pair)
    return pairs


def find(name: str, models: str | os.PathLike[str] | None = None) -> Pair:
    """The pair of this name, from the first file that has it. Raises CatalogError with the nearest names."""
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
    """Up to three names like this one: spelt alike, or with it as a part."""
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=3)
    within = sorted(each for each in folded if name and name.casefold() in each and each not in close)
    return [folded[each] for each in [*close, *within][:3]]


def default() -> Pair:
    """The pair where none is named: the bundled one, with the rule that the user's own file may give it; no other file is looked at.

    Raises CatalogError for a file of the user's own that cannot be read.
    """
    own = read_file(user_file()) if user_file().exists() else {}
    return own.get(BUNDLED_PAIR) or bundled_pair()


def bundled_pair() -> Pair:
    """The pair that ships with the package, whatever other files say."""
    return read_file(packaged_file())[BUNDLED_PAIR]


def user_file() -> Path:
    """The user's models.yaml, which need not exist."""
    return platformdirs.user_config_path("speccascade") / "models.yaml"


def packaged_file() -> Path:
    """The models.yaml of this package."""
    inside = PACKAGE / "models.yaml"
    return inside if inside.exists() else PACKAGE.parent / "models.yaml"  # in a checkout the one copy stands at the top


def _rule(text: str | None, source: Path) -> str | None:
    """A calibration's path starts at the file's folder too."""
    if text is None or not text.startswith(CALIBRATED):
        return text
    return f"{CALIBRATED}{resolve_path(text.removeprefix(CALIBRATED), source.parent)}"


def _expand(text: str | os.PathLike[str]) -> Path:
    """``~`` resolved; a home that does not exist stays as it is written, and the file is then missing."""
    return Path(os.path.expanduser(text))
