"""From two moments of a sensor to the reading of what lay between; and how long to repeat work for a fair one.

A sensor that is read ten times a second says little of 40 ms, so work is repeated until a window holds 2 s and ten
readings. A shorter one is labelled an estimate, and so is one with a gap in it. A moment goes through JSON, so that the
coordinator may take one of each worker before and after.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgeprism.errors import InputError, SensorError
from edgeprism.profiler.energy.files import ROOT, text_or_empty
from edgeprism.profiler.energy.reading import EnergyReading, check_types, floats
from edgeprism.profiler.energy.sensor import Clock, Sensor

MIN_S = 2.0
MIN_SAMPLES = 10
_MAX_S = 20.0

_TEXTS = ("source", "covers", "missing", "machine", "opened")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a sensor says at one time, all of it since it was opened."""

    joules: float | None
    """None where nothing can be read; ``missing`` says why."""
    seconds: float
    num_samples: int
    gap_s: float
    source: str
    covers: str
    is_estimate: bool
    missing: str = ""
    machine: str = ""
    opened: str = ""
    """Two moments belong together when this is the same."""

    @classmethod
    def of(cls, sensor: Sensor, began_s: float, *, opened: str = "", clock: Clock = time.monotonic) -> Moment:
        """Now, of a sensor opened at ``began_s``. Costs no reading."""
        joules, missing = None, sensor.trouble
        try:
            joules = sensor.joules()
        except SensorError as exc:
            missing = str(exc)
        return cls(
            joules=joules,
            seconds=clock() - began_s,
            num_samples=sensor.num_samples,
            gap_s=sensor.gap_s,
            source=sensor.source,
            covers=sensor.covers,
            is_estimate=sensor.is_estimate,
            missing=missing,
            machine="" if sensor.is_estimate else machine(),  # an estimate is of its process alone
            opened=opened,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that ``from_json`` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> Moment:
        """Reads what ``to_json`` gave, from another device perhaps; InputError names what is wrong."""
        names = {field.name for field in fields(cls)}
        if not isinstance(document, Mapping) or document.keys() != names:
            raise InputError(f"a moment of energy is a JSON object with {', '.join(sorted(names))}")
        numbers, maybe = ("seconds", "gap_s"), ("joules",)
        check_types("moment of energy", document, texts=_TEXTS, counts=("num_samples",), numbers=numbers, maybe=maybe)
        return cls(**{**document, **floats(document, (*numbers, *maybe))})


def between(
    before: Moment,
    after: Moment,
    *,
    idle_w: float | None,
    num_runs: int = 1,
    min_s: float = MIN_S,
    min_samples: int = MIN_SAMPLES,
) -> EnergyReading:
    """The reading of what a device did between two of its moments; ``idle_w`` is its power without the work."""
    seconds = max(0.0, after.seconds - before.seconds)
    num_samples = max(0, after.num_samples - before.num_samples)
    gap_s = max(0.0, after.gap_s - before.gap_s)
    missing = before.missing or after.missing
    if (before.opened, before.source) != (after.opened, after.source):
        missing = "the sensor was opened anew meanwhile, as when a device is started again"
    is_short = seconds < min_s or num_samples < min_samples
    doubts = []
    if is_short:
        doubts.append(f"{num_samples} readings in {seconds:.2g} s, where {min_samples} in {min_s:g} s are needed")
    if gap_s:
        doubts.append(f"nothing was read for {gap_s:.2g} of {seconds:.2g} s")
    is_known = not missing and before.joules is not None and after.joules is not None
    return EnergyReading(
        joules=max(0.0, (after.joules or 0.0) - (before.joules or 0.0)) if is_known else None,
        idle_joules=None if idle_w is None else idle_w * seconds,
        seconds=seconds,
        num_samples=num_samples,
        num_runs=num_runs,
        source=f"{after.source} (estimated: {'; '.join(doubts)})" if doubts else after.source,
        covers=after.covers,
        is_estimate=after.is_estimate or bool(doubts),
        missing="" if is_known else missing or "no joules were read",
        machine=after.machine,
    )


def measure(
    sensor: Sensor,
    work: Callable[[], object],
    *,
    idle_w: float | None,
    min_s: float = MIN_S,
    min_samples: int = MIN_SAMPLES,
    max_s: float = _MAX_S,
    clock: Clock = time.monotonic,
) -> EnergyReading:
    """Joules of ``work``, repeated ``num_runs`` times: until the window is long enough, or ``max_s`` are over.

    The sensor is open. One that fails ends the window after the run in hand; the reading then says what is missing.
    """
    began_s = clock()
    before = _edge(sensor, began_s, clock)
    num_runs = 0
    while True:
        work()
        num_runs += 1
        elapsed_s, num_samples = clock() - began_s, sensor.num_samples - before.num_samples
        is_enough = elapsed_s >= min_s and num_samples >= min_samples
        if is_enough or elapsed_s >= max_s or (sensor.trouble and elapsed_s >= min_s):
            break
    after = _edge(sensor, began_s, clock)
    return between(before, after, idle_w=idle_w, num_runs=num_runs, min_s=min_s, min_samples=min_samples)


def idle_power_w(
    sensor: Sensor,
    *,
    seconds: float = 5.0,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> float | None:
    """Watts of a device that is left alone for so long, by its open sensor; None where that cannot be read."""
    reading = measure(sensor, lambda: sleep(seconds), idle_w=None, min_s=seconds, max_s=seconds, clock=clock)
    return None if reading.joules is None or not reading.seconds else reading.joules / reading.seconds


@functools.cache
def machine() -> str:
    """The same in all processes of one running kernel, other network namespaces included; empty if it does not say."""
    boot = text_or_empty(ROOT / "proc/sys/kernel/random/boot_id")
    return hashlib.sha256(f"edgeprism {boot}".encode()).hexdigest()[:16] if boot else ""


def _edge(sensor: Sensor, began_s: float, clock: Clock) -> Moment:
    """A moment with a reading of its own, tried twice: one that fails by chance would cost the window."""
    sensor.sample()
    if sensor.trouble:
        sensor.sample()
    return Moment.of(sensor, began_s, clock=clock)
