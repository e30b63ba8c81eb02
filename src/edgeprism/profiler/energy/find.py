"""Which sensor a device has: the one that covers most of it, and why the better ones are not used.

A board's own monitor covers the board. Without one, the processor's count (RAPL) or the estimate stands for everything
but graphics cards, whose own counts are added.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprism.errors import SensorError
from edgeprism.profiler.energy import ina3221, nvml, rapl, raspberry_pi
from edgeprism.profiler.energy.estimate import EstimateConstants, EstimateMeter
from edgeprism.profiler.energy.files import ROOT
from edgeprism.profiler.energy.sensor import Clock, Meter, SampledSensor, Sensor, SensorSum


def find_sensor(
    root: Path = ROOT,
    *,
    constants: EstimateConstants | None = None,
    nvml_module: Any = None,
    clock: Clock = time.monotonic,
) -> Sensor:
    """The sensor of this device, not yet open; an estimate where nothing measures. ``notes`` says what was passed over.

    ``root``: of the file tree, to look at that of another board; ``nvml_module`` in place of the installed one.
    """
    notes: list[str] = []

    def look(find: Callable[[], Meter | None]) -> Meter | None:
        try:
            return find()
        except SensorError as exc:
            notes.append(str(exc))
            return None

    board = look(lambda: ina3221.find(root)) or look(lambda: raspberry_pi.find(root))
    meter = board or look(lambda: rapl.find(root, clock=clock)) or EstimateMeter(constants, root=root, clock=clock)
    cards = look(lambda: nvml.find(root, nvml=nvml_module)) if board is None and meter.covers != "platform" else None
    if cards is None:
        return SampledSensor(meter, notes=tuple(notes), clock=clock)
    parts = tuple(SampledSensor(part, clock=clock) for part in (meter, cards))
    return SensorSum(parts, notes=tuple(notes))
