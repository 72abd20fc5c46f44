"""The profile of a pair: measured once for each machine and build, and kept in the user's cache folder.

A pair is measured again where its file is damaged, or belongs to another pair, machine or build. The acceptance histories of a runtime,
which a user may keep in a file, are read here too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import platformdirs
from pydantic import TypeAdapter, ValidationError

from ..common.errors import CatalogError, SettingError
from ..common.files import fingerprint, read_json, replace_file
from ..decoding.history import AcceptanceHistory
from ..decoding.profile import Profile
from ..llama.backend import llama_cpp_version, physical_cores, system_info
from ..llama.parameters import gpu_layers
from ..llama.session import LlamaSession
from ..models.placement import Placement
from .hardware import cpu_name
from .plan import MeasuredModel
from .profiler import DEEP, SHALLOW, measure

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Goes up when what is measured, or how it is written, changes.
FORMAT = 7
#: Limit of a profile's file, which has some kB.
_MAX_BYTES = 1 << 20
#: The fields of a placement that make a model slower or faster.
_SPEED_FIELDS = ("device", "cache_type", "flash_attention", "rpc", "exact")


def profile_of(
    drafter: LlamaSession | None,
    expert: LlamaSession,
    *,
    threads: int | None = None,
    refresh: bool = False,
    on_step: Callable[[float], None] = lambda _: None,
) -> Profile:
    """Return the pair's profile, from the cache or measured now. Both sessions are left with its thread counts and its padding.

    Args:
        drafter: None where drafts are copied from the text.
        expert: The expert's session.
        threads: The thread count that the user asked for; None to choose the fastest.
        refresh: Measure even if the profile is in the cache.
        on_step: Called with the progress, 0..1.
    """
    key = profile_key(drafter, expert, threads)
    path = _cache_file(key)
    profile = None if refresh or path is None else _read_file(path)
    if profile is None or profile.key != key:
        profile = measure(drafter, expert, threads=threads, key=key, on_step=on_step)
        if path is not None:
            _write_file(path, profile)
    apply_profile(profile, drafter, expert)
    return profile


def apply_profile(profile: Profile, drafter: LlamaSession | None, expert: LlamaSession) -> None:
    """Set the thread counts and the padding of both sessions to those of the profile."""
    for session, speed in ((drafter, profile.drafter), (expert, profile.expert)):
        if session is not None:
            session.context.set_threads(speed.threads, speed.batch_threads)
            session.context.pad_batches(speed.padding)


def profile_key(drafter: LlamaSession | None, expert: LlamaSession, threads: int | None) -> dict[str, str | int]:
    """Return what a profile holds for: files, placements, threads that the user asked for (0: none), machine and build."""
    return {
        "format": FORMAT,
        "drafter": _identity(drafter.model.path) if drafter is not None else "none",
        "expert": _identity(expert.model.path),
        "drafter_placement": _placement_key(drafter.model.placement) if drafter is not None else "",
        "expert_placement": _placement_key(expert.model.placement),
        "drafter_bytes": drafter.model.n_bytes if drafter is not None else 0,
        "expert_bytes": expert.model.n_bytes,
        "context": min(expert.n_ctx, DEEP + SHALLOW),  # no more of a larger one is measured
        "threads": threads or 0,
        **_machine(),
    }


def measured_models() -> list[MeasuredModel]:
    """Return every model whose profile on this machine and build is in the cache."""
    models, machine = {}, _machine() | {"format": FORMAT}
    for path in sorted(_folder().glob("*.json")):
        profile = _read_file(path)
        if profile is None or any(profile.key.get(name) != value for name, value in machine.items()):
            continue
        for role, speed in (("drafter", profile.drafter), ("expert", profile.expert)):
            size = profile.key[f"{role}_bytes"]
            if isinstance(size, int) and size:
                models[profile.key[role], speed.threads] = MeasuredModel(size, speed)
    return list(models.values())


def read_profile(data: object) -> Profile:
    """Return the profile that :meth:`Profile.as_dict` wrote. Raises ValueError for anything else."""
    return _read(Profile, data)


def read_histories(data: object) -> dict[str, AcceptanceHistory]:
    """Return the histories that :meth:`Runtime.learnt` wrote, by rule and temperature. Raises SettingError for anything else."""
    try:
        return _read(dict[str, AcceptanceHistory], data)
    except ValueError as error:
        raise SettingError(f"learnt is not what Runtime.learnt() gives: {error}; leave it out to start without it") from error


def _read(kind: type[T], data: object) -> T:
    """Return the value whose JSON is exactly ``data``: every field is there, no other is, and all numbers are finite."""
    adapter = TypeAdapter[T](kind)
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    try:
        value = adapter.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))) from error
    if adapter.dump_python(value, mode="json") != json.loads(text):
        raise ValueError("entries are missing, or there are too many")
    return value


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
    """Return what makes a model slower or faster, adapters by their content."""
    adapters = [(_identity(path), scale) for path, scale in placement.lora]
    return json.dumps([gpu_layers(placement), *(getattr(placement, name) for name in _SPEED_FIELDS), adapters])


def _identity(path: Path) -> str:
    """Return the file's fingerprint, empty where it can no longer be read."""
    try:
        return fingerprint(path)
    except OSError:
        return ""


def _cache_file(key: Mapping[str, str | int]) -> Path | None:
    """Return None where a model's file has no fingerprint."""
    if not (key["drafter"] and key["expert"]):
        return None
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return _folder() / f"{digest[:32]}.json"


def _folder() -> Path:
    return platformdirs.user_cache_path("speccascade") / "profiles"


def _read_file(path: Path) -> Profile | None:
    if not os.path.exists(path):
        return None
    try:
        return read_profile(read_json(path, most=_MAX_BYTES))
    except (CatalogError, ValueError) as error:  # half-written, of another program, or not readable
        log.info("%s: not a profile (%s); measuring again", path, error)
        return None


def _write_file(path: Path, profile: Profile) -> None:
    try:
        replace_file(path, json.dumps(profile.as_dict(), indent=1))
    except OSError as error:
        log.warning("%s: cannot be written (%s); this pair will be measured again next time", path, error.strerror or error)
