"""Power of a Jetson: the INA3221 monitors on its module, three channels each, every channel with the label of its rail.

The driver of today shows them as hwmon (kernel: Documentation/hwmon/ina3221.rst; volts and amperes), that of JetPack 4
as iio devices (power itself). Some modules measure their input, and that is the total; of the others the rails that
branch off the input are added. Which are which is said in NVIDIA's developer guides and design guides: on an AGX Orin
VDDQ_VDD2_1V8AO is fed by VIN_SYS_5V0, and would count twice. No module measures its carrier board.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from edgeprism.errors import SensorError
from edgeprism.profiler.energy.files import ROOT, read_number, text_or_empty
from edgeprism.profiler.energy.sensor import Meter

INPUTS = ("VDD_IN", "POM_5V_IN", "5V_IN")
"""Names of the rail that feeds a whole module: Orin Nano, Orin NX, Xavier NX, TX1 and TX2; Nano; Xavier NX."""
BRANCHES = (
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
)
"""Rails that make up a module which does not measure its input."""

_PERIOD_S = 0.1  # six registers of 0.5 ms each over I2C: a few per cent of the time
_CHANNELS = (1, 2, 3)  # in4 and up are sums and drops over the shunts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """One channel. ``files`` is millivolts and milliamperes, or milliwatts alone."""

    label: str
    files: tuple[Path, ...]

    def watts(self) -> float:
        """Now. SensorError when a file cannot be read."""
        if len(self.files) == 1:
            return read_number(self.files[0]) / 1e3
        millivolts, milliamperes = map(read_number, self.files)
        return millivolts * milliamperes / 1e6


@final
class Ina3221Meter(Meter):
    """Watts of some rails together."""

    covers = "module"
    counts_joules = False
    period_s = _PERIOD_S

    def __init__(self, rails: tuple[Rail, ...]) -> None:
        self._rails = rails
        what = "the module's input" if len(rails) == 1 else "the rails that make up the module"
        self.source = f"INA3221 {' + '.join(rail.label for rail in rails)} ({what}, without the carrier board)"

    def read(self) -> float:
        return sum(rail.watts() for rail in self._rails)


def find(root: Path = ROOT) -> Ina3221Meter | None:
    """The monitors of this board, None where there are none. SensorError where they cannot be used."""
    rails = {rail.label: rail for rail in (*_hwmon_rails(root), *_iio_rails(root))}
    if not rails:
        return None
    chosen = _total(rails)
    if chosen is None:
        raise SensorError(f"INA3221 has only rails whose sum means nothing known: {', '.join(sorted(rails))}")
    meter = Ina3221Meter(chosen)
    try:
        meter.read()
    except SensorError as exc:
        raise SensorError(f"INA3221 is there: {exc}") from exc
    return meter


def _total(rails: dict[str, Rail]) -> tuple[Rail, ...] | None:
    for labels in (*((label,) for label in INPUTS), *BRANCHES):
        if all(label in rails for label in labels):
            return tuple(rails[label] for label in labels)
    return None


def _hwmon_rails(root: Path) -> list[Rail]:
    found = []
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if not text_or_empty(monitor / "name").startswith("ina3221"):
            continue
        for channel in _CHANNELS:
            label = text_or_empty(monitor / f"in{channel}_label")
            if label and text_or_empty(monitor / f"in{channel}_enable") != "0":
                files = (monitor / f"in{channel}_input", monitor / f"curr{channel}_input")
                found.append(Rail(label=label, files=files))
    return found


def _iio_rails(root: Path) -> list[Rail]:
    found = []
    for name in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        if label := text_or_empty(name):
            channel = name.name.removeprefix("rail_name_")
            found.append(Rail(label=label, files=(name.parent / f"in_power{channel}_input",)))
    return found
