"""The probe, both ends: what a worker answers to a PING, and what who asks learns of the device and the link.

A PING may carry arrays, and may ask for bytes and for facts:

    {"echo_bytes": N, "facts": true}   ->   {"clock_s": ..., "facts": {...}}, with an array of N bytes
    {"energy": true}                   ->   {"energy": {...}}: a `Moment` of its sensor
    {"staging": true}                  ->   {"staging": {"copies": [...]}}: what `staging_probe` measures
    {"speed": "float32"}               ->   {"speed": {"macs_per_s": ...}} in that dtype

Small ones give the round trip and its jitter, large ones the rate of either direction, the worker's clock how far it
is off.
"""

from __future__ import annotations

import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import edgeprism
from edgeprism.errors import FrameError, PeerError, PeerFault
from edgeprism.profiler.energy.now import energy_now
from edgeprism.runtime.cores import available_cores
from edgeprism.runtime.heap import trim
from edgeprism.runtime.machine import hardware, memory_available_bytes, power_mode
from edgeprism.runtime.staging_probe import measure_staging
from edgeprism.wire.frame import Buffer, Frame, Kind
from edgeprism.wire.transport import Transport
from edgeprism.wire.visit import Visit

log = logging.getLogger(__name__)

MAX_ECHO_BYTES = 4 * 2**20
ANSWER_TIMEOUT_S = 3.0  # a worker inside a block answers when it next looks at its sockets

_NUM_SMALL = 50
_SMALL_S = 1.5  # what they may take together on a slow link
_FIRST_RATE_BYTES = 64 * 2**10
_LONG_ENOUGH_S = 0.1  # of one transfer: then the round trip no longer matters much
_MAX_TRANSFERS, _TRANSFERS_S = 5, 1.0  # of the last size, in one direction


# The worker's end


def serve_probe(
    transport: Transport, computes_on: Callable[[], str], model_bytes: Callable[[], int] = lambda: 0
) -> None:
    """From now on this device answers PINGs, whatever else it does, as soon as it looks at its sockets. What it says
    of itself: the kind of hardware that has its model, and the bytes of that."""
    transport.serve(Kind.PING, lambda question: _answer(transport, question, computes_on, model_bytes))


def facts(computes_on: str = "", model_bytes: int = 0) -> dict[str, Any]:
    """What another device is told about this one. ``computes_on``: the kind of hardware that has the model, or
    is to have one; ``model_bytes`` of it that are held."""
    torch = sys.modules.get("torch")  # a worker has it; nobody should wait for it here
    trim()
    return {
        "versions": versions(),
        "machine": platform.machine(),
        "hardware": hardware(),
        "computes_on": computes_on,
        "power_mode": power_mode(),
        "num_cores": len(available_cores()),
        "num_threads": 0 if torch is None else torch.get_num_threads(),
        "has_cuda": (has_cuda := torch is not None and torch.cuda.is_available()),
        "cuda_available_bytes": torch.cuda.mem_get_info()[0] if torch is not None and has_cuda else None,
        "model_bytes": model_bytes,
        "memory_available_bytes": memory_available_bytes(),
    }


def versions() -> dict[str, str]:
    """Of what a worker is made of; empty for what is not installed. Nothing is imported."""
    found = {"edgeprism": edgeprism.__version__, "Python": platform.python_version()}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _answer(
    transport: Transport, question: Frame, computes_on: Callable[[], str], model_bytes: Callable[[], int]
) -> None:
    try:
        echo_bytes = question.info.get("echo_bytes", 0)
        if not isinstance(echo_bytes, int) or not 0 <= echo_bytes <= MAX_ECHO_BYTES:
            raise FrameError(f"a PING may ask for 0 to {MAX_ECHO_BYTES} bytes, not for {echo_bytes!r}")
        meta: dict[str, Any] = {}
        if question.info.get("facts") is True:
            meta["facts"] = facts(computes_on(), model_bytes())
        if question.info.get("energy") is True:
            meta["energy"] = energy_now()
        if question.info.get("staging") is True:
            meta["staging"] = {"copies": measure_staging(computes_on())}
        if isinstance(dtype := question.info.get("speed"), str):
            meta["speed"] = {"macs_per_s": _speed(dtype)}
        buffers = [Buffer.of(np.zeros(echo_bytes, np.uint8))] if echo_bytes else []
        transport.answer(question, Kind.PONG, meta={"clock_s": time.time(), **meta}, buffers=buffers)
    except (FrameError, PeerError) as exc:
        log.info("a PING is not answered: %s", exc)


