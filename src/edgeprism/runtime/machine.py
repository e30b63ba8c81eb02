"""What the kernel says about this machine: free memory, CPU quota and clock. Files only; needs no root.

Each reader takes the root of the file tree, so that it can be shown the files of another board.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
MEMORY_PART = 0.85
"""Of what is free, for a stage: what an allocator keeps and libraries take was not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuClock:
    """Of the fastest cores, where they differ."""

    governors: tuple[str, ...]
    drivers: tuple[str, ...]
    current_mhz: float
    allowed_mhz: float
    """The governor may go no higher."""
    hardware_mhz: float
    """The hardware could."""


def memory_available_bytes(root: Path = ROOT) -> int | None:
    """What a program may still take: by the kernel's estimate, or its control group's limit if that is less; None if
    the kernel does not say."""
    fields = _fields(root / "proc/meminfo")
    if "MemAvailable:" not in fields:
        return None
    free_bytes = [1024 * fields["MemAvailable:"]]
    for directory in _control_groups("memory", root):
        for limit, usage, reclaimable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
        ):
            limit_bytes, used_bytes = _number(directory / limit), _number(directory / usage)
            if limit_bytes is not None and used_bytes is not None:  # files that were read count as used, and need not
                reclaimable_bytes = _fields(directory / "memory.stat").get(reclaimable, 0)
                free_bytes.append(max(0, limit_bytes - used_bytes + reclaimable_bytes))
    return min(free_bytes)


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many cores' time the control group grants; None for no limit."""
    quotas = []
    for directory in _control_groups("cpu", root):
        quota, period = ([*_text(directory / "cpu.max").split(), "", ""])[:2]
        quota = quota or _text(directory / "cpu.cfs_quota_us")  # version 1
        period = period or _text(directory / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cpu_clock(root: Path = ROOT) -> CpuClock | None:
    """None where the kernel does not say, as in most virtual machines."""
    policies = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    policies = [policy for policy in policies if _number(policy / "cpuinfo_max_freq")]
    if not policies:
        return None

    def highest_mhz(name: str) -> float:
        return max(_number(policy / name) or 0 for policy in policies) / 1000

    def texts(name: str) -> tuple[str, ...]:
        return tuple(sorted({_text(policy / name) for policy in policies} - {""}))

    return CpuClock(
        governors=texts("scaling_governor"),
        drivers=texts("scaling_driver"),
        current_mhz=highest_mhz("scaling_cur_freq"),
        allowed_mhz=highest_mhz("scaling_max_freq"),
        hardware_mhz=highest_mhz("cpuinfo_max_freq"),
    )


def hardware(root: Path = ROOT) -> str:
    """What this machine is, in a few words that stay the same: "Raspberry Pi 5 Model B Rev 1.0, aarch64, 4 cores"."""
    board = _text(root / "proc/device-tree/model").rstrip("\0")
    lines = _text(root / "proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return ", ".join(
        [board or (names[0] if names else "unknown processor"), platform.machine(), f"{os.cpu_count() or 1} cores"]
    )


def power_mode(root: Path = ROOT) -> str:
    """What decides how fast it may run: a Jetson's nvpmodel, the governor and its highest clock; empty where nothing
    is known."""
    mode = _text(root / "var/lib/nvpmodel/status").removeprefix("pmode:")
    clock = cpu_clock(root)
    parts = [f"nvpmodel {mode}"] if mode else []
    if clock is not None:
        parts.append(f"{'/'.join(clock.governors)} to {clock.allowed_mhz:.0f} MHz")
    return ", ".join(parts)


def has_nvidia_device(root: Path = ROOT) -> bool:
    """Whether the kernel shows a GPU that CUDA could run on: a board's or a card's."""
    return any((root / "dev" / name).exists() for name in ("nvidia0", "nvhost-gpu", "nvhost-ctrl-gpu"))


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """The directories of this process's control groups, the outer ones too: each of them may set a limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":  # version 2 has one tree for all controllers
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        inner = top / path.lstrip("/")
        yield from (directory for directory in (inner, *inner.parents) if directory.is_relative_to(top))


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number, like those of /proc/meminfo."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """Contents of a small file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \n\0")
    except OSError:
        return ""
