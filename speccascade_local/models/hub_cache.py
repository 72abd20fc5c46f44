"""Where files from the Hugging Face hub are on this machine, in the layout of ``huggingface_hub``.

    models--OWNER--NAME/refs/REVISION        the commit of a branch or tag when it was last fetched
    models--OWNER--NAME/snapshots/COMMIT/    the repository's files at that commit
    models--OWNER--NAME/blobs/               their contents, by hash

Uses no network, and ``huggingface_hub`` need not be installed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..common.files import expand_user

#: The branch if no revision is named.
MAIN = "main"
#: The names of branches, tags and commits.
REVISION = r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """Return $HF_HUB_CACHE, or ``hub`` in $HF_HOME, or in the user's cache folder."""
    caches = os.getenv("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = os.path.expandvars(expand_user(os.getenv("HF_HOME", os.path.join(caches, "huggingface"))))
    folder = os.getenv("HF_HUB_CACHE", os.getenv("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(os.path.expandvars(expand_user(folder)))


def repository_folder(repository: str) -> Path:
    """Return the folder of ``owner/name`` in the cache."""
    return cache_folder() / "--".join(["models", *repository.split("/")])


def cached_file(repository: str, revision: str | None, name: str) -> Path:
    """Return the path of a repository's file in the cache, whether it is there or not.

    No revision stands for the main branch as last fetched or, if that lacks the file, the only commit that has it.
    """
    folder = repository_folder(repository)
    path = folder / "snapshots" / _commit(folder, revision or MAIN) / name
    if revision is None and not is_file(path):
        others = [snapshot / name for snapshot in sorted(folder.glob("snapshots/*")) if is_file(snapshot / name)]
        if len(others) == 1:
            return others[0]
    return path


def is_file(path: Path) -> bool:
    """Return ``path.is_file()``, and False also for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_revision(text: str) -> bool:
    """Return whether a branch, tag or commit can have this name; a path that leaves the repository's folder cannot."""
    return re.fullmatch(REVISION, text) is not None


def is_commit(revision: str | None) -> bool:
    """Return whether this names one fixed state of a repository, unlike a branch or tag."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _commit(folder: Path, revision: str) -> str:
    """Return the commit of a revision when it was last fetched, or the revision if that is not known."""
    try:
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip() or revision
    except (OSError, ValueError):
        return revision
