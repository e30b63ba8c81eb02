"""The coordinator's own probe of a link, over the connection that requests use: PINGs to a worker, timed.

(`probe` measures over a visitor's connection, for `doctor`; here the workers are this coordinator's.) For the thread
that owns the transport, between requests.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeprism.errors import PeerError, PeerFault, PeerTimeout
from edgeprism.runtime.probe import MAX_ECHO_BYTES
from edgeprism.specs.performance_map import LinkMeasured
from edgeprism.wire.frame import Buffer, Kind
from edgeprism.wire.transport import Transport

NUM_SMALL = 30
FIRST_BYTES = 32 * 2**10
LONG_ENOUGH_S = 0.05  # of one transfer: then the round trip no longer matters much
NUM_LARGE = 5
TIMEOUT_S = 20.0
MAX_BYTES = 2**53  # that a device may claim to have
TURN_S = 5e-4  # of each device, where several are waited for

_numbers = itertools.count(1)


def ping_s(transport: Transport, device: int, num_bytes: int, *, echo_bytes: int = 0, timeout_s: float) -> float:
    """Seconds until the PONG to so many bytes is here. PeerError when it does not come."""
    return _Ping(transport, device, num_bytes, echo_bytes).wait_s(timeout_s)


def ask(transport: Transport, device: int, what: str, *, given: str | bool = True, timeout_s: float = 3.0) -> Any:
    """What a worker says of itself: "facts", "energy", "staging", or "speed", which is ``given`` a dtype. PeerError
    when it does not answer with that."""
    number = next(_numbers)
    transport.send(device, Kind.PING, epoch=transport.epoch, request=number, meta={what: given})
    frames = transport.wait_control(
        (Kind.PONG,), (device,), time.monotonic() + timeout_s, epoch=transport.epoch, request=number
    )
    found = frames[device].info.get(what)
    if not isinstance(found, dict):
        raise PeerFault(f"device {device} answered a PING without {what}", (device,))
    return found


def free_bytes(transport: Transport, devices: Sequence[int], absent: dict[int, str]) -> dict[int, float]:
    """Bytes that each of these could give to weights, with what it holds now, which goes when others come. ``absent``
    gets why some are not among them."""
    found: dict[int, float] = {}
    for device in devices:
        try:
            facts = ask(transport, device, "facts")
        except PeerError as exc:
            absent[device] = str(exc)
            continue
        uses_cuda = facts.get("has_cuda") and facts.get("computes_on") != "cpu"
        free = facts.get("cuda_available_bytes" if uses_cuda else "memory_available_bytes")
        held = facts.get("model_bytes")
        if not _is_count(free) or not _is_count(held):
            absent[device] = "it does not say what memory it has"
            continue
        found[device] = float(free + held)
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BYTES


def measure_link(transport: Transport, device: int) -> LinkMeasured:
    """Round trip, jitter, rates alone and both ways at once; some seconds on a slow link. PeerError when it ends."""
    small = sorted(ping_s(transport, device, 0, timeout_s=TIMEOUT_S) for _ in range(NUM_SMALL))
    round_trip_s = statistics.median(small)
    to_rate, num_bytes = _rate(transport, device, round_trip_s, sends=True)
    from_rate, _ = _rate(transport, device, round_trip_s, sends=False)
    return LinkMeasured(
        device=device,
        round_trip_s=round_trip_s,
        jitter_s=small[int(0.95 * (len(small) - 1))] - round_trip_s,
        to_bytes_per_s=to_rate,
        from_bytes_per_s=from_rate,
        both_bytes_per_s=_both(transport, device, round_trip_s, num_bytes),
    )


def measure_together(transport: Transport, round_trips_s: Mapping[int, float]) -> dict[int, float]:
    """Bytes per second to each of some devices while all of them are sent to at once; ``round_trips_s`` of each. Where
    these add up to little more than one link alone has, the links have something in common: a medium, or this device's
    own link. PeerError when one ends."""
    seconds: dict[int, list[float]] = {device: [] for device in round_trips_s}
    num_bytes = FIRST_BYTES
    while True:
        pings = {device: _Ping(transport, device, num_bytes, 0) for device in round_trips_s}
        took_s = _all_waited_s(pings)
        if max(took_s.values()) < LONG_ENOUGH_S and num_bytes < MAX_ECHO_BYTES:
            num_bytes = min(2 * num_bytes, MAX_ECHO_BYTES)
            continue
        for device, one in took_s.items():
            seconds[device].append(one)
        if len(seconds[device]) == NUM_LARGE:
            break
    middle = {device: statistics.median(all_s) for device, all_s in seconds.items()}
    return {device: num_bytes / max(one - round_trips_s[device], one / 2) for device, one in middle.items()}


def _all_waited_s(pings: Mapping[int, _Ping]) -> dict[int, float]:
    """When each came back, whatever the order."""
    took_s: dict[int, float] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while len(took_s) < len(pings):
        for device, ping in pings.items():
            if device not in took_s:
                try:
                    took_s[device] = ping.wait_s(TURN_S)
                except PeerTimeout:
                    if time.monotonic() > deadline:
                        raise
    return took_s


class _Ping:
    """One that is under way."""

    def __init__(self, transport: Transport, device: int, num_bytes: int, echo_bytes: int) -> None:
        self._transport, self._device, self._number = transport, device, next(_numbers)
        buffers = [Buffer.of(np.zeros(num_bytes, np.uint8))] if num_bytes else []
        meta = {"echo_bytes": echo_bytes} if echo_bytes else {}
        self._began_s = time.perf_counter()
        transport.send(device, Kind.PING, epoch=transport.epoch, request=self._number, meta=meta, buffers=buffers)

    def wait_s(self, timeout_s: float) -> float:
        self._transport.wait_control(
            (Kind.PONG,), (self._device,), time.monotonic() + timeout_s,
            epoch=self._transport.epoch, request=self._number,
        )  # fmt: skip
        return time.perf_counter() - self._began_s


def _rate(transport: Transport, device: int, round_trip_s: float, *, sends: bool) -> tuple[float, int]:
    """Bytes per second in one direction, and how many bytes were long enough to tell."""

    def transfer_s(num_bytes: int) -> float:
        up, down = (num_bytes, 0) if sends else (0, num_bytes)
        return ping_s(transport, device, up, echo_bytes=down, timeout_s=TIMEOUT_S)

    num_bytes = FIRST_BYTES
    while transfer_s(num_bytes) < LONG_ENOUGH_S and num_bytes < MAX_ECHO_BYTES:
        num_bytes = min(2 * num_bytes, MAX_ECHO_BYTES)
    seconds = statistics.median(transfer_s(num_bytes) for _ in range(NUM_LARGE))
    return num_bytes / max(seconds - round_trip_s, seconds / 2), num_bytes


def _both(transport: Transport, device: int, round_trip_s: float, num_bytes: int) -> float:
    """Bytes per second in either direction while the answer to a first PING comes and a second one goes."""
    rates = []
    for _ in range(NUM_LARGE):
        first = _Ping(transport, device, 0, num_bytes)
        second = _Ping(transport, device, num_bytes, 0)
        first.wait_s(TIMEOUT_S)
        seconds = second.wait_s(TIMEOUT_S)
        rates.append(num_bytes / max(seconds - round_trip_s, seconds / 2))
    return statistics.median(rates)
