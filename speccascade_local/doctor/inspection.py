"""All that can be told of this installation and this machine, in one object: for people, and for bug reports.

Knows nothing of what is good or bad about it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__, catalog
from ..backend import physical_cores
from ..build import Build, built
from ..devices import devices
from ..errors import SpeccascadeError
from ..machine import Memory, Processors, graphics_cards, largest_cache, memory, processors
from .bandwidth import memory_bandwidth
from .installation import Extra, Folder, extras, folders, missing, versions
from .trial import Trial, tried

#: Variables that change how llama.cpp runs and hold no secrets; of others not even the name is told.
_VARIABLES = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Place:
    """A device of the build; bytes."""

    name: str
    description: str
    kind: str
    free: int
    total: int


@dataclass(frozen=True)
class Inspection:
    """threads: as many as are used at most. bandwidth: bytes per second at least, None where it was not measured.

    catalog_problem: why the files that name pairs cannot be read, empty where they can.
    """

    speccascade: str
    versions: dict[str, str]
    missing: tuple[str, ...]
    extras: tuple[Extra, ...]
    catalog_problem: str
    build: Build
    devices: tuple[Place, ...]
    graphics_cards: tuple[str, ...]
    processors: Processors
    threads: int
    memory: Memory
    bandwidth: float | None
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


def inspected(on_step: Callable[[str], None] = lambda _: None) -> Inspection:
    """Look at everything; takes a few seconds. on_step: told what is done next."""
    on_step("asking llama.cpp")
    build = built()
    places = tuple(Place(each.name, each.description, each.kind, each.free, each.total) for each in devices())
    on_step("measuring the memory's bandwidth")
    now = memory()
    bandwidth = memory_bandwidth(physical_cores(), largest_cache(), now.available)
    on_step("loading the bundled pair and asking it, in a child process")
    trial = tried()
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
        memory=now,
        bandwidth=bandwidth,
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