def _speed(dtype: str) -> float:
    """Of the hardware that a model would be loaded on."""
    from edgeprism.models.model import DTYPES
    from edgeprism.runtime.accelerator import choose_device
    from edgeprism.runtime.speed import speed_of_products

    if dtype not in DTYPES:
        raise FrameError(f"a PING asks for the speed in {dtype!r}, which is none of {', '.join(DTYPES)}")
    try:
        return speed_of_products(DTYPES[dtype], choose_device(None))
    except RuntimeError as exc:  # torch's word for hardware without that dtype, or without the memory
        raise FrameError(f"the speed in {dtype} cannot be measured here: {exc}") from exc


# The other end


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """What was measured. Rates are of what a program gets: behind encryption and TCP."""

    num_round_trips: int
    round_trip_s: float
    """The median."""
    jitter_s: float
    """How much longer one in twenty takes."""
    to_bytes_per_s: float
    from_bytes_per_s: float
    clock_ahead_s: float
    """The other device's wall clock minus ours."""


def ask_facts(visit: Visit) -> dict[str, Any]:
    """``facts`` of the other device; PeerError if it says none."""
    found = visit.ask(time.monotonic() + ANSWER_TIMEOUT_S, meta={"facts": True}).info.get("facts")
    if not isinstance(found, dict) or not isinstance(found.get("versions"), dict):
        raise PeerFault("it answered a PING without the facts that were asked for")
    return found


def measure(visit: Visit) -> LinkReport:
    """Measures the link for some three seconds at most, a slow one somewhat longer. PeerError when it ends."""
    began_s = time.monotonic()
    trips: list[tuple[float, float]] = []  # seconds, and how far the clock was ahead
    while len(trips) < _NUM_SMALL and (not trips or time.monotonic() - began_s < _SMALL_S):
        trips.append(_round_trip(visit))
    seconds = sorted(trip_s for trip_s, _ in trips)
    round_trip_s = statistics.median(seconds)
    return LinkReport(
        num_round_trips=len(trips),
        round_trip_s=round_trip_s,
        jitter_s=seconds[int(0.95 * (len(seconds) - 1))] - round_trip_s,
        to_bytes_per_s=_rate(visit, round_trip_s, sends=True),
        from_bytes_per_s=_rate(visit, round_trip_s, sends=False),
        clock_ahead_s=min(trips)[1],  # the shortest trip leaves the least to doubt
    )


def _round_trip(visit: Visit) -> tuple[float, float]:
    sent_s, began_s = time.time(), time.perf_counter()
    answer = visit.ask(time.monotonic() + ANSWER_TIMEOUT_S)
    trip_s = time.perf_counter() - began_s
    clock_s = answer.info.get("clock_s")
    if not isinstance(clock_s, int | float):
        raise PeerFault("it answered a PING without its clock")
    return trip_s, clock_s - (sent_s + trip_s / 2)  # as if both ways took the same time


def _rate(visit: Visit, round_trip_s: float, *, sends: bool) -> float:
    """Bytes per second in one direction: the median of some transfers that are long enough to tell."""
    num_bytes = _FIRST_RATE_BYTES
    seconds = [_transfer_s(visit, num_bytes, sends=sends)]
    while seconds[-1] < _LONG_ENOUGH_S and num_bytes < MAX_ECHO_BYTES:
        num_bytes = min(4 * num_bytes, MAX_ECHO_BYTES)
        seconds = [_transfer_s(visit, num_bytes, sends=sends)]
    while len(seconds) < _MAX_TRANSFERS and sum(seconds) < _TRANSFERS_S:
        seconds.append(_transfer_s(visit, num_bytes, sends=sends))
    transfer_s = statistics.median(seconds)
    return num_bytes / max(transfer_s - round_trip_s, transfer_s / 2)


def _transfer_s(visit: Visit, num_bytes: int, *, sends: bool) -> float:
    buffers = [Buffer.of(np.zeros(num_bytes, np.uint8))] if sends else []
    meta: Mapping[str, Any] = {} if sends else {"echo_bytes": num_bytes}
    began_s = time.perf_counter()
    visit.ask(time.monotonic() + ANSWER_TIMEOUT_S + 10.0, meta=meta, buffers=buffers)
    return time.perf_counter() - began_s
