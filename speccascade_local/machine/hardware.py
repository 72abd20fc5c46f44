"""The processors, memory and graphics cards of this machine, and what this process may use of them, as the system reports it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..llama.backend import allowed_processors

_ROOT = Path("/")
_PCI_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD"}
#: Older control groups write "no limit" as a number above this.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Processors:
    """The processors of this machine."""

    name: str  # of the model
    physical: int  # cores
    logical: int
    allowed: int  # of the logical ones, those that this process may run on
    quota: float | None  # how many its control group lets it use at once; None for all
    load: float | None  # how many processes wanted one in the last minute; None where the system does not say
    features: frozenset[str]  # the instruction sets in the system's words; empty where it does not say


@dataclass(frozen=True)
class Memory:
    """The memory of this machine in bytes."""

    total: int
    available: int  # what this process can take without swapping
    limit: int | None  # the limit of this process's control group; None for none
    swap_used: int
    swap_total: int


def processors(root: Path = _ROOT) -> Processors:
    """Return the processors of this machine."""
    logical = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Processors(cpu_name(root), physical, logical, allowed_processors(), _cpu_quota(root), load, frozenset(_features(root)))


def memory(root: Path = _ROOT) -> Memory:
    """Return the memory of this machine, as it is now."""
    machine, swap = psutil.virtual_memory(), psutil.swap_memory()
    limit, used = _memory_limit(root)
    available = machine.available if limit is None else max(0, min(machine.available, limit - used))
    return Memory(machine.total, available, limit, swap.used, swap.total)


def graphics_cards(root: Path = _ROOT) -> tuple[str, ...]:
    """Return the makers of cards that llama.cpp could use: ``NVIDIA``, ``AMD``, ``Apple``. Drivers are not checked."""
    makers = set()
    if sys.platform == "darwin" and platform.machine() == "arm64":
        makers.add("Apple")
    if any(root.glob("dev/nvidia[0-9]*")) or shutil.which("nvidia-smi"):
        makers.add("NVIDIA")
    if (root / "dev/kfd").exists():
        makers.add("AMD")
    makers |= {_PCI_VENDORS.get(_line(path), "") for path in root.glob("sys/class/drm/card[0-9]*/device/vendor")} - {""}
    return tuple(sorted(makers))


def cpu_name(root: Path = _ROOT) -> str:
    """Return the processor's name, which Linux shows only in a file."""
    return next((value for name, value in _cpuinfo(root) if name == "model name"), "") or platform.processor()


def _features(root: Path) -> list[str]:
    return next((value.split() for name, value in _cpuinfo(root) if name in ("flags", "Features")), [])


def _cpuinfo(root: Path) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            yield name.strip(), value.strip()


# --------------------------------------------------------------------------- control groups: the limits of containers and services


def _cpu_quota(root: Path) -> float | None:
    """Return how many processors' time this group allows, or the tightest of those around it."""
    quotas = []
    for folder in _groups(root, "cpu"):
        allowed, _, period = _line(folder / "cpu.max").partition(" ")
        if not allowed:
            allowed, period = _line(folder / "cpu.cfs_quota_us"), _line(folder / "cpu.cfs_period_us")
        if allowed.isdigit() and period.isdigit() and int(period):  # else "max", or -1
            quotas.append(int(allowed) / int(period))
    return min(quotas, default=None)


def _memory_limit(root: Path) -> tuple[int | None, int]:
    """Return the tightest limit and how much of it is used, in bytes."""
    limits = []
    for folder in _groups(root, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            size = _line(folder / limit)
            if size.isdigit() and int(size) < _NO_LIMIT:
                limits.append((int(size), max(0, int(_line(folder / used) or 0) - _idle(folder))))
    return min(limits, key=lambda each: each[0] - each[1], default=(None, 0))


def _idle(folder: Path) -> int:
    """Return the bytes of cached files, which count as used and are freed on demand."""
    with contextlib.suppress(OSError, ValueError):
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return 0


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all around it, in both versions that Linux has."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            inner = top / path.lstrip("/")
            for folder in (inner, *inner.parents):
                yield folder
                if folder == top:
                    break


def _line(path: Path) -> str:
    """Return the first line of a small file, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
