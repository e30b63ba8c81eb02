"""File trees laid out as the kernel lays them out on boards, a clock that a test moves, and users who may not read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprism.errors import SensorError
from edgeprism.profiler.energy.sensor import Meter

NOBODY = 65534


class FakeClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeMeter(Meter):
    """Gives ``value``, or fails with it. Its own thread never comes round to reading it."""

    source, covers = "a fake meter", "board"
    period_s = 3600.0

    def __init__(self, value: float | str = 0.0, *, counts_joules: bool = False) -> None:
        self.value = value
        self.counts_joules = counts_joules

    def read(self) -> float:
        if isinstance(self.value, str):
            raise SensorError(self.value)
        return self.value


def tree(root: Path, files: dict[str, str | int]) -> Path:
    """Files below ``root``, each with the line's end that the kernel writes."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def link(root: Path, name: str, target: str) -> None:
    """Classes and drivers of sysfs are full of links."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(root / target, target_is_directory=True)


def hwmon(root: Path, number: int, rails: dict[int, tuple[str, int, int]], address: str = "1-0040") -> Path:
    """One INA3221 under the driver of today: its channels' labels, millivolts and milliamperes. Gives its directory."""
    place = f"sys/devices/platform/bus@0/c240000.i2c/i2c-1/{address}/hwmon/hwmon{number}"
    files: dict[str, str | int] = {"name": "ina3221", "samples": 1, "update_interval": 1}
    for channel, (label, millivolts, milliamperes) in rails.items():
        files |= {f"in{channel}_label": label, f"in{channel}_input": millivolts, f"curr{channel}_input": milliamperes}
        files |= {f"in{channel}_enable": 1, f"in{channel + 3}_input": 40, f"shunt{channel}_resistor": 5000}
    files |= {"in7_label": "sum of shunt voltages", "in7_input": 9000, "curr4_input": 3000}
    tree(root / place, files)
    link(root, f"sys/class/hwmon/hwmon{number}", place)
    return root / place


def orin_nano(root: Path) -> Path:
    """5.2 W go in. Other monitors stand before and beside it."""
    tree(root, {"sys/class/hwmon/hwmon0/name": "cpu_thermal", "sys/class/hwmon/hwmon2/name": "pwmfan"})
    return hwmon(root, 1, {1: ("VDD_IN", 5200, 1000), 2: ("VDD_CPU_GPU_CV", 5200, 300), 3: ("VDD_SOC", 5200, 250)})


def agx_orin(root: Path) -> tuple[Path, Path]:
    """Two monitors, no rail for the input, two channels that lead nowhere."""
    first = hwmon(
        root, 3, {1: ("VDD_GPU_SOC", 20000, 160), 2: ("VDD_CPU_CV", 20000, 40), 3: ("VIN_SYS_5V0", 5000, 900)}
    )
    rails = {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 100), 3: ("NC", 0, 0)}
    return first, hwmon(root, 4, rails, "1-0041")


def iio(root: Path, address: str, number: int, rails: dict[int, tuple[str, int]]) -> None:
    """One INA3221 under the driver of JetPack 4: for each channel label and milliwatts."""
    place = f"sys/devices/c240000.i2c/i2c-1/{address}/iio:device{number}"
    for channel, (label, milliwatts) in rails.items():
        files: dict[str, str | int] = {f"rail_name_{channel}": label, f"in_power{channel}_input": milliwatts}
        tree(root / place, {"name": "ina3221x", **files, f"in_voltage{channel}_input": 19000})
    link(root, f"sys/bus/i2c/drivers/ina3221x/{address}", f"sys/devices/c240000.i2c/i2c-1/{address}")


def powercap(root: Path, zones: dict[str, tuple[str, int]], range_uj: int = 262143328850) -> Path:
    """Zones of RAPL: name and microjoules for each number, such as "0" and "0:1". Gives the class's directory."""
    for number, (name, energy_uj) in zones.items():
        nested = "/".join(f"intel-rapl:{number[: 2 * depth + 1]}" for depth in range(number.count(":") + 1))
        place = f"sys/devices/virtual/powercap/intel-rapl/{nested}"
        tree(root / place, {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": range_uj, "enabled": 0})
        link(root, f"sys/class/powercap/intel-rapl:{number}", place)
    link(root, "sys/class/powercap/intel-rapl", "sys/devices/virtual/powercap/intel-rapl")
    return root / "sys/class/powercap"


PC = {"0": ("package-0", 5_000_000), "0:0": ("core", 3_000_000), "0:1": ("uncore", 0), "0:2": ("dram", 1_000_000)}
"""A PC with memory of its own count, and a count of the platform."""
LAPTOP = {**PC, "1": ("psys", 9_000_000)}


def raspberry_pi_5(root: Path, script: str | None, model: str = "Raspberry Pi 5 Model B Rev 1.0") -> Path:
    """``script``: what vcgencmd is, as lines of a shell; None where it is not installed."""
    tree(root, {"proc/device-tree/model": f"{model}\0"})
    if script is not None:
        command = tree(root, {"usr/bin/vcgencmd": f"#!/bin/sh\n{script}"}) / "usr/bin/vcgencmd"
        command.chmod(0o755)
    return root


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """Nobody may read the file, root included: root becomes somebody else for so long."""
    mode, is_root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(mode)


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user may look into, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
