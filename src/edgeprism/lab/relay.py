"""A process that delays packets, for kernels that have no netem: run as a script, it imports nothing of edgeprism.

Each device has a TUN interface, by which it sends, and so has the hub. What is read from a device's is written to the
hub's when its delay is over; the hub hands it on as if it had come over the device's cable. The delays lie in a file
of one 8-byte number a device, in nanoseconds, which anybody may map and change; a device whose number is ``DOWN`` is
cut off. The process has real-time priority and ends with the lab that started it.

Arguments: that file, the pid of the lab, and the namespaces, the hub's first.
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
DOWN = 2**63 - 1
READY = "ready"
PRIORITY = 30
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000
TICK_S = 100e-6
"""How often it looks for packets to read and to hand on, while it has any: a packet is late by half of it."""
LATE_S = 3 * TICK_S  # and it may be held up itself
LOOK_S = 1.0  # how often it looks for the lab when there is nothing
_MAX_BYTES = 2048
_BATCH = 64  # packets of one device that are read before another has its turn


def main() -> None:
    """Until the lab has ended."""
    path, owner, hub_name, *names = sys.argv[1:]
    with open(path, "r+b") as file:
        delays = memoryview(mmap.mmap(file.fileno(), 8 * len(names))).cast("Q")
    hub, devices = _tun(hub_name), [_tun(name) for name in names]
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    gc.disable()
    print(READY, flush=True)
    waiting: list[deque[tuple[int, bytes]]] = [deque() for _ in devices]
    index_of = {device: index for index, device in enumerate(devices)}
    now = time.monotonic_ns
    while os.getppid() == int(owner):
        if any(waiting):
            time.sleep(TICK_S)  # in between it would wake for every packet, which costs more than the packet
            readable = devices
        else:
            readable, _, _ = select.select(devices, (), (), LOOK_S)
        arrived = now()
        for device in readable:
            index = index_of[device]
            delay, queue = delays[index], waiting[index]
            try:
                for _ in range(_BATCH):
                    packet = os.read(device, _MAX_BYTES)
                    if delay != DOWN:
                        queue.append((arrived + delay, packet))
            except BlockingIOError:
                pass
        due = now()
        for queue in waiting:
            while queue and queue[0][0] <= due:
                try:
                    os.write(hub, queue.popleft()[1])
                except OSError:  # the hub's interface is down, or has no room: a network loses packets
                    pass


def _tun(name: str) -> int:
    """A new TUN interface of a namespace; it goes when this process does."""
    with open(f"/run/netns/{name}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {name}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


if __name__ == "__main__":
    main()
