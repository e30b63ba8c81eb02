"""Discovery by mDNS: what a worker says of itself (``announce`` says it), and the list of who says so.

[Note: discovery admits nobody] What comes is a proposal from anybody on the network. It is checked for its form, so
that it can be printed, and returned; nothing here opens a connection, writes a file, or reaches the list of admitted
keys. Whether a key is that of the board is for a person to say, who compares it with what the board printed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprism.errors import InputError
from edgeprism.runtime.cluster_file import is_loopback
from edgeprism.wire.frame import PROTOCOL
from edgeprism.wire.keys import OPEN_KEYS, check_key

if TYPE_CHECKING:
    from zeroconf import ServiceInfo

log = logging.getLogger(__name__)

SERVICE = "_edgeprism._tcp.local."
MAX_FOUND = 32
"""Devices that one search takes; a flood of announcements fills neither memory nor screen."""
MAX_ADDRESSES = 8
"""Addresses of one device."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_MAX_NAME = 63  # a label of DNS
_NUMBER = re.compile(rb"[0-9]{1,3}")
_RESOLVE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a device says of itself; InputError unless every field has its form. ``addresses``: IPv4, at least one."""

    name: str
    addresses: tuple[str, ...]
    port: int
    public_key: str
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        check_name(self.name)
        check_key(self.public_key)
        if not 0 < self.port < 2**16:
            raise InputError(f"port {self.port} must be 1 to 65535")
        if not 0 <= self.protocol < 2**8:
            raise InputError(f"protocol number {self.protocol} must be 0 to 255")
        if not 0 < len(self.addresses) <= MAX_ADDRESSES or not all(map(is_host, self.addresses)):
            raise InputError(f"a device has 1 to {MAX_ADDRESSES} IPv4 addresses of its own, not {self.addresses}")
        if self.public_key == OPEN_KEYS.public and not all(map(is_loopback, self.addresses)):
            raise InputError("without a key of its own a device is on loopback only")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Who announced a worker, by name, and how many announcements were thrown away: malformed, or too many."""

    devices: tuple[Announcement, ...]
    num_refused: int


def check_name(name: str) -> None:
    """InputError unless it can be announced, and printed as it is."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InputError(
            f"a device is announced under a name of at most {_MAX_NAME} letters, digits, dots and dashes, not {name!r}"
        )


def require_zeroconf() -> None:
    """InputError with the command that installs it, where the library is missing."""
    try:
        import zeroconf  # noqa: F401
    except ImportError:
        raise InputError("discovery needs the library zeroconf; run: pip install 'edgeprism[discover]'") from None


def find(seconds: float, interface: str | None = None) -> Found:
    """Listens for that long, on the interface with this address, or on all of them. InputError where it cannot."""
    require_zeroconf()
    own = own_interfaces()
    if interface is not None and interface not in {str(one.ip) for one in own}:
        raise InputError(f"no interface of this device has the IPv4 address {interface}")
    infos, num_refused = asyncio.run(_browse(seconds, [interface] if interface else [str(one.ip) for one in own]))
    devices = []
    for info in infos:
        try:
            devices.append(_announcement_of(info, own))
        except InputError as exc:
            log.info("an announcement is thrown away: %s", exc)
            num_refused += 1
    return Found(devices=tuple(sorted(devices, key=lambda device: device.name)), num_refused=num_refused)


def own_interfaces() -> list[ipaddress.IPv4Interface]:
    """The IPv4 addresses of this device with their networks, loopback's included."""
    import ifaddr

    return [
        ipaddress.IPv4Interface(f"{ip.ip}/{ip.network_prefix}")
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if ip.is_IPv4
    ]


def is_host(address: str) -> bool:
    """Whether one device can have it."""
    try:
        host = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return not (host.is_unspecified or host.is_multicast or host.is_reserved)


async def _browse(seconds: float, interfaces: Sequence[str]) -> tuple[Sequence[ServiceInfo], int]:
    """What was said of each name that has its form, and how many names have not, or were too many."""
    from zeroconf import DNSQuestionType, IPVersion, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    names: set[str] = set()
    num_refused = 0

    def on_change(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        nonlocal num_refused
        if state_change is ServiceStateChange.Removed:
            names.discard(name)
        elif len(names) < MAX_FOUND and _is_instance(name):
            names.add(name)
        elif state_change is ServiceStateChange.Added:
            num_refused += 1

    try:
        mdns = AsyncZeroconf(interfaces=list(interfaces), ip_version=IPVersion.V4Only)
    except OSError as exc:
        raise InputError(f"cannot listen for announcements: {exc.strerror}") from exc
    async with mdns:
        # Answers to all: of several programs at port 5353 (Avahi) the kernel would give an answer to us to any one.
        to_all = DNSQuestionType.QM
        browser = AsyncServiceBrowser(mdns.zeroconf, SERVICE, handlers=[on_change], question_type=to_all)
        await asyncio.sleep(seconds)
        await browser.async_cancel()
        infos = [AsyncServiceInfo(SERVICE, name) for name in names]
        await asyncio.gather(*(info.async_request(mdns.zeroconf, _RESOLVE_S * 1000, to_all) for info in infos))
    return infos, num_refused


def _is_instance(name: str) -> bool:
    try:
        check_name(name.removesuffix(f".{SERVICE}"))
    except InputError:
        return False
    return name.endswith(f".{SERVICE}")


def _announcement_of(info: ServiceInfo, own: Sequence[ipaddress.IPv4Interface]) -> Announcement:
    """InputError unless all that it needs has its form."""
    from zeroconf import IPVersion

    properties = info.properties
    protocol = properties.get(b"protocol") or b""
    if not _NUMBER.fullmatch(protocol):
        raise InputError("it names no protocol number")
    addresses = sorted(
        set(filter(is_host, info.parsed_addresses(IPVersion.V4Only))), key=lambda one: (_distance(one, own), one)
    )
    return Announcement(
        name=info.name.removesuffix(f".{SERVICE}"),
        addresses=tuple(addresses[:MAX_ADDRESSES]),
        port=info.port or 0,
        public_key=(properties.get(b"public_key") or b"").decode("ascii", errors="replace"),
        protocol=int(protocol),
    )


def _distance(address: str, own: Sequence[ipaddress.IPv4Interface]) -> int:
    """0 for a neighbour, 2 for an address that is ours as well: every Docker host has 172.17.0.1."""
    host = ipaddress.IPv4Address(address)
    if any(host == one.ip for one in own):
        return 2
    return 0 if any(host in one.network for one in own) else 1
