"""The facts about this installation and this machine in one object, for people and for bug reports."""

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

#: The environment variables that a report shows: they change how llama.cpp runs and hold no secrets.
_VARIABLES = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class DeviceFacts:
    """A device that this build of llama.cpp can use, with the bytes of its memory."""

    name: str
    description: str
    kind: str
    free: int
    total: int


@dataclass(frozen=True)
class Inspection:
    """The facts about this installation and this machine."""

    speccascade: str
    versions: dict[str, str]
    missing: tuple[str, ...]  # requirements that cannot be imported
    extras: tuple[Extra, ...]
    catalog_problem: str  # why the files that name pairs cannot be read; empty where they can
    build: Build
    devices: tuple[DeviceFacts, ...]
    graphics_cards: tuple[str, ...]
    processors: Processors
    threads: int  # the most threads that are used
    memory: Memory
    folders: tuple[Folder, ...]
    environment: dict[str, str]
    trial: Trial  # the outcome of asking the bundled pair

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them: sets as sorted lists, paths as text."""
        facts = asdict(self)
        facts["processors"]["features"] = sorted(self.processors.features)
        for folder in facts["folders"]:
            folder["path"] = str(folder["path"])
        return facts


def inspect_machine(on_step: Callable[[str], None] = lambda _: None) -> Inspection:
    """Collect all facts, which takes a few seconds. ``on_step`` is called with what is done next."""
    on_step("asking llama.cpp")
    build = read_build()
    device_facts = tuple(DeviceFacts(each.name, each.description, each.kind, each.free, each.total) for each in devices())
    on_step("loading the bundled pair and asking it, in a child process")
    trial = try_bundled_pair()
    on_step("looking at folders")
    return Inspection(
        speccascade=__version__,
        versions=versions(),
        missing=missing(),
        extras=extras(),
        catalog_problem=_catalog_problem(),
        build=build,
        devices=device_facts,
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
    """A build of llama.cpp."""

    commit: str | None  # llama.cpp's commit; None where the build does not name it
    features: tuple[str, ...]  # its instruction sets and optional parts
    gpu: bool  # whether it finds a graphics card
    rpc: bool  # whether it can use the devices of other machines
    mmap: bool  # whether it can map files into memory
    repacking: bool  # whether weights may be repacked for this processor


def read_build() -> Build:
    """Return what llama.cpp reports about its build."""
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
