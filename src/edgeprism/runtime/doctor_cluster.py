"""Does this network work, before anything else: what ``edgeprism doctor --cluster FILE`` looks at.

It runs on the coordinator and visits each device (``wire.visit``): the worker there goes on serving. How fast the
others reach each other is not measured, for they know each other's keys only once a coordinator has introduced them.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgeprism.errors import InputError, PeerError, PeerTimeout
from edgeprism.runtime.check import Check
from edgeprism.runtime.cluster_file import ClusterFile, Member, own_keys, split_address
from edgeprism.runtime.doctor_link import fact_checks, link_checks
from edgeprism.runtime.probe import ask_facts, measure
from edgeprism.runtime.reach import Reach, reach_all
from edgeprism.wire.key_file import read_key_file
from edgeprism.wire.keys import OPEN_KEYS, KeyPair, Peer
from edgeprism.wire.visit import Visit

REACH_TIMEOUT_S = 3.0
HANDSHAKE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A device of the cluster file, and how far one got towards it."""

    member: Member
    reach: Reach
    coordinator_key: str

    @property
    def host(self) -> str:
        """As the file says."""
        return split_address(self.member.address)[0]

    @property
    def port(self) -> int:
        """Where its worker listens."""
        return split_address(self.member.address)[1]

    @property
    def start_command(self) -> str:
        """What starts its worker, for this coordinator."""
        listen = f"{'127.0.0.1' if self.reach.is_loopback else '0.0.0.0'}:{self.port}"
        if self.coordinator_key == OPEN_KEYS.public:
            return f"edgeprism worker --listen {listen}"
        key = shlex.quote(self.coordinator_key)
        return f"edgeprism worker --listen {listen} --key {self.member.name}.secret --coordinator={key}"


def key_check(key: Path) -> Check:
    """Whether a device's own secret can be used: what can be looked at on a device that is no coordinator."""
    try:
        keys = read_key_file(key)
    except InputError as exc:
        return _failure(key.name, "key", exc, "give this device's with --key, or make it: edgeprism keys new NAME")
    return Check.of(key.name, "key", "ok", f"only its owner can read it; its public_key is {keys.public}")


def cluster_checks(path: Path, key: Path | None) -> Iterator[Check]:
    """One after the other, as they are done. Who does not answer costs some seconds, all of them together."""
    try:
        members = ClusterFile.read(path).members
    except InputError as exc:
        yield _failure(path.name, "file", exc, "docs/how-to/run-on-several-boards.md shows one that can be used")
        return
    own, others = members[0], members[1:]
    names = ", ".join(member.name for member in others)
    yield Check.of(path.name, "file", "ok", f"{own.name}, which is this device, coordinates {names}")
    try:
        keys = own_keys(path, own, key)
    except InputError as exc:
        advice = f"run this on {own.name}, with its own key, or correct the cluster file"
        yield _failure(path.name, "key", exc, advice)
        return
    file = key or path.with_name(f"{own.name}.secret")
    value = f"{file.name} is of the public_key that is listed; only its owner can read it"
    yield Check.of(path.name, "key", "ok", "none, and none is needed on loopback" if keys == OPEN_KEYS else value)
    reached = reach_all([split_address(member.address) for member in others], REACH_TIMEOUT_S)
    yield from _place_checks(
        [Place(member=m, reach=r, coordinator_key=keys.public) for m, r in zip(others, reached, strict=True)], keys
    )


def _failure(about: str, name: str, exc: InputError, advice: str) -> Check:
    """Our errors say what is wrong, and most of them what to do."""
    value, _, todo = " ".join(str(exc).split()).partition("; ")
    return Check.of(about, name, "FAIL", value, todo or advice)


def _place_checks(places: list[Place], keys: KeyPair) -> Iterator[Check]:
    with ExitStack() as stack:
        visits: dict[str, Visit] = {}
        for rank, place in enumerate(places, start=1):  # all of them begin to shake hands
            if not place.reach.trouble:
                address = f"tcp://{place.reach.ip}:{place.port}"
                peer = Peer(rank=rank, address=address, public_key=place.member.public_key)
                visits[place.member.name] = stack.enter_context(Visit(peer, keys))
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        for place in places:
            yield _address_check(place, places)
            if place.member.name in visits:
                yield from _visit_checks(place, visits[place.member.name], deadline)
            elif place.reach.ip:
                yield _closed_check(place)


def _address_check(place: Place, places: list[Place]) -> Check:
    reach, check = place.reach, _about(place, "address")
    if not reach.ip:
        advice = f"correct {place.host} in the cluster file, or give the device's IP address"
        if place.host.endswith(".local"):
            advice += "; names in .local need avahi-daemon there and libnss-mdns here"
        return check("FAIL", f"{place.host} leads nowhere: {reach.reason}", advice)
    value = reach.ip if reach.ip == place.host else f"{place.host} is {reach.ip}"
    if reach.is_unspecified:
        return check("FAIL", f"{value}: one listens there, and is not found there", "give that device's own address")
    if reach.is_loopback:
        elsewhere = [other.member.name for other in places if other.reach.ip and not other.reach.is_loopback]
        advice = f"seen from {' or '.join(elsewhere)} that is another machine: give the address that all of them see"
        return check("warn" if elsewhere else "ok", f"{value}, on this machine", advice)
    if reach.is_here:
        advice = "the coordinator computes too, and a worker beside it takes its cores: give the other board's address"
        return check("warn", f"{value}, which is this machine", advice)
    return check("ok", value)


def _closed_check(place: Place) -> Check:
    """Why nobody can be visited there."""
    check, reason = _about(place, "connection"), place.reach.reason
    if place.reach.trouble == "refused":
        return check("FAIL", f"nothing listens on port {place.port}", f"start it there: {place.start_command}")
    advice = f"is the device on, in this network, at this address, and port {place.port} open in its firewall?"
    return check("FAIL", reason, advice)


def _visit_checks(place: Place, visit: Visit, deadline: float) -> Iterator[Check]:
    check = _about(place, "connection")
    try:
        visit.wait_connected(deadline)
    except PeerTimeout:
        value = f"port {place.port} is open, and nothing speaks there within {HANDSHAKE_TIMEOUT_S:g} s"
        advice = "its worker is busy, hangs or is stopped, or that is no edgeprism: try again, else start it again"
        yield check("FAIL", value, advice)
        return
    except PeerError as exc:
        yield check("FAIL", str(exc), _handshake_advice(place, str(exc)))
        return
    try:
        facts = ask_facts(visit)
        yield check("ok", "stands, without keys" if place.coordinator_key == OPEN_KEYS.public else "stands, encrypted")
        yield from link_checks(place.member.name, measure(visit))
        yield from fact_checks(place.member.name, facts)
    except PeerError as exc:
        advice = "its worker is busy, was stopped, or is an older edgeprism: try again, else upgrade and start it again"
        yield check("FAIL", str(exc), advice)


def _handshake_advice(place: Place, reason: str) -> str:
    if "refuses" in reason:
        return f"it serves another coordinator; start it for this one: {place.start_command}"
    name = place.member.name
    return f"compare public_key of {name} in the cluster file with the one in {name}.secret there"


def _about(place: Place, name: str) -> partial[Check]:
    return partial(Check.of, place.member.name, name, is_of_peer=True)
