"""A small network on one Linux machine: hosts that are network namespaces, each with one link to a bridge.

A link has a rate (a token bucket at either end, one millisecond deep, offloads off, so that Ethernet frames wait in it)
and can be pulled and plugged in like a cable. Only the network is emulated: the hosts share this machine's cores,
memory and files. Needs root and iproute2. All names begin with the pid of the process that made them: what a crashed
run left is removed by the next one.
"""

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
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "edgeprism"
SUBNET = "10.73.0"  # it exists inside the namespaces only
LATENCY = "50ms"  # what a bucket lets wait
MIN_BURST_BYTES = 8192  # at 65 Mbit/s, a millisecond
FRAME_BYTES, SEGMENT_BYTES = 1514, 1448
"""A full Ethernet frame as the token bucket counts it, and its load: less 14 of Ethernet, 20 of IP, 32 of TCP."""

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL, _SET_TSO, _SET_GSO, _SET_GRO = 0x8946, 0x1F, 0x24, 0x2C


class NoNetwork(Exception):
    """This machine, or this user, cannot have such a network; the text says what is missing."""


class Network:
    """Hosts on a bridge; use it in a ``with``. The first host has address SUBNET.1. NoNetwork where it cannot be."""

    def __init__(self, hosts: Sequence[str], rate_mbit: float | None = None) -> None:
        self.hosts, self.rate_mbit = tuple(hosts), rate_mbit
        self._bridge = _namespace(os.getpid(), "bridge")

    def address(self, host: str) -> str:
        """Of the host's only link."""
        return f"{SUBNET}.{self.hosts.index(host) + 1}"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """``command`` as it runs on a host; the pid of its process is the pid of ``command``."""
        return ["ip", "netns", "exec", _namespace(os.getpid(), host), *command]

    def set_link(self, host: str, *, up: bool) -> None:
        """Plug the host's cable in, or pull it."""
        _run("ip", "-n", self._bridge, "link", "set", _port(host), "up" if up else "down")

    def bytes_to(self, host: str) -> int:
        """What has gone over the wire to a host so far, headers included."""
        with self.on("bridge"):
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        (counters,) = (line.split(":")[1].split() for line in lines if line.strip().startswith(f"{_port(host)}:"))
        return int(counters[8])  # transmitted

    @contextmanager
    def on(self, host: str) -> Iterator[None]:
        """The calling thread, and the threads that it starts meanwhile, are on that host."""
        with open("/proc/thread-self/ns/net") as before:
            _enter(host)
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def __enter__(self) -> Network:
        if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
            raise NoNetwork("needs root and ip (network namespaces; iproute2)")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that __exit__ has its turn
        remove_leftovers()
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("bridge", *self.hosts):
            _remove(_namespace(os.getpid(), name))

    def _make(self) -> None:
        _run("ip", "netns", "add", self._bridge)
        _run("ip", "-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._bridge, "link", "set", "bridge", "up")
        for host in self.hosts:
            self._plug_in(host)

    def _plug_in(self, host: str) -> None:
        """Give a host its namespace, and a cable to the bridge."""
        name, port = _namespace(os.getpid(), host), _port(host)
        _run("ip", "netns", "add", name)
        cable = ("type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "-n", self._bridge, "link", "add", port, *cable)
        _run("ip", "-n", self._bridge, "link", "set", port, "master", "bridge")
        _run("ip", "-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        for namespace, device in ((self._bridge, port), (name, "eth0"), (name, "lo")):
            _run("ip", "-n", namespace, "link", "set", device, "up")
        for place, namespace, device in (("bridge", self._bridge, port), (host, name, "eth0")):
            _elsewhere(place, device)
            if self.rate_mbit is not None:
                burst = f"{max(MIN_BURST_BYTES, round(self.rate_mbit * 125)):d}b"
                bucket = ("tbf", "rate", f"{self.rate_mbit:g}mbit", "burst", burst, "latency", LATENCY)
                _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *bucket)


@contextmanager
def needed(name: str, *, smoke: bool) -> Iterator[None]:
    """Ends a script that cannot have its network with one line: exit 2, or 0 for a smoke run, which is skipped."""
    try:
        yield
    except NoNetwork as exc:
        if smoke:
            print(f"{name}: skipped: {exc}")
            sys.exit(0)
        print(f"{name}: {exc}", file=sys.stderr)
        sys.exit(2)


def wire_s(num_bytes: int, rate_mbit: float) -> float:
    """The least time that so many bytes take over one TCP connection of a link: every frame full, nothing lost."""
    return num_bytes * FRAME_BYTES / SEGMENT_BYTES * 8 / (rate_mbit * 1e6)


def remove_leftovers() -> None:
    """Networks of processes that are no more, and what still runs in them."""
    for line in _run("ip", "netns", "list").splitlines():
        found = re.match(rf"{PREFIX}-(\d+)-", line)
        if found and not Path("/proc", found[1]).exists():
            _remove(line.split()[0])


def _remove(namespace: str) -> None:
    if not Path("/run/netns", namespace).exists():
        return
    for pid in _run("ip", "netns", "pids", namespace).split():
        if int(pid) != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "delete", namespace)


def _namespace(pid: int, host: str) -> str:
    return f"{PREFIX}-{pid}-{host}"


def _port(host: str) -> str:
    """The bridge's end of a host's cable; the kernel takes 15 characters."""
    return f"to-{host}"[:15]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoNetwork(f"needs root and ip: {' '.join(command)} says {done.stderr.strip()}")
    return done.stdout


def _enter(host: str) -> None:
    with open(Path("/run/netns", _namespace(os.getpid(), host))) as namespace:
        _set_namespace(namespace.fileno())


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _elsewhere(place: str, device: str) -> None:
    """Switches off what would hand the bucket frames of 64 kB; in a thread of its own, which moves there and ends."""

    def switch_off() -> None:
        _enter(place)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            for feature in (_SET_TSO, _SET_GSO, _SET_GRO):
                value = array.array("B", struct.pack("II", feature, 0))
                request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
                fcntl.ioctl(asked.fileno(), _SIOCETHTOOL, request)

    thread = threading.Thread(target=switch_off)
    thread.start()
    thread.join()
