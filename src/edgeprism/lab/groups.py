"""Control groups, version 1 or 2: a device's processes take precedence on its core, and hold no more than its memory.

On many systems every session has an equal part of a core (autogroup), however nice its processes are. The group of a
device has 256 times the weight of one (100 times with version 2), so what else runs on the machine takes little of a
core while the device computes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeprism.errors import LabError, NoLab
from edgeprism.lab.namespaces import end, is_running, owner_of

QUOTA_PERIOD_US = 5000  # the shortest whose quotas the kernel keeps: it accounts at clock ticks of 1 to 4 ms
MIN_QUOTA_US = 1000  # that it takes
SHARES, WEIGHT = 262144, 10000  # the most that versions 1 and 2 take; a session has 1024 and 100
REMOVE_TIMEOUT_S = 5.0


def _period_us(speed: float) -> int:
    return max(QUOTA_PERIOD_US, math.ceil(MIN_QUOTA_US / speed))


def quota_ms(speed: float) -> float:
    """Of a device with such a part of a core: what it may take at once."""
    return speed * _period_us(speed) / 1e3


class Groups:
    """The groups of one device, made when needed."""

    def __init__(self, name: str, memory_mb: int | None) -> None:
        self._name, self._memory_mb = name, memory_mb
        self.directories: list[Path] = []

    def make(self) -> None:
        """NoLab where the memory is to be limited and the kernel has nothing for it."""
        cpu, memory = hierarchy("cpu"), hierarchy("memory")
        wanted = [cpu] if cpu else []
        if self._memory_mb is not None:
            if memory is None:
                raise NoLab(
                    "a memory limit needs the control group `memory`, which is not mounted under /sys/fs/cgroup"
                )
            wanted.append(memory)
        for top in dict.fromkeys(wanted):
            directory = top / self._name
            directory.mkdir(exist_ok=True)
            self.directories.append(directory)
        try:
            self._set()
        except OSError as exc:
            raise LabError(f"control group {self._name} cannot be set: {exc}") from exc

    def find(self) -> None:
        """Those that another process made."""
        wanted = [hierarchy("cpu"), hierarchy("memory") if self._memory_mb is not None else None]
        tops = dict.fromkeys(top for top in wanted if top is not None)
        self.directories = [top / self._name for top in tops if (top / self._name).exists()]

    def _set(self) -> None:
        for directory in self.directories:
            for file, value in (("cpu.shares", SHARES), ("cpu.weight", WEIGHT)):
                if (directory / file).exists():
                    (directory / file).write_text(str(value))
            if self._memory_mb is None:
                continue
            limit = str(self._memory_mb * 10**6)
            for file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max"):
                if (directory / file).exists():
                    (directory / file).write_text(limit)
            if (directory / "memory.swap.max").exists():
                (directory / "memory.swap.max").write_text("0")

    def set_quota(self, speed: float) -> None:
        """At most this part of a core, however free it is. NoLab where the kernel has nothing for it."""
        period_us = _period_us(speed)
        quota_us = round(speed * period_us)
        try:
            for directory in self.directories:
                if (directory / "cpu.cfs_quota_us").exists():
                    (directory / "cpu.cfs_period_us").write_text(str(period_us))
                    (directory / "cpu.cfs_quota_us").write_text(str(quota_us))
                    return
                if (directory / "cpu.max").exists():
                    (directory / "cpu.max").write_text(f"{quota_us} {period_us}")
                    return
        except OSError as exc:
            raise LabError(f"a quota of {speed:g} of a core cannot be set: {exc.strerror or exc}") from exc
        raise NoLab("devices that share a core need the control group `cpu` with quotas, which this kernel has not")

    def command(self, command: list[str]) -> list[str]:
        """``command`` as it runs in the groups, under the same pid."""
        if not self.directories:
            return command
        join = " && ".join(f"echo $$ > '{directory / 'cgroup.procs'}'" for directory in self.directories)
        return ["sh", "-c", f'{join} && exec "$@"', "lab", *command]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """The calling thread (with version 2: the process) and what it starts meanwhile is in the group for cores."""
        before = _own_group()
        if before is None or not self.directories or not before[0].is_relative_to(self.directories[0].parent):
            yield
            return
        file, task = before[1], os.getpid() if before[1] == "cgroup.procs" else _thread()
        (self.directories[0] / file).write_text(str(task))
        try:
            yield
        finally:
            (before[0] / file).write_text(str(task))


def hierarchy(controller: str) -> Path | None:
    """Where groups with this controller are made; None if nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(","):
            return Path(place)
        if kind == "cgroup2":
            top = Path(place)
            if controller in (top / "cgroup.controllers").read_text().split():
                (top / "cgroup.subtree_control").write_text(f"+{controller}")
                return top
    return None


def remove_groups(owners: str) -> None:
    """Those whose names begin so, with what still runs in them; with "" those of dead labs."""
    for top in {hierarchy("cpu"), hierarchy("memory")} - {None}:
        assert top is not None
        for directory in top.glob("edgeprism-*"):
            owner = owner_of(directory.name)
            is_dead = owner is not None and not is_running(owner)
            if directory.name.startswith(owners) if owners else is_dead:
                _remove(directory)


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    while directory.exists():
        with suppress(FileNotFoundError):
            _leave(directory)
            end([int(pid) for pid in (directory / "cgroup.procs").read_text().split()])
        try:
            directory.rmdir()
        except OSError as exc:  # the last process has ended and is still counted
            if time.monotonic() > deadline:
                raise LabError(f"control group {directory} cannot be removed: {exc.strerror}") from exc
            time.sleep(0.01)


def _leave(directory: Path) -> None:
    """This process's own threads that are still there, because they were started on the device."""
    for thread in (directory / "tasks").read_text().split() if (directory / "tasks").exists() else ():
        if Path("/proc/self/task", thread).exists():
            with suppress(OSError):  # it has ended meanwhile
                (directory.parent / "tasks").write_text(thread)


def _thread() -> int:
    from threading import get_native_id

    return get_native_id()


def _own_group() -> tuple[Path, str] | None:
    """The group for cores that the calling thread is in, and the file by which one joins it."""
    for line in Path("/proc/thread-self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        top = hierarchy("cpu")
        if top is None:
            return None
        if "cpu" in controllers.split(","):
            return top / path.lstrip("/"), "tasks"
        if not controllers and (top / "cgroup.controllers").exists():
            return top / path.lstrip("/"), "cgroup.procs"
    return None
