"""A process that delays packets, for kernels that have no netem: run as a script, it imports nothing of edgeprism.

Every device has a TUN interface. What the relay reads from one it writes to another's, as if it had passed two cables:
it leaves the sender's at the sender's rate, is under way for its delay, and leaves the receiver's at the receiver's
rate; in a shared medium there is one rate, that of the medium. Unlike a token bucket, a cable has nothing to spend
after a pause. A bucket before each interface makes those wait who send too fast.

Rates and delays lie in a file, which anybody may map and change: for each device two doubles, the delay in nanoseconds
(``DOWN``: it is cut off) and the nanoseconds that a byte takes. The process has real-time priority and ends with the
lab that started it. Arguments: that file, the pid of the lab, 1 for a shared medium or 0, and the namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import mmap
import os
import select
import struct
import sys
import time
from collections import deque

INTERFACE = "delay0"
FIELDS = struct.Struct("dd")
DOWN = -1.0
READY = "ready"
PRIORITY = 30
TICK_S = 100e-6
"""How often it looks for packets to read and to hand on, while it has any. In between it would wake for every packet,
which costs more than the packet."""
LOOK_S = 1.0  # how often it looks for the lab when there is nothing
ETHERNET_BYTES = 14  # TUN interfaces have none; cables do
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000
_MAX_BYTES = 2048

Packet = tuple[float, bytes]
"""When it may go on, in nanoseconds, and itself."""


def main() -> None:
    """Until the lab has ended."""
    path, owner, is_shared, *names = sys.argv[1:]
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), FIELDS.size * len(names))
    settings: memoryview[float] = memoryview(mapped).cast("d")
    cables = Cables(settings, [tun(name) for name in names], is_shared == "1")
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    gc.disable()
    print(READY, flush=True)
    while os.getppid() == int(owner):
        if cables.are_busy:
            arrived = time.monotonic_ns()  # not before that
            time.sleep(TICK_S)
        else:
            select.select(cables.devices, (), (), LOOK_S)
            arrived = time.monotonic_ns()
        cables.take(arrived)
        cables.hand_on()


class Cables:
    """What is under way."""

    def __init__(self, settings: memoryview[float], devices: list[int], is_shared: bool) -> None:
        self._settings, self.devices, self._is_shared = settings, devices, is_shared
        count = len(devices)
        self._sent: list[deque[Packet]] = [deque() for _ in devices]  # by sender, until the delay is over
        self._arriving: list[deque[Packet]] = [deque() for _ in devices]  # by receiver, until its cable has passed it
        self._free = [0.0] * count  # when the cable that a device sends by (the medium: the first) is free
        self._free_down = [0.0] * count

    @property
    def are_busy(self) -> bool:
        """Whether anything is under way."""
        return any(self._sent) or any(self._arriving)

    def take(self, arrived: int) -> None:
        """Reads what devices have sent, a packet of each in turn. Those that follow others closely may have come any
        time since the last look: they are taken to have come then, so that a cable that is in use stays in use."""
        read, settings = os.read, self._settings
        senders = list(range(len(self.devices)))
        while senders:
            for index in tuple(senders):
                try:
                    packet = read(self.devices[index], _MAX_BYTES)
                except BlockingIOError:
                    senders.remove(index)
                    continue
                delay = settings[2 * index]
                if delay == DOWN:
                    continue
                cable = 0 if self._is_shared else index
                free = max(arrived, self._free[cable])
                gone = free + (len(packet) + ETHERNET_BYTES) * settings[2 * index + 1]
                self._free[cable] = gone
                self._sent[index].append((gone + delay, packet))

    def hand_on(self) -> None:
        """Writes what has arrived."""
        now, write, settings = time.monotonic_ns() + TICK_S * 5e8, os.write, self._settings  # half early, half late
        for queue in self._sent:
            while queue and queue[0][0] <= now:
                due, packet = queue.popleft()
                receiver = packet[19] - 1  # the last byte of its address
                if packet[0] >> 4 != 4 or not 0 <= receiver < len(self.devices) or settings[2 * receiver] == DOWN:
                    continue
                if not self._is_shared:
                    through = self._free_down[receiver] + (len(packet) + ETHERNET_BYTES) * settings[2 * receiver + 1]
                    due = self._free_down[receiver] = max(due, through)
                self._arriving[receiver].append((due, packet))
        for receiver, queue in enumerate(self._arriving):
            while queue and queue[0][0] <= now:
                try:
                    write(self.devices[receiver], queue.popleft()[1])
                except OSError:  # its interface is down: a network loses packets
                    pass


def tun(name: str) -> int:
    """A new TUN interface of a namespace; it goes when this process does."""
    with open(f"/run/netns/{name}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {name}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


if __name__ == "__main__":
    main()
