"""The profile of a pair, measured once per machine and build and kept in the user's cache folder.

A file that is damaged, or of another pair, machine or build, is measured anew. Knows nothing of how profiles are measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from ..common.errors import CatalogError
from ..common.files import fingerprint, read_json, replace_file
from ..decoding.profile import Profile, Speed
from ..llama.backend import llama_cpp_version, physical_cores, system_info
from ..llama.parameters import gpu_layers
from ..llama.session import LlamaSession
from ..models.placement import Placement
from .hardware import cpu_name
from .profiler import DEEP, SHALLOW, measure

log = logging.getLogger(__name__)

#: Goes up when what is measured, or how it is written, changes.
FORMAT = 7
#: Of a file; a profile has some kB.
_MOST_BYTES = 1 << 20
_SPEED = ("device", "cache_type", "flash_attention", "rpc", "exact")


def profile_of(
    drafter: LlamaSession | None,
    expert: LlamaSession,
    *,
    threads: int | None = None,
    refresh: bool = False,
    on_step: Callable[[float], None] = lambda _: None,
) -> Profile:
    """The pair's profile, from the cache or measured now; both sessions are left with its thread counts and its padding.

    drafter None: there is no second model, and drafts are free. threads: what the user asked for, which is kept. refresh: measure even
    if the cache has it. on_step: called with 0..1 on the way.
    """
    key = key_of(drafter, expert, threads)
    path = _cache_file(key)
    profile = None if refresh or path is None else _read(path)
    if profile is None or profile.key != key:
        profile = measure(drafter, expert, threads=threads, key=key, on_step=on_step)
        if path is not None:
            _write(path, profile)
    apply(profile, drafter, expert)
    return profile


def apply(profile: Profile, drafter: LlamaSession | None, expert: LlamaSession) -> None:
    """Let both sessions use the thread counts and the padding that were found to be fastest."""
    for session, speed in ((drafter, profile.drafter), (expert, profile.expert)):
        if session is not None:
            session.context.set_threads(speed.threads, speed.batch_threads)
            session.context.pad_batches(speed.padding)


def key_of(drafter: LlamaSession | None, expert: LlamaSession, threads: int | None) -> dict[str, str | int]:
    """What a profile holds for: files, machine, build, and what the user asked for (0 threads: nothing)."""
    return {
        "format": FORMAT,
        "drafter": _identity(drafter.model.path) if drafter is not None else "none",
        "expert": _identity(expert.model.path),
        "drafter_placement": _placement_key(drafter.model.placement) if drafter is not None else "",
        "expert_placement": _placement_key(expert.model.placement),
        "drafter_bytes": drafter.model.n_bytes if drafter is not None else 0,
        "expert_bytes": expert.model.n_bytes,
        "context": min(expert.n_ctx, DEEP + SHALLOW),  # of a larger one no more is measured
        "threads": threads or 0,
        **_machine(),
    }


def known_speeds() -> list[tuple[int, Speed]]:
    """Of every model whose profile on this machine and build is in the cache: the bytes of its weights, and its speeds."""
    found, here = {}, _machine()
    for path in sorted(_folder().glob("*.json")):
        profile = _read(path)
        if profile is None or any(profile.key.get(name) != value for name, value in here.items()) or profile.key.get("format") != FORMAT:
            continue
        for role, speed in (("drafter", profile.drafter), ("expert", profile.expert)):
            size = profile.key[f"{role}_bytes"]
            if isinstance(size, int) and size:
                found[profile.key[role], speed.threads] = size, speed
    return list(found.values())


def _machine() -> dict[str, str | int]:
    return {
        "waiting": os.environ.get("OMP_WAIT_POLICY", ""),  # threads that sleep between batches wake up later
        "cores": physical_cores(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "llama_cpp": llama_cpp_version(),
        "system": system_info(),
    }


def _placement_key(placement: Placement) -> str:
    """What of it makes a model slower or faster; adapters by what they are."""
    adapters = [(_identity(path), scale) for path, scale in placement.lora]
    return json.dumps([gpu_layers(placement), *(getattr(placement, name) for name in _SPEED), adapters])


def _identity(path: Path) -> str:
    """The file's fingerprint; empty when it cannot be read any more."""
    try:
        return fingerprint(path)
    except OSError:
        return ""


def _cache_file(key: Mapping[str, str | int]) -> Path | None:
    """None where a model's file cannot be told from others."""
    if not (key["drafter"] and key["expert"]):
        return None
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return _folder() / f"{digest[:32]}.json"


def _folder() -> Path:
    return platformdirs.user_cache_path("speccascade") / "profiles"


def _read(path: Path) -> Profile | None:
    if not os.path.exists(path):
        return None
    try:
        return Profile.from_dict(read_json(path, most=_MOST_BYTES))
    except (CatalogError, ValueError) as error:  # half-written, of another program, or not readable: measured anew
        log.info("%s: not a profile (%s); measuring anew", path, error)
        return None


def _write(path: Path, profile: Profile) -> None:
    try:
        replace_file(path, json.dumps(profile.as_dict(), indent=1))
    except OSError as error:
        log.warning("%s: the profile of this pair cannot be kept (%s); it will be measured again next time", path, error.strerror or error)
