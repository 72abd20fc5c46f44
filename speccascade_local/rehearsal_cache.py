"""What rehearsals found, kept in the user's cache folder, so that a file is tried in a child process once and not at every load.

Kept by path, size, place on the disk and times of the last change of each file, by llama.cpp's version, and by what was asked. What cannot
be read is tried again. Knows nothing of what a rehearsal does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import platformdirs

from .backend import llama_cpp_version
from .checks import json_of, replace_file
from .errors import CatalogError
from .layout import shards_of
from .placement import Placement
from .rehearsal import RehearsedModel, from_facts, rehearse

log = logging.getLogger(__name__)

#: Goes up when what is found, or how it is written, changes.
FORMAT = 2


def plans_of(files: Mapping[str, Path], *, n_ctx: int | None, placements: Mapping[str, Placement]) -> dict[str, RehearsedModel]:
    """Each model by role as :func:`rehearse` finds it, without what it shares with others. Raises what that raises."""
    keys = {role: _key(path, n_ctx, placements[role]) for role, path in files.items()}
    found = {role: _read(key) for role, key in keys.items()}
    unknown = {role: path for role, path in files.items() if found[role] is None}
    if unknown:
        for role, model in rehearse(unknown, n_ctx=n_ctx, placements=placements).models.items():
            found[role] = model
            _write(keys[role], model)
    return {role: model for role, model in found.items() if model is not None}


def _key(path: Path, n_ctx: int | None, placement: Placement) -> str | None:
    """None for a file that is not there."""
    try:
        seen = [_seen(each) for each in (*shards_of(path), *(adapter for adapter, _ in placement.lora))]
    except (OSError, ValueError):
        return None
    asked = [FORMAT, llama_cpp_version(), os.path.abspath(path), seen, n_ctx, placement.as_dict()]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _seen(path: Path) -> list[int]:
    """What changes with the file, even where whoever replaced it kept its size and the time of its last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read(key: str | None) -> RehearsedModel | None:
    if key is None:
        return None
    if not os.path.exists(_file(key)):
        return None
    try:
        return from_facts(json_of(_file(key)))
    except (CatalogError, ValueError) as error:
        log.info("%s: not what a rehearsal found (%s); trying the model again", _file(key), error)
        return None


def _write(key: str | None, model: RehearsedModel) -> None:
    if key is None:
        return
    facts = {**asdict(model), "path": str(model.path), "n_shared": None, "difference": None}
    try:
        replace_file(_file(key), json.dumps(facts))
    except OSError as error:
        log.info("%s cannot be kept (%s); the model will be tried again next time", _file(key), error.strerror or error)


def _file(key: str) -> Path:
    return platformdirs.user_cache_path("speccascade") / "rehearsals" / f"{key}.json"
