"""What is installed beside this package, and which folders it reads and writes.

Knows nothing of what any of it is good for.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import platformdirs

from ..models import catalog
from ..models.hub_cache import cache_folder

DISTRIBUTION = "speccascade-local"
#: The extras that are for users; the others are for work on this package.
EXTRAS = ("calibrate", "hub", "serve")
_ALWAYS = ("llama-cpp-python", "numpy")  # told also where this package runs from a folder, uninstalled
_REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)(?:\[[^]]*\])?\s*(?P<version>[^;]*)(?:;(?P<marker>.*))?$")
_MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml", "llama-cpp-python": "llama_cpp"}


@dataclass(frozen=True)
class Extra:
    """An optional part, and which of its requirements (``name>=1,<2``) cannot be imported."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """use: in words. size: bytes of the files in it, 0 where it is not there yet. problem: why it cannot be written, empty where it can."""

    use: str
    path: Path
    exists: bool
    size: int
    problem: str


def versions() -> dict[str, str]:
    """Of Python, the system, and each package that this one needs; ``missing`` where one cannot be imported."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {name: _version(name) for name in [each[0] for each in _requirements("")] or _ALWAYS}


def missing() -> tuple[str, ...]:
    """The requirements that cannot be imported, without which nothing, or not everything, works."""
    return tuple(f"{name}{version}" for name, version, module in _requirements("") if not _importable(module))


def extras() -> tuple[Extra, ...]:
    """Those that are for users."""
    return tuple(
        Extra(extra, tuple(f"{name}{version}" for name, version, module in _requirements(extra) if not _importable(module)))
        for extra in EXTRAS
        if _requirements(extra)
    )


def folders() -> tuple[Folder, ...]:
    """Where things are kept."""
    return (
        _folder("measurements", platformdirs.user_cache_path("speccascade")),
        _folder("your models.yaml", catalog.user_file().parent),
        _folder("Hugging Face's cache", cache_folder()),
    )


def _requirements(extra: str) -> list[tuple[str, str, str]]:
    """Name, version and module of each, as the installed package says; none where it is not installed, such as on a path."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for match in filter(None, map(_REQUIREMENT.match, lines)):
        named = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", match["marker"] or "")
        if (named[1] if named else "") == extra and match["name"].replace("_", "-").lower() != DISTRIBUTION:
            name = match["name"]
            found.append((name, match["version"].strip(), _MODULES.get(name.lower(), name.replace("-", "_"))))
    return found


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _folder(use: str, path: Path) -> Folder:
    return Folder(use, path, os.path.isdir(path), _size(path), _problem(path))


def _size(path: Path) -> int:
    """Each file once, and links not at all: a cache links to what it keeps elsewhere in itself."""
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            try:
                found = os.lstat(os.path.join(place, name))
            except OSError:  # gone meanwhile
                continue
            total += 0 if os.path.islink(os.path.join(place, name)) else found.st_size
    return total


def _problem(path: Path) -> str:
    """Tried by writing: permissions tell little (root, read-only file systems, full disks). A folder that is not there is not made."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there, prefix=DISTRIBUTION) as file:
            file.write(bytes(4096))
    except OSError as error:
        return f"{there}: {error.strerror or error}"
    return ""
