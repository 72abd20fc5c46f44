"""The packages that this one needs, as they are installed, and the folders that it reads and writes."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import stat
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import platformdirs

from ..models import catalog
from ..models.hub_cache import cache_folder

DISTRIBUTION = "speccascade-local"
#: The extras for users; the others are for work on this package.
EXTRAS = ("calibrate", "hub", "serve")
_ALWAYS = ("llama-cpp-python", "numpy")  # shown also where this package runs uninstalled, from a folder
_REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)(?:\[[^]]*\])?\s*(?P<version>[^;]*)(?:;(?P<marker>.*))?$")
_MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml", "llama-cpp-python": "llama_cpp"}


@dataclass(frozen=True)
class Extra:
    """An optional part, and its requirements (``name>=1,<2``) that cannot be imported."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """A folder that this package uses."""

    use: str  # its purpose in words
    path: Path  # where it lies
    exists: bool  # whether it exists yet
    size: int  # bytes of the files in it
    problem: str  # why it cannot be written; empty where it can


def versions() -> dict[str, str]:
    """Return the versions of Python, the system and each required package; ``missing`` where a package is not installed."""
    system = {"python": platform.python_version(), "platform": platform.platform()}
    return system | {name: _version(name) for name in [each[0] for each in _requirements("")] or _ALWAYS}


def missing() -> tuple[str, ...]:
    """Return the requirements that cannot be imported."""
    return tuple(f"{name}{version}" for name, version, module in _requirements("") if not _importable(module))


def extras() -> tuple[Extra, ...]:
    """Return the optional parts for users."""
    return tuple(
        Extra(extra, tuple(f"{name}{version}" for name, version, module in _requirements(extra) if not _importable(module)))
        for extra in EXTRAS
        if _requirements(extra)
    )


def folders() -> tuple[Folder, ...]:
    """Return the folders that this package uses."""
    return (
        _folder("measurements", platformdirs.user_cache_path("speccascade")),
        _folder("your models.yaml", catalog.user_file().parent),
        _folder("Hugging Face's cache", cache_folder()),
    )


def _requirements(extra: str) -> list[tuple[str, str, str]]:
    """Return name, version and module of each requirement, from the installed package's metadata; none where it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    requirements = []
    for match in filter(None, map(_REQUIREMENT.match, lines)):
        marker = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", match["marker"] or "")
        if (marker[1] if marker else "") == extra and match["name"].replace("_", "-").lower() != DISTRIBUTION:
            name = match["name"]
            requirements.append((name, match["version"].strip(), _MODULES.get(name.lower(), name.replace("-", "_"))))
    return requirements


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
    """Return the bytes of all files, without links: a cache links to files that it keeps in another folder of its own."""
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
            except OSError:  # deleted since the folder was listed
                continue
            total += 0 if stat.S_ISLNK(status.st_mode) else status.st_size
    return total


def _problem(path: Path) -> str:
    """Try to write, because permissions say little (root, read-only file systems, full disks). No folder is created."""
    folder = path
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=DISTRIBUTION) as file:
            file.write(bytes(4096))
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    return ""
