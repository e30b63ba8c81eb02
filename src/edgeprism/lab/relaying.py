"""Starting the ``relay`` of a lab, and telling it rates and delays."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeprism.errors import LabError
from edgeprism.lab import relay
from edgeprism.lab.namespaces import inside, ip
from edgeprism.lab.state import State

RELAY_MAX_MBIT = 1000.0
"""At higher rates the relay does not keep up (docs/explanation/lab.md)."""
RING_PACKETS = 1000  # that may wait for the relay; a TUN interface drops the next one


def start_relay(settings: Path, hub: str, places: Sequence[str], *, is_shared: bool) -> subprocess.Popen[str]:
    """The process, and its interfaces up; nobody sends by them yet. LabError with its words when it does not start."""
    settings.write_bytes(bytes(relay.FIELDS.size * len(places)))
    words = [str(settings), str(os.getpid()), str(int(is_shared)), *places]
    process = subprocess.Popen(
        inside(hub, [sys.executable, "-I", relay.__file__, *words]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as said:
        line = said.readline()
        if line.strip() != relay.READY:
            process.kill()
            process.wait()
            raise LabError(f"the relay, which delays packets, does not start: {(line + said.read()).strip()[-300:]}")
    for place in places:
        ip(place, f"link set {relay.INTERFACE} txqueuelen {RING_PACKETS} up")
    return process


def tell_relay(settings: Path, state: State, index: int) -> None:
    """What a device's link is now, where there is a relay."""
    if state.relay is None:
        return
    device = state.devices[index]
    delay_ns = relay.DOWN if index in state.down else device.delay_ms * 1e6
    byte_ns = 0.0 if device.rate_mbit is None else 8e3 / device.rate_mbit
    with settings.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        relay.FIELDS.pack_into(mapped, relay.FIELDS.size * index, delay_ns, byte_ns)
