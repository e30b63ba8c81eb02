"""What is read of a machine: file trees as they are on boards, and the one that the tests run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeprism.runtime.machine import cpu_clock, cpu_quota, has_nvidia_device, memory_available_bytes

pytestmark = pytest.mark.alone

MB = 2**20


def tree(root: Path, files: dict[str, str]) -> Path:
    """Files below ``root``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_has_memory() -> None:
    """More than this process uses, less than there is."""
    free_bytes = memory_available_bytes()
    assert free_bytes is not None
    assert MB < free_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_control_group_may_leave_less(tmp_path: Path) -> None:
    """The tightest limit on the way up counts, less what is used, plus what the kernel would give back."""
    files = {"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n", "proc/self/cgroup": "0::/a/b\n"}
    assert memory_available_bytes(tree(tmp_path, files)) == 4000000 * 1024
    tree(tmp_path, {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "1\n"})
    assert memory_available_bytes(tmp_path) == 4000000 * 1024
    group = "sys/fs/cgroup/a/memory"
    tree(tmp_path, {f"{group}.max": f"{900 * MB}\n", f"{group}.current": f"{700 * MB}\n"})
    assert memory_available_bytes(tmp_path) == 200 * MB
    tree(tmp_path, {f"{group}.stat": f"anon 5\ninactive_file {300 * MB}\n"})
    assert memory_available_bytes(tmp_path) == 500 * MB
    assert memory_available_bytes(tmp_path / "nothing") is None


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    """A Jetson's kernel may still have it: each controller has a tree of its own."""
    group = "sys/fs/cgroup/memory/docker/7/memory"
    files = {
        "proc/meminfo": "MemAvailable: 4000000 kB\n",
        "proc/self/cgroup": "4:memory:/docker/7\n2:cpu,cpuacct:/docker/7\n0::/\n",
        f"{group}.limit_in_bytes": f"{800 * MB}",
        f"{group}.usage_in_bytes": f"{500 * MB}",
        f"{group}.stat": f"total_inactive_file {100 * MB}\n",
        "sys/fs/cgroup/cpu/docker/7/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu/docker/7/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert memory_available_bytes(tree(tmp_path, files)) == 400 * MB
    assert cpu_quota(tmp_path) == 1.5


def test_a_cpu_quota(tmp_path: Path) -> None:
    """Version 2; "max" is none."""
    root = tree(tmp_path, {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"})
    assert cpu_quota(root) is None
    assert cpu_quota(tree(tmp_path, {"sys/fs/cgroup/a/cpu.max": "200000 100000\n"})) == 2


def test_the_clock_of_a_board(tmp_path: Path) -> None:
    """Of the fastest cores where there are two kinds; unreadable where there is no such directory."""
    assert cpu_clock(tmp_path) is None
    for policy, current, allowed, hardware in (("policy0", 600000, 1500000, 1800000), ("policy4", 900000, 2e6, 2.4e6)):
        place = f"sys/devices/system/cpu/cpufreq/{policy}"
        files = {"scaling_cur_freq": current, "scaling_max_freq": allowed, "cpuinfo_max_freq": hardware}
        tree(tmp_path, {f"{place}/{name}": f"{khz:.0f}\n" for name, khz in files.items()})
        tree(tmp_path, {f"{place}/scaling_governor": "ondemand\n", f"{place}/scaling_driver": "cpufreq-dt\n"})
    clock = cpu_clock(tmp_path)
    assert clock is not None
    assert (clock.current_mhz, clock.allowed_mhz, clock.hardware_mhz) == (900, 2000, 2400)
    assert (clock.governors, clock.drivers) == (("ondemand",), ("cpufreq-dt",))


@pytest.mark.parametrize("name", ["nvidia0", "nvhost-gpu", "nvhost-ctrl-gpu"])
def test_a_gpu_that_cuda_could_run_on(tmp_path: Path, name: str) -> None:
    """A card's device node, or a Jetson's."""
    assert not has_nvidia_device(tree(tmp_path, {"dev/null": ""}))
    assert has_nvidia_device(tree(tmp_path, {f"dev/{name}": ""}))
