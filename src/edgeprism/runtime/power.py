"""Watts of every device of a cluster, idle and at work, by each one's own sensor: what the performance map keeps.

The moments of all devices are taken before and after a rest, then before and after requests that run on one device
alone. A figure that no sensor stands behind is an estimate, and its source says so.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeprism.errors import InputError, PeerError
from edgeprism.profiler.energy.estimate import EstimateConstants
from edgeprism.profiler.energy.now import energy_now
from edgeprism.profiler.energy.window import MIN_S, Moment, between
from edgeprism.profiler.fit import NO_POWER, Power
from edgeprism.runtime.link_probe import ask
from edgeprism.specs.plan import Plan
from edgeprism.wire.transport import Transport

if TYPE_CHECKING:
    from edgeprism.runtime.engine import Engine


def measure_powers(engine: Engine, num_devices: int, inputs: dict[str, Any]) -> list[Power]:
    """Of every device, the coordinator first; some seconds for each. What cannot be read is NO_POWER, with the reason
    for its source."""
    before = _moments(engine, num_devices)
    time.sleep(MIN_S)
    idle = [
        None if one is None or other is None else between(one, other, idle_w=None)
        for one, other in zip(before, _moments(engine, num_devices), strict=True)
    ]
    powers: list[Power] = []
    first_of: dict[str, int] = {}  # by machine: a board that idles does so once, however many workers it runs
    for device, reading in enumerate(idle):
        if reading is None or reading.joules is None or not reading.seconds:
            why = "it says nothing about energy" if reading is None else reading.missing
            powers.append((*NO_POWER[:3], f"missing: {why}"))
            continue
        idle_w = reading.joules / reading.seconds
        power = _at_work(engine, device, num_devices, inputs, idle_w, is_estimate=reading.is_estimate)
        first = first_of.setdefault(reading.machine, device) if reading.machine else device
        if first != device:
            power = (0.0, *power[1:3], f"{power[3]}; it idles on the machine of device {first}")
        powers.append(power)
    return powers


def _at_work(
    engine: Engine, device: int, num_devices: int, inputs: dict[str, Any], idle_w: float, *, is_estimate: bool
) -> Power:
    """Runs requests on one device alone until its window is long enough."""
    shares = tuple(float(one == device) for one in range(num_devices))
    engine.use(Plan.local() if device == 0 else Plan(strategy="replica", shares=shares))
    before, began_s, busy_s = _moment(engine, device), time.monotonic(), 0.0
    while time.monotonic() - began_s < MIN_S:
        engine(**inputs)
        assert engine.last_trace is not None
        busy_s += sum(part.compute_s for part in engine.last_trace.devices if part.device == device)
    after = _moment(engine, device)
    reading = None if before is None or after is None else between(before, after, idle_w=idle_w)
    if reading is None or reading.joules is None or not busy_s:
        return (idle_w, 0.0, 0.0, f"missing at work: {'no answer' if reading is None else reading.missing}")
    busy_w = max(0.0, reading.joules - idle_w * reading.seconds) / busy_s
    joules_per_megabyte = EstimateConstants().joule_per_byte * 1e6 if is_estimate else 0.0
    return (idle_w, busy_w, joules_per_megabyte, reading.source)


def _moments(engine: Engine, num_devices: int) -> list[Moment | None]:
    return [_moment(engine, device) for device in range(num_devices)]


def _moment(engine: Engine, device: int) -> Moment | None:
    try:
        if device == 0:
            return Moment.from_json(energy_now())
        return Moment.from_json(engine.on_device_thread(partial(_ask_energy, device=device)))
    except (PeerError, InputError):
        return None


def _ask_energy(transport: Transport, device: int) -> Any:
    return ask(transport, device, "energy")
