"""The links of a lab: cables from the devices to a hub, the token buckets on them, and their delays.

    device 0                 hub                       device 1
    eth0 [bucket] ---- port0 [bucket] -- bridge -- [bucket] port1 ---- [bucket] eth0
    delay0 [bucket] -> relay -> delay0 --'

Every egress has a bucket; offloads are off, so it counts Ethernet frames. A shared medium is one bucket (on an ``ifb``)
that everything passes before it is switched; the ports then have none. Where the kernel has no netem, a device with a
delay sends by a TUN interface instead (see ``relay``), whose bucket counts the 14 bytes of Ethernet all the same; what
it receives always comes by its cable. Everything can be changed while it is in use.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from edgeprism.errors import InputError, LabError
from edgeprism.lab import relay
from edgeprism.lab.device import check_delay, check_rate
from edgeprism.lab.namespaces import (
    HUB,
    RUN,
    entered,
    inside,
    ip,
    is_running,
    namespace,
    remove,
    switch_offloads_off,
    tc,
    tool,
)
from edgeprism.lab.state import State

SUBNET = "10.73.0"  # it exists inside the namespaces only
BRIDGE, AIR = "bridge", "air"
ETHERNET_BYTES, FRAME_BYTES, SEGMENT_BYTES = 14, 1514, 1448
"""A full Ethernet frame as a bucket counts it, and its load: less 14 of Ethernet, 20 of IP, 32 of TCP."""
UNLIMITED_MBIT = 40_000.0
TIMER_S = 125e-6
"""How late the kernel's timers may be: a bucket holds what a link sends meanwhile, and a frame."""
QUEUE_S, MIN_QUEUE_BYTES = 50e-3, 256 * 1024
"""What waits before a bucket, at most: that of so long, and never less than so much."""
RELAY_MAX_MBIT = 400.0
"""At higher rates the relay does not keep up (docs/explanation/lab.md)."""
SYSTEM = {
    "net/ipv4/ip_forward": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv4/tcp_no_metrics_save": 1,  # a connection learns nothing from earlier ones
    "net/ipv4/tcp_slow_start_after_idle": 0,  # else a message after a pause takes some round trips more
    "net/ipv6/conf/all/disable_ipv6": 1,  # its announcements would take tokens
    "net/ipv6/conf/default/disable_ipv6": 1,
}


