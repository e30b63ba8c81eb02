"""The links of a lab: cables from the devices to a hub, the token buckets on them, and their delays.

    device 0                  hub                  device 1
    eth0 [bucket] ---- port0 [bucket] [bucket] port1 ---- [bucket] eth0
    delay0 ................... relay ................... delay0

Every egress has a bucket, which counts Ethernet frames. A packet holds at most ``State.frames_at_once`` of them, as a
network card with segmentation offload takes them, and every bucket has room for one such packet. A shared medium is
one bucket (on an ``ifb``) that everything passes before it is handed on; the ports then have none. Where the kernel has
no netem, all devices send by TUN interfaces from the first delay on, and a ``relay`` is their cables. Everything can be
changed while it is in use.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from edgeprism.errors import InputError, LabError
from edgeprism.lab import relay
from edgeprism.lab.buckets import bucket
from edgeprism.lab.device import check_delay, check_rate
from edgeprism.lab.namespaces import (
    HUB,
    RUN,
    entered,
    ip,
    is_running,
    namespace,
    remove,
    set_offloads,
    tc,
    tool,
)
from edgeprism.lab.relaying import RELAY_MAX_MBIT, start_relay, tell_relay
from edgeprism.lab.state import State

SUBNET = "10.73.0"  # it exists inside the namespaces only
AIR = "air"
RELAY_S = 1e-3  # what the bucket before the relay holds: the relay is the link, the bucket only makes senders wait
SYSTEM = {
    "net/ipv4/ip_forward": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv4/conf/default/send_redirects": 0,
    "net/ipv4/tcp_no_metrics_save": 1,  # a connection learns nothing from earlier ones
    "net/ipv4/tcp_slow_start_after_idle": 0,  # else a message after a pause takes some round trips more
    "net/ipv6/conf/all/disable_ipv6": 1,  # its announcements would take tokens
    "net/ipv6/conf/default/disable_ipv6": 1,
}


class Links:
    """Those of one lab, described by a ``State``; every method that changes something returns the new one."""

    def __init__(self, owner: int, settings: Path) -> None:
        self._owner, self._settings = owner, settings
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
        (port,) = json.loads(tool("tc", "-n", self.hub, "-s", "-j", "qdisc", "show", "dev", f"port{index}", "root"))
        num_bytes, num_packets = _received(self.place(index), relay.INTERFACE)
        by_cable: int = port["bytes"]  # by its bucket: the interface counts the headers of a packet's first frame only
        return by_cable + num_bytes + num_packets * relay.ETHERNET_BYTES

    def make(self, state: State) -> State:
        """Namespaces, cables, buckets and delays."""
        self._new_namespace(self.hub)
        for index in range(len(state.devices)):
            self._plug_in(state, index)
        if state.is_shared:
            self._share(state)
        state = replace(state, has_netem=self._has_netem())
        if not state.has_netem and Path("/dev/net/tun").exists():
            places = [self.place(index) for index in range(len(state.devices))]
            self._relay = start_relay(self._settings, self.hub, places, is_shared=state.is_shared)
            state = replace(state, relay=self._relay.pid)
        for index, device in enumerate(state.devices):
            self._fill(state, index)
            if device.delay_ms:
                state = self.set_delay(state, index, device.delay_ms)
        return state

    def set_rate(self, state: State, index: int | None, rate_mbit: float | None) -> State:
        """Of one link, or of all (None). Buckets keep room for a packet of ``frames_at_once``: the kernel never sends
        one that is larger than its bucket, and such packets may be waiting."""
        check_rate(rate_mbit)
        if state.is_shared and index is not None:
            raise InputError("a shared medium has one rate; set it without naming a device")
        changed = state
        for each in _chosen(state, index):
            changed = changed.changed(each, rate_mbit=rate_mbit)
        _check_relay(changed)
        for each in _chosen(state, index):
            self._fill(changed, each)
        return changed

    def set_delay(self, state: State, index: int | None, delay_ms: float) -> State:
        """Of what one device sends, or every one (None)."""
        check_delay(delay_ms)
        changed = state
        for each in _chosen(state, index):
            changed = changed.changed(each, delay_ms=delay_ms)
        if delay_ms and not state.has_netem:
            if state.relay is None or not is_running(state.relay):
                why = "has ended" if state.relay else "cannot run: /dev/net/tun is not there"
                raise LabError(f"a delay needs netem in the kernel, or the relay, which {why}")
            changed = replace(changed, is_relayed=True)  # for good: packets of both ways would overtake each other
        _check_relay(changed)
        for each in _chosen(state, index):
            if state.has_netem:
                netem = f"netem delay {delay_ms:g}ms limit 100000"
                tc(self.place(each), f"qdisc replace dev eth0 parent 1:1 handle 10: {netem}")
            tell_relay(self._settings, changed, each)
        if changed.is_relayed and not state.is_relayed:
            for each in range(len(state.devices)):
                self._route(each, relay.INTERFACE)
        return changed

    def set_link(self, state: State, index: int, *, up: bool) -> State:
        """Plug a device's cable in, or pull it."""
        (index,) = _chosen(state, index)
        down = {*state.down} - {index} | (set() if up else {index})
        state = replace(state, down=tuple(sorted(down)))
        ip(self.hub, f"link set port{index} {'up' if up else 'down'}")
        if up:  # what a port that goes down forgets
            ip(self.hub, *self._way_to(index))
        tell_relay(self._settings, state, index)
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

    def _plug_in(self, state: State, index: int) -> None:
        """Give a device its namespace, and a cable to the hub. Nobody has to ask who has an address."""
        name, port = self.place(index), f"port{index}"
        self._new_namespace(name)
        ends = f"type veth peer name eth0 address {_mac(index)} netns {name}"
        ip(self.hub, f"link add {port} address {_mac(index, of_hub=True)} {ends}", f"link set {port} up")
        ip(self.hub, *self._way_to(index))
        others = [self.address(other) for other in range(len(state.devices)) if other != index]
        neighbours = [f"neigh add {a} lladdr {_mac(index, of_hub=True)} dev eth0 nud permanent" for a in others]
        ip(name, f"address add {self.address(index)}/32 dev eth0", "link set eth0 up", "link set lo up", *neighbours)
        self._route(index, "eth0")
        set_offloads(self.hub, port, state.frames_at_once)
        set_offloads(name, "eth0", state.frames_at_once)

    def _way_to(self, index: int) -> list[str]:
        """From the hub."""
        address, port = self.address(index), f"port{index}"
        return [
            f"route replace {address}/32 dev {port}",
            f"neigh replace {address} lladdr {_mac(index)} dev {port} nud permanent",
        ]

    def _route(self, index: int, interface: str) -> None:
        """By which a device sends."""
        route = f"{SUBNET}.0/24 dev {interface} src {self.address(index)}{_congestion_control()}"
        ip(self.place(index), f"route replace {route}")

    def _share(self, state: State) -> None:
        """Everything that comes to the hub passes one bucket."""
        ip(self.hub, f"link add {AIR} type ifb", f"link set {AIR} up")
        set_offloads(self.hub, AIR, state.frames_at_once)
        redirect = f"protocol all u32 match u32 0 0 action mirred egress redirect dev {AIR}"
        for index in range(len(state.devices)):
            port = f"port{index}"
            tc(self.hub, f"qdisc add dev {port} ingress", f"filter add dev {port} parent ffff: {redirect}")

    def _fill(self, state: State, index: int) -> None:
        """Set the rate of a device's link; in a shared medium also the medium's."""
        rate_mbit, frames = state.devices[index].rate_mbit, state.frames_at_once
        of_port = bucket(None if state.is_shared else rate_mbit, frames)
        tc(self.place(index), f"qdisc replace dev eth0 root handle 1: {bucket(rate_mbit, frames)}")
        tc(self.hub, f"qdisc replace dev port{index} root handle 1: {of_port}")
        if state.is_shared:
            tc(self.hub, f"qdisc replace dev {AIR} root handle 1: {bucket(rate_mbit, frames)}")
        if state.relay is not None:
            stab = f"stab overhead {relay.ETHERNET_BYTES}"
            tc(
                self.place(index),
                f"qdisc replace dev {relay.INTERFACE} root handle 1: {stab} {bucket(rate_mbit, 1, RELAY_S)}",
            )
            tell_relay(self._settings, state, index)

    def _has_netem(self) -> bool:
        """Whether this kernel delays packets itself."""
        try:
            tc(self.hub, "qdisc add dev lo root netem delay 1ms")
        except LabError:
            return False
        return True


