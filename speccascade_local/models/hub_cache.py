"""Where files from the Hugging Face hub lie on this machine, by the layout that ``huggingface_hub`` keeps.

    models--OWNER--NAME/refs/REVISION        the commit that a branch or tag was when it was last fetched
    models--OWNER--NAME/snapshots/COMMIT/    the repository's files of that commit
    models--OWNER--NAME/blobs/               what they hold, by hash

Looks and never fetches: no network, and ``huggingface_hub`` need not be installed. Knows nothing of models.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

#: The branch that is meant where no revision is named.
MAIN = "main"
#: How branches, tags and commits are named.
REVISION = r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """$HF_HUB_CACHE, else ``hub`` within $HF_HOME, else within the user's cache folder."""
    caches = os.getenv("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    home = _expand(os.getenv("HF_HOME", os.path.join(caches, "huggingface")))
    named = os.getenv("HF_HUB_CACHE", os.getenv("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(_expand(named))


def repository_folder(repository: str) -> Path:
    """All that is kept of ``owner/name``."""
    return cache_folder() / "--".join(["models", *repository.split("/")])


def cached_file(repository: str, revision: str | None, name: str) -> Path:
    """Where a repository's file lies, or would lie if it were there.

    revision: a branch, a tag or a commit. None: the main branch as it was fetched last; where that has no such file, the one
    commit that has it, if only one does.
    """
    folder = repository_folder(repository)
    commit = _commit(folder, revision or MAIN)
    there = folder / "snapshots" / commit / name
    if revision is None and not is_file(there):
        others = [path for path in sorted(folder.glob("snapshots/*")) if is_file(path / name)]
        if len(others) == 1:
            return others[0] / name
    return there


def is_file(path: Path) -> bool:
    """Like ``Path.is_file``, and False also for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_revision(text: str) -> bool:
    """Whether a branch, a tag or a commit may be named so; nothing that leaves the repository's folder may."""
    return re.fullmatch(REVISION, text) is not None


def is_commit(revision: str | None) -> bool:
    """Whether this names one state of a repository for ever, rather than a branch or a tag."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _commit(folder: Path, revision: str) -> str:
    """What the revision was when it was fetched; itself where that is not known."""
    try:
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip() or revision
    except (OSError, ValueError):
        return revision


def _expand(text: str) -> str:
    return os.path.expandvars(os.path.expanduser(text))
