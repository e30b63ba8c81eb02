"""Energy of a PC's processor: RAPL, as the kernel's powercap shows it (Documentation/power/powercap/powercap.rst).

    /sys/class/powercap/intel-rapl:0      package-0    the whole chip
    /sys/class/powercap/intel-rapl:0:0    core         a part of the chip: it would count twice
    /sys/class/powercap/intel-rapl:0:2    dram         below the package in the tree, and not part of its count
    /sys/class/powercap/intel-rapl:1      psys         the platform, packages included: used only where it is alone

AMD's processors appear under the same names. ``intel-rapl-mmio`` is another way to the same package. Counters are in
microjoules and begin again at ``max_energy_range_uj``, every few minutes under full load on a large machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import final

from edgeprism.errors import SensorError
from edgeprism.profiler.energy.files import ROOT, read_number, text_or_empty
from edgeprism.profiler.energy.sensor import Clock, Meter

_PERIOD_S = 0.1
_MOST_W = 2000.0
"""Of one zone. A counter that would have to have wrapped for more was set to zero, as sleep does."""


class _Zone:
    """One counter, unwrapped."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.name = text_or_empty(path / "name")
        self.lost_s = 0.0
        self._path, self._clock = path, clock
        self._total_uj = 0
        self._last: tuple[int, float] | None = None

    def joules(self) -> float:
        now_uj, now_s = read_number(self._path / "energy_uj"), self._clock()
        last_uj, last_s = self._last or (now_uj, now_s)
        gained_uj, elapsed_s = now_uj - last_uj, now_s - last_s
        if gained_uj < 0:
            gained_uj += read_number(self._path / "max_energy_range_uj")
            if not 0 <= gained_uj <= 1e6 * _MOST_W * max(elapsed_s, _PERIOD_S):
                gained_uj = 0
                self.lost_s += elapsed_s
        self._last = now_uj, now_s
        self._total_uj += gained_uj
        return self._total_uj / 1e6


@final
class RaplMeter(Meter):
    """Joules of some zones together, since the first reading."""

    counts_joules = True
    period_s = _PERIOD_S

    def __init__(self, zones: tuple[_Zone, ...]) -> None:
        self._zones = zones
        self.covers = "platform" if zones[0].name == "psys" else "package"
        left_out = "" if self.covers == "platform" else " (without the rest of the machine)"
        self.source = f"RAPL {' + '.join(zone.name for zone in zones)}{left_out}"

    def read(self) -> float:
        joules = sum(zone.joules() for zone in self._zones)  # where one fails, the others tell the more next time
        self.lost_s = max(zone.lost_s for zone in self._zones)
        return joules


def find(root: Path = ROOT, *, clock: Clock = time.monotonic) -> RaplMeter | None:
    """The counters of this processor, None where there are none. SensorError where they cannot be read."""
    zones = [_Zone(path, clock) for path in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))]
    packages = [zone for zone in zones if zone.name.startswith("package")]
    chosen = [*packages, *(zone for zone in zones if zone.name == "dram")] if packages else []
    chosen = chosen or [zone for zone in zones if zone.name == "psys"]
    if not chosen:
        return None
    meter = RaplMeter(tuple(chosen))
    try:
        meter.read()
    except SensorError as exc:
        raise SensorError(f"RAPL is there: {exc}") from exc
    return meter