def _check_relay(state: State) -> None:
    """InputError for a rate that the relay does not sustain."""
    fastest = max((device.rate_mbit or 1e9 for device in state.devices), default=0.0)
    if state.is_relayed and fastest > RELAY_MAX_MBIT:
        raise InputError(
            f"this kernel has no netem, and without it delays go with at most {RELAY_MAX_MBIT:g} Mbit/s; "
            f"{'a link has no limit' if fastest == 1e9 else f'a link has {fastest:g}'}"
        )


def _received(place: str, interface: str) -> tuple[int, int]:
    """Bytes and packets."""
    with entered(place):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    for line in lines:
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            num_bytes, num_packets = counters.split()[:2]
            return int(num_bytes), int(num_packets)
    return 0, 0


def _mac(index: int, *, of_hub: bool = False) -> str:
    return f"02:ed:9e:00:{of_hub:02x}:{index + 1:02x}"


def _congestion_control() -> str:
    """Cubic, which boards have, where this kernel has it."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return " congctl cubic" if "cubic" in available else ""


def _chosen(state: State, index: int | None) -> range:
    """One device, or all of them; InputError for one that is not there."""
    if index is None:
        return range(len(state.devices))
    if not 0 <= index < len(state.devices):
        raise InputError(f"there is no device {index}; the lab has devices 0 to {len(state.devices) - 1}")
    return range(index, index + 1)
