"""Network namespaces whose names begin with the pid of the lab that owns them, and leftovers of labs that are dead."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from edgeprism.errors import LabError, NoLab

PREFIX = "edgeprism"
HUB = "hub"
RUN = Path("/run/netns")
TOOLS = ("ip", "tc", "nsenter", "taskset")

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL, _SET_TSO, _SET_GSO, _SET_GRO = 0x8946, 0x1F, 0x24, 0x2C
END_TIMEOUT_S = 5.0


def require_root() -> None:
    """NoLab without root, or without the tools that make namespaces."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() != 0:
        raise NoLab("a lab needs root (network namespaces); without it, run and profile can pace links: --link-rate")
    if missing:
        raise NoLab(f"a lab needs {', '.join(missing)} (packages iproute2 and util-linux)")


def namespace(owner: int, place: object) -> str:
    """Of a device (its index) or of the hub."""
    return f"{PREFIX}-{owner}-{place}"


def tool(*command: str, lines: Sequence[str] = ()) -> str:
    """What a command prints; ``lines`` are its standard input. LabError with its words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, input="\n".join(lines) + "\n")
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed: {done.stderr.strip() or 'it says nothing'}")
    return done.stdout


def ip(where: str, *lines: str) -> None:
    """Lines of `ip`, in a namespace."""
    tool("ip", "-n", where, "-batch", "-", lines=lines)


def tc(where: str, *lines: str) -> None:
    """Lines of `tc`, in a namespace."""
    tool("tc", "-n", where, "-batch", "-", lines=lines)


def inside(where: str, command: Sequence[str]) -> list[str]:
    """``command`` as it runs in a namespace, under the same pid. /sys stays: control groups are read there."""
    return ["nsenter", f"--net={RUN / where}", "--", *command]


@contextmanager
def entered(where: str) -> Iterator[None]:
    """The calling thread, and the threads that it starts meanwhile, are in that namespace."""
    with open("/proc/thread-self/ns/net") as before:
        _enter(where)
        try:
            yield
        finally:
            _set_namespace(before.fileno())


def owner_of(name: str) -> int | None:
    """The pid in a name of ours."""
    found = re.match(rf"{PREFIX}-(\d+)-", name)
    return int(found[1]) if found else None


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    with suppress(OSError):
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def of_the_dead() -> Iterator[str]:
    """Names of namespaces whose lab is no more."""
    for name in sorted(os.listdir(RUN)) if RUN.exists() else ():
        owner = owner_of(name)
        if owner is not None and not is_running(owner):
            yield name


def remove(name: str) -> None:
    """The namespace, and whatever runs in it."""
    if not (RUN / name).exists():
        return
    end([int(pid) for pid in tool("ip", "netns", "pids", name).split()])
    tool("ip", "netns", "delete", name)


def end(pids: Sequence[int]) -> None:
    """Kills processes, and waits until they are gone. This one is spared."""
    others = [pid for pid in pids if pid != os.getpid()]
    for pid in others:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + END_TIMEOUT_S
    while any(map(is_running, others)) and time.monotonic() < deadline:
        time.sleep(0.005)


def set_offloads(where: str, interface: str, num_frames: int) -> None:
    """Packets of at most so many frames, else they have 64 kB; with 1 no segmentation offload at all. Receivers never
    join packets (GRO): they would grow on the way. In a thread of its own, which moves there and ends."""
    failed: list[OSError] = []

    def switch() -> None:
        try:
            _enter(where)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
                for feature in (_SET_TSO, _SET_GSO, _SET_GRO):
                    is_on = num_frames > 1 and feature != _SET_GRO
                    value = array.array("B", struct.pack("II", feature, is_on))
                    request = struct.pack("16sP", interface.encode(), value.buffer_info()[0])
                    fcntl.ioctl(asked.fileno(), _SIOCETHTOOL, request)
        except OSError as exc:
            failed.append(exc)

    thread = Thread(target=switch)
    thread.start()
    thread.join()
    if failed:
        raise LabError(f"offloads of {interface} in {where} cannot be set: {failed[0]}")
    if num_frames > 1:
        ip(where, f"link set dev {interface} gso_max_segs {num_frames}")


def _enter(where: str) -> None:
    with open(RUN / where) as file:
        _set_namespace(file.fileno())


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
