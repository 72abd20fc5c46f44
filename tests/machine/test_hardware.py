"""What the system reports, against other sources, and against made-up systems."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.machine import hardware

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@linux
def test_processors_and_memory_agree_with_other_sources_of_linux():
    found, memory = hardware.processors(), hardware.memory()
    nproc = subprocess.run(["nproc"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=True).stdout
    assert found.allowed == int(nproc)
    assert found.logical == len(re.findall(r"^processor\s*:", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    assert 1 <= found.physical <= found.logical
    assert found.load is not None
    assert abs(found.load - float(Path("/proc/loadavg").read_text().split()[0])) < 0.5  # may change in between
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE))
    assert memory.total == 1024 * int(kilobytes["MemTotal"])
    assert 0 < memory.available <= memory.total
    assert memory.swap_total == 1024 * int(kilobytes["SwapTotal"])


@linux
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="needs two processors")
def test_a_process_bound_to_one_processor_reports_one():
    asking = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    asking += "from speccascade_local.machine.hardware import processors; print(processors().allowed)"
    assert subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, check=True).stdout == "1\n"


@given(st.integers(1000, 10**6), st.integers(1000, 10**6))
def test_a_quota_is_a_number_of_processors_in_both_versions_of_control_groups(tmp_path_factory, quota, period):
    two = written(tmp_path_factory.mktemp("v2"), {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": f"{quota} {period}\n"})
    one = {"proc/self/cgroup": "5:cpu,cpuacct:/box\n0::/\n", "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": f"{quota}\n"}
    one |= {"sys/fs/cgroup/cpu/box/cpu.cfs_period_us": f"{period}\n"}
    assert hardware.processors(two).quota == quota / period
    assert hardware.processors(written(tmp_path_factory.mktemp("v1"), one)).quota == quota / period


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n", "sys/fs/cgroup/a/memory.max": "max\n"},
        {
            "proc/self/cgroup": "2:cpu:/\n3:memory:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    ],
    ids=["another system", "none", "version 2", "version 1"],
)
def test_without_a_limit_there_is_none(tmp_path, files):
    root = written(tmp_path, files)
    assert hardware.processors(root).quota is None
    assert hardware.memory(root).limit is None
    assert hardware.memory(root).available <= psutil.virtual_memory().total


def test_the_tightest_of_nested_groups_counts(tmp_path):
    inside = "sys/fs/cgroup/pod/box"
    files = {"proc/self/cgroup": "0::/pod/box\n", f"{inside}/cpu.max": "400000 100000\n", "sys/fs/cgroup/pod/cpu.max": "150000 100000\n"}
    files |= {"sys/fs/cpu.max": "1 100000\n"}  # above all groups, so none
    files |= {f"{inside}/memory.max": "1000000\n", f"{inside}/memory.current": "300000\n"}
    files |= {"sys/fs/cgroup/pod/memory.max": "2000000\n", "sys/fs/cgroup/pod/memory.current": "1900000\n"}
    files |= {"sys/fs/cgroup/memory.max": "1\n"}
    root = written(tmp_path, files)
    assert hardware.processors(root).quota == 1.5
    (tmp_path / "sys/fs/cgroup/memory.max").unlink()
    memory = hardware.memory(root)
    assert (memory.limit, memory.available) == (2000000, 100000)
    written(root, {"sys/fs/cgroup/pod/memory.stat": "anon 5\ninactive_file 400000\n"})  # what is only kept because there is room
    assert hardware.memory(root).available == 500000


@pytest.mark.parametrize(
    ("files", "cards"),
    [
        ({}, ()),
        ({"dev/nvidia0": ""}, ("NVIDIA",)),
        ({"dev/nvidiactl": ""}, ()),
        ({"dev/kfd": ""}, ("AMD",)),
        ({"sys/class/drm/card0/device/vendor": "0x10de\n", "sys/class/drm/card1/device/vendor": "0x1002\n"}, ("AMD", "NVIDIA")),
        ({"sys/class/drm/card0/device/vendor": "0x1234\n"}, ()),
    ],
)
def test_graphics_cards_are_seen_by_what_the_system_has_of_them(tmp_path, monkeypatch, files, cards):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    assert hardware.graphics_cards(written(tmp_path, files)) == cards


def test_nvidias_tool_alone_is_enough_and_apples_chip_is_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hardware.sys, "platform", "darwin")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "arm64")
    assert hardware.graphics_cards(tmp_path) == ("Apple",)
    written(tmp_path, {"nvidia-smi": ""})
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert hardware.graphics_cards(tmp_path) == ("Apple", "NVIDIA")


def test_names_and_features_are_read_where_linux_has_them(tmp_path):
    files = {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: none\n"}
    root = written(tmp_path, files)
    found = hardware.processors(root)
    assert (found.name, found.features) == ("Some CPU: fast", {"fpu", "avx2"})
    assert hardware.processors(root / "dev").features == frozenset()
