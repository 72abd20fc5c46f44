"""All that can be told of this installation and this machine, in one object: for people, and for bug reports.

Knows nothing of what is good or bad about it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..common.errors import SpeccascadeError
from ..common.version import __version__
from ..llama import backend, rpc
from ..llama.backend import extra_buffers_are_safe, physical_cores, system_info
from ..llama.devices import devices, has_gpu
from ..models import catalog
from .hardware import Memory, Processors, graphics_cards, memory, processors
from .installation import Extra, Folder, extras, folders, missing, versions
from .trial import Trial, try_bundled_pair

#: Variables that change how llama.cpp runs and hold no secrets; of others not even the name is told.
_VARIABLES = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class DeviceFacts:
    """A device of the build; bytes."""

    name: str
    description: str
    kind: str
    free: int
    total: int


@dataclass(frozen=True)
class Inspection:
    """threads: as many as are used at most. catalog_problem: why the files that name pairs cannot be read, empty where they can."""

    speccascade: str
    versions: dict[str, str]
    missing: tuple[str, ...]
    extras: tuple[Extra, ...]
    catalog_problem: str
    build: Build
    devices: tuple[DeviceFacts, ...]
    graphics_cards: tuple[str, ...]
    processors: Processors
    threads: int
    memory: Memory
    folders: tuple[Folder, ...]
    environment: dict[str, str]
    trial: Trial

    def as_dict(self) -> dict[str, Any]:
        """For JSON; sets become sorted lists, paths text."""
        whole = asdict(self)
        whole["processors"]["features"] = sorted(self.processors.features)
        for folder in whole["folders"]:
            folder["path"] = str(folder["path"])
        return whole


def inspect_machine(on_step: Callable[[str], None] = lambda _: None) -> Inspection:
    """Look at everything; takes a few seconds. on_step: told what is done next."""
    on_step("asking llama.cpp")
    build = read_build()
    places = tuple(DeviceFacts(each.name, each.description, each.kind, each.free, each.total) for each in devices())
    on_step("loading the bundled pair and asking it, in a child process")
    trial = try_bundled_pair()
    on_step("looking into folders")
    return Inspection(
        speccascade=__version__,
        versions=versions(),
        missing=missing(),
        extras=extras(),
        catalog_problem=_catalog_problem(),
        build=build,
        devices=places,
        graphics_cards=graphics_cards(),
        processors=processors(),
        threads=physical_cores(),
        memory=memory(),
        folders=folders(),
        environment={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        trial=trial,
    )


def _catalog_problem() -> str:
    try:
        catalog.known_pairs()
    except SpeccascadeError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Build:
    """features: instruction sets and parts that are in it. gpu: whether it found a graphics card. repacking: whether weights may be."""

    commit: str | None
    features: tuple[str, ...]
    gpu: bool
    rpc: bool
    mmap: bool
    repacking: bool


def read_build() -> Build:
    """What llama.cpp says of itself."""
    info = system_info()
    pairs = (part.split(" : ")[-1].split(" = ") for part in info.split("|"))
    features = tuple(pair[0].strip() for pair in pairs if len(pair) == 2 and pair[1].strip() != "0")
    return Build(
        commit=backend.commit(),
        features=features,
        gpu=has_gpu(),
        rpc=rpc.is_supported(),
        mmap=backend.supports_mmap(),
        repacking=extra_buffers_are_safe(info),
    )