class Links:
    """Those of one lab, described by a ``State``; every method that changes something returns the new one."""

    def __init__(self, owner: int, delays: Path) -> None:
        self._owner, self._delays = owner, delays
        self.hub = namespace(owner, HUB)
        self._relay: subprocess.Popen[str] | None = None

    def address(self, index: int) -> str:
        """Of a device."""
        return f"{SUBNET}.{index + 1}"

    def place(self, index: int) -> str:
        """The namespace of a device."""
        return namespace(self._owner, index)

    def bytes_to(self, index: int) -> int:
        """What has gone over the wire to a device so far, headers included."""
        with entered(self.hub):
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        (counters,) = (line.split(":")[1].split() for line in lines if line.strip().startswith(f"port{index}:"))
        return int(counters[8])  # transmitted

    def make(self, state: State) -> State:
        """Namespaces, cables, buckets and delays."""
        self._new_namespace(self.hub)
        ip(self.hub, f"link add name {BRIDGE} type bridge", f"link set {BRIDGE} up")
        for index in range(len(state.devices)):
            self._plug_in(index, len(state.devices))
        ip(self.hub, f"route add {SUBNET}.0/24 dev {BRIDGE}", *self._neighbours(range(len(state.devices)), BRIDGE))
        state = replace(state, has_netem=self._has_netem())
        if not state.has_netem and Path("/dev/net/tun").exists():
            state = replace(state, relay=self._start_relay(state))
        if state.is_shared:
            self._share(state)
        for index, device in enumerate(state.devices):
            self._fill(state, index)
            if device.delay_ms:
                state = self.set_delay(state, index, device.delay_ms)
        return state

    def set_rate(self, state: State, index: int | None, rate_mbit: float | None) -> State:
        """Of one link, or of all (None)."""
        check_rate(rate_mbit)
        if state.is_shared and index is not None:
            raise InputError("a shared medium has one rate; set it without naming a device")
        chosen = range(len(state.devices)) if index is None else [_checked(state, index)]
        for each in chosen:
            self._check_relay(state, rate_mbit, state.devices[each].delay_ms)
        for each in chosen:
            state = state.changed(each, rate_mbit=rate_mbit)
            self._fill(state, each)
        return state

    def set_delay(self, state: State, index: int | None, delay_ms: float) -> State:
        """Of what one device sends, or every one (None)."""
        check_delay(delay_ms)
        for each in range(len(state.devices)) if index is None else [_checked(state, index)]:
            self._check_relay(state, state.devices[each].rate_mbit, delay_ms)
            state = state.changed(each, delay_ms=delay_ms)
            if state.has_netem:
                netem = f"netem delay {delay_ms:g}ms limit 100000"
                tc(self.place(each), f"qdisc replace dev eth0 parent 1:1 handle 10: {netem}")
                continue
            if delay_ms and (state.relay is None or not is_running(state.relay)):
                why = "has ended" if state.relay else "cannot run: /dev/net/tun is not there"
                raise LabError(f"a delay needs netem in the kernel, or the relay, which {why}")
            self._tell_relay(state, each)
            if delay_ms:  # from now on it sends by the relay, whatever the delay becomes
                route = f"{SUBNET}.0/24 dev {relay.INTERFACE} src {self.address(each)}{_congestion_control()}"
                ip(self.place(each), f"route replace {route}")
        return state

    def set_link(self, state: State, index: int, *, up: bool) -> State:
        """Plug a device's cable in, or pull it."""
        down = {*state.down} - {_checked(state, index)} | (set() if up else {index})
        state = replace(state, down=tuple(sorted(down)))
        ip(self.hub, f"link set port{index} {'up' if up else 'down'}")
        self._tell_relay(state, index)
        return state

    def remove(self) -> None:
        """Every namespace of the lab, and what runs in them; the links go with them."""
        for path in sorted(RUN.glob(namespace(self._owner, "*"))):
            remove(path.name)
        if self._relay is not None:
            self._relay.wait()
            self._relay = None

    def _new_namespace(self, name: str) -> None:
        tool("ip", "netns", "add", name)
        with entered(name):
            for file, value in SYSTEM.items():
                with suppress(FileNotFoundError):  # a kernel without IPv6
                    Path("/proc/sys", file).write_text(str(value))

    def _plug_in(self, index: int, num_devices: int) -> None:
        """Give a device its namespace, and a cable to the hub."""
        name, port = self.place(index), f"port{index}"
        self._new_namespace(name)
        ends = f"type veth peer name eth0 address {_mac(index)} netns {name}"
        ip(self.hub, f"link add {port} {ends}", f"link set {port} master {BRIDGE}", f"link set {port} up")
        others = [other for other in range(num_devices) if other != index]
        ip(
            name,
            f"address add {self.address(index)}/32 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add {SUBNET}.0/24 dev eth0 src {self.address(index)}{_congestion_control()}",
            *self._neighbours(others, "eth0"),
        )
        switch_offloads_off(self.hub, port)
        switch_offloads_off(name, "eth0")

    def _neighbours(self, others: range | list[int], interface: str) -> list[str]:
        """Nobody has to ask who has an address."""
        return [f"neigh add {self.address(i)} lladdr {_mac(i)} dev {interface} nud permanent" for i in others]

    def _share(self, state: State) -> None:
        """Everything that comes to the hub passes one bucket."""
        ip(self.hub, f"link add {AIR} type ifb", f"link set {AIR} up")
        switch_offloads_off(self.hub, AIR)
        redirect = f"u32 match u32 0 0 action mirred egress redirect dev {AIR}"
        relayed = [] if state.relay is None else [relay.INTERFACE]
        for interface in (*relayed, *(f"port{index}" for index in range(len(state.devices)))):
            tc(
                self.hub,
                f"qdisc add dev {interface} ingress",
                f"filter add dev {interface} parent ffff: protocol all {redirect}",
            )

    def _fill(self, state: State, index: int) -> None:
        """Set the buckets of a device's link; in a shared medium also the medium's."""
        rate_mbit = state.devices[index].rate_mbit
        bucket = _bucket(rate_mbit)
        after_relay = _bucket(rate_mbit, 0.0 if state.relay is None else relay.LATE_S)  # what it holds up comes at once
        port = _bucket(None) if state.is_shared else after_relay
        tc(self.place(index), f"qdisc replace dev eth0 root handle 1: {bucket}")
        tc(self.hub, f"qdisc replace dev port{index} root handle 1: {port}")
        if state.relay is not None:
            stab = f"stab overhead {ETHERNET_BYTES}"
            tc(self.place(index), f"qdisc replace dev {relay.INTERFACE} root handle 1: {stab} {bucket}")
        if state.is_shared:
            tc(self.hub, f"qdisc replace dev {AIR} root handle 1: {after_relay}")

    def _has_netem(self) -> bool:
        """Whether this kernel delays packets itself."""
        try:
            tc(self.hub, "qdisc add dev lo root netem delay 1ms")
        except LabError:
            return False
        return True

    def _start_relay(self, state: State) -> int:
        """The process, and its interfaces up; nobody sends by it yet."""
        self._delays.write_bytes(bytes(8 * len(state.devices)))
        places = [self.place(index) for index in range(len(state.devices))]
        script = [sys.executable, "-I", relay.__file__, str(self._delays), str(os.getpid()), self.hub, *places]
        process = subprocess.Popen(
            inside(self.hub, script),
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
                raise LabError(
                    f"the relay, which delays packets, does not start: {(line + said.read()).strip()[-300:]}"
                )
        for place in (self.hub, *places):
            ip(place, f"link set {relay.INTERFACE} up")
        self._relay = process
        return process.pid

    def _tell_relay(self, state: State, index: int) -> None:
        if state.relay is None:
            return
        delay = relay.DOWN if index in state.down else round(state.devices[index].delay_ms * 1e6)
        with self._delays.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            struct.pack_into("Q", mapped, 8 * index, delay)

    def _check_relay(self, state: State, rate_mbit: float | None, delay_ms: float) -> None:
        if delay_ms and not state.has_netem and (rate_mbit is None or rate_mbit > RELAY_MAX_MBIT):
            raise InputError(
                f"a delay of {delay_ms:g} ms needs a rate of at most {RELAY_MAX_MBIT:g} Mbit/s on this kernel, which "
                f"has no netem; {'there is none' if rate_mbit is None else f'it is {rate_mbit:g}'}"
            )


def burst_bytes(rate_mbit: float) -> int:
    """What a full bucket lets pass at once: the least that sustains the rate."""
    return round(FRAME_BYTES + TIMER_S * rate_mbit * 1e6 / 8)


def wire_bytes(num_bytes: int) -> int:
    """What carries so many bytes over one TCP connection: full frames, nothing lost, and no acknowledgements."""
    return num_bytes + (FRAME_BYTES - SEGMENT_BYTES) * -(-num_bytes // SEGMENT_BYTES)


def wire_s(num_bytes: int, rate_mbit: float) -> float:
    """The least time that so many bytes take over one TCP connection of a link: every frame full, nothing lost."""
    return num_bytes * FRAME_BYTES / SEGMENT_BYTES * 8 / (rate_mbit * 1e6)


def _bucket(rate_mbit: float | None, late_s: float = 0.0) -> str:
    """``late_s``: how unevenly the packets come that it is to let pass at the rate."""
    rate = UNLIMITED_MBIT if rate_mbit is None else rate_mbit
    burst = burst_bytes(rate) + round(late_s * rate * 1e6 / 8)
    queue = max(MIN_QUEUE_BYTES, round(QUEUE_S * rate * 1e6 / 8)) + burst
    return f"tbf rate {rate * 1e6:.0f}bit burst {burst}b limit {queue}b"


def _mac(index: int) -> str:
    return f"02:ed:9e:00:00:{index + 1:02x}"


def _congestion_control() -> str:
    """Cubic, which boards have, where this kernel has it."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return " congctl cubic" if "cubic" in available else ""


def _checked(state: State, index: int) -> int:
    if not 0 <= index < len(state.devices):
        raise InputError(f"there is no device {index}; the lab has devices 0 to {len(state.devices) - 1}")
    return index
