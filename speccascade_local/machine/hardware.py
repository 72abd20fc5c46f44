"""What this machine has, and what this process may use of it: processors, memory, graphics cards.

Rests on what the system tells; knows nothing of llama.cpp and of models.
"""

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
#: Older cgroups say "no limit" by a number near this.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Processors:
    """physical, logical: of the machine. allowed: logical ones that this process may run on. quota: how many it may use at once by its
    control group, None for all. load: how many processes wanted one in the last minute, None where the system does not tell. features:
    in the system's own words, empty where it does not tell.
    """

    name: str
    physical: int
    logical: int
    allowed: int
    quota: float | None
    load: float | None
    features: frozenset[str]


@dataclass(frozen=True)
class Memory:
    """In bytes. available: what can be had without swapping. limit: of this process's control group, None for none."""

    total: int
    available: int
    limit: int | None
    swap_used: int
    swap_total: int


def processors(root: Path = _ROOT) -> Processors:
    """Of this machine."""
    logical = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Processors(cpu_name(root), physical, logical, allowed_processors(), _cpu_quota(root), load, frozenset(_features(root)))


def memory(root: Path = _ROOT) -> Memory:
    """Of this machine, now."""
    whole, swap = psutil.virtual_memory(), psutil.swap_memory()
    limit, used = _memory_limit(root)
    available = whole.available if limit is None else max(0, min(whole.available, limit - used))
    return Memory(whole.total, available, limit, swap.used, swap.total)


def graphics_cards(root: Path = _ROOT) -> tuple[str, ...]:
    """The makers of cards that llama.cpp could use: ``NVIDIA``, ``AMD``, ``Apple``; whether their drivers work is not looked at."""
    found = set()
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found.add("Apple")
    if any(root.glob("dev/nvidia[0-9]*")) or shutil.which("nvidia-smi"):
        found.add("NVIDIA")
    if (root / "dev/kfd").exists():
        found.add("AMD")
    found |= {_PCI_VENDORS.get(_line(path), "") for path in root.glob("sys/class/drm/card[0-9]*/device/vendor")} - {""}
    return tuple(sorted(found))


def cpu_name(root: Path = _ROOT) -> str:
    """Linux tells it in a file only."""
    return next((value for name, value in _cpuinfo(root) if name == "model name"), "") or platform.processor()


def _features(root: Path) -> list[str]:
    return next((value.split() for name, value in _cpuinfo(root) if name in ("flags", "Features")), [])


def _cpuinfo(root: Path) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            yield name.strip(), value.strip()


# ---------------------------------------------------------------- control groups: what a container, or a service manager, allows


def _cpu_quota(root: Path) -> float | None:
    """Processors' worth of time; the tightest of this group and those around it."""
    found = []
    for folder in _groups(root, "cpu"):
        allowed, _, period = _line(folder / "cpu.max").partition(" ")
        if not allowed:
            allowed, period = _line(folder / "cpu.cfs_quota_us"), _line(folder / "cpu.cfs_period_us")
        if allowed.isdigit() and period.isdigit() and int(period):  # else "max", or -1
            found.append(int(allowed) / int(period))
    return min(found, default=None)


def _memory_limit(root: Path) -> tuple[int | None, int]:
    """The tightest limit, and how much of it is used."""
    found = []
    for folder in _groups(root, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            size = _line(folder / limit)
            if size.isdigit() and int(size) < _NO_LIMIT:
                found.append((int(size), max(0, int(_line(folder / used) or 0) - _idle(folder))))
    return min(found, key=lambda each: each[0] - each[1], default=(None, 0))


def _idle(folder: Path) -> int:
    """Bytes of files that are only kept because there is room, which count as used."""
    with contextlib.suppress(OSError, ValueError):
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return 0


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of all around it, in both versions that Linux has."""
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
    """The first of a small file, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
