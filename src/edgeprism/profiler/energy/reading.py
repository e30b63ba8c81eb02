"""Joules of one window of work, with where they come from; and those of a whole cluster.

Gross is all that the device drew, over idle what the work added. A figure never stands alone: it says its source,
whether it is an estimate, and what is missing. Nothing that is missing counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from edgeprism.errors import InputError

SCHEMA_VERSION = 1

_TEXTS = ("source", "covers", "missing", "machine")
_COUNTS = ("num_samples", "num_runs")
_MAYBE = ("joules", "idle_joules")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReading:
    """One device, or several together, while ``num_runs`` runs of some work were done. InputError on a bad value."""

    joules: float | None
    """Gross; None where nothing was read. Of several devices: of those that were read, see ``missing``."""
    idle_joules: float | None
    """What the same time would have cost without the work; None where that was not measured."""
    seconds: float
    num_samples: int
    """Readings of the sensor in the window; of several devices, of the one with the fewest."""
    num_runs: int = 1
    source: str
    covers: str
    is_estimate: bool
    missing: str = ""
    """What these joules lack, and why; empty when they are complete."""
    machine: str = ""
    """The same for sensors that measure one and the same machine; empty for an estimate, which is of one process."""

    def __post_init__(self) -> None:
        for name in ("seconds", *(name for name in _MAYBE if getattr(self, name) is not None)):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise InputError(f"energy reading: {name} must be 0 or more, not {value}")
        if self.num_samples < 0 or self.num_runs < 1:
            raise InputError(f"energy reading: {self.num_samples} samples of {self.num_runs} runs cannot be")
        if not self.source:
            raise InputError("energy reading: it must say its source")
        if self.joules is None and not self.missing:
            raise InputError("energy reading: without joules it must say what is missing")

    @property
    def over_idle_joules(self) -> float | None:
        """What the work added; None where gross or idle is not known. Below 0 when the window was quieter than idle."""
        return None if self.joules is None or self.idle_joules is None else self.joules - self.idle_joules

    @property
    def is_complete(self) -> bool:
        """Whether the joules lack nothing."""
        return not self.missing

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that ``from_json`` reads back; ``over_idle_joules`` is for readers."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"schema_version": SCHEMA_VERSION, **values, "over_idle_joules": self.over_idle_joules}

    @classmethod
    def from_json(cls, document: object) -> EnergyReading:
        """Reads what ``to_json`` wrote; InputError names what is wrong."""
        if not isinstance(document, Mapping):
            raise InputError(f"an energy reading is a JSON object, not {type(document).__name__}")
        values = {name: value for name, value in document.items() if name != "over_idle_joules"}
        if (version := values.pop("schema_version", None)) != SCHEMA_VERSION:
            raise InputError(f"energy reading with schema_version {version!r}; this edgeprism reads {SCHEMA_VERSION}")
        if wrong := sorted({field.name for field in fields(cls)} ^ values.keys()):
            raise InputError(f"energy reading with missing or unknown fields: {', '.join(map(str, wrong))}")
        check_types("energy reading", values, texts=_TEXTS, counts=_COUNTS, maybe=_MAYBE, numbers=("seconds",))
        return cls(**{**values, **floats(values, (*_MAYBE, "seconds"))})


def combine(readings: Mapping[str, EnergyReading | None]) -> EnergyReading:
    """All devices of a cluster over one window, by their names; None for one that gave no reading.

    Devices on one machine whose sensor measures the whole of it are counted once. InputError for no devices, or
    readings of different numbers of runs.
    """
    given = {name: reading for name, reading in readings.items() if reading is not None}
    if not readings or len({reading.num_runs for reading in given.values()}) > 1:
        raise InputError("a total of energy needs readings of the same runs, of one device or more")
    missing = [f"{name} gave no reading" for name in readings if name not in given]
    missing += [f"{name}: {reading.missing}" for name, reading in given.items() if reading.missing]
    counted, sources = _each_machine_once(given)
    known = [reading for reading in counted.values() if reading.joules is not None]
    idle = [reading.idle_joules for reading in known if reading.idle_joules is not None]
    return EnergyReading(
        joules=sum(reading.joules or 0.0 for reading in known) if known else None,
        idle_joules=sum(idle) if known and len(idle) == len(known) else None,
        seconds=max((reading.seconds for reading in given.values()), default=0.0),
        num_samples=min((reading.num_samples for reading in given.values()), default=0),
        num_runs=next((reading.num_runs for reading in given.values()), 1),
        source="; ".join(sources) or "no device",
        covers=" + ".join(dict.fromkeys(reading.covers for reading in counted.values())),
        is_estimate=any(reading.is_estimate for reading in given.values()),
        missing="; ".join(missing),
    )


def _each_machine_once(given: Mapping[str, EnergyReading]) -> tuple[dict[str, EnergyReading], list[str]]:
    """The readings to be added, and what each of them says it is."""
    counted: dict[str, EnergyReading] = {}
    sources = []
    measured: dict[str, str] = {}
    for name, reading in given.items():
        if reading.machine and reading.joules is not None:
            first = measured.setdefault(reading.machine, name)
            if first != name:
                sources.append(f"{name}: the same machine as {first}, counted there")
                continue
        counted[name] = reading
        sources.append(f"{name}: {reading.source}")
    return counted, sources


def check_types(
    what: str,
    values: Mapping[str, Any],
    *,
    texts: tuple[str, ...],
    counts: tuple[str, ...],
    numbers: tuple[str, ...],
    maybe: tuple[str, ...],
) -> None:
    """InputError for a value that is not of its kind, ``is_estimate`` included; ``maybe`` are numbers, or null."""
    for name in texts:
        if not isinstance(values[name], str):
            raise InputError(f"{what}: {name} must be a text, not {values[name]!r}")
    for name in counts:
        if type(values[name]) is not int or abs(values[name]) >= 2**53:
            raise InputError(f"{what}: {name} must be a whole number, not {values[name]!r}")
    for name in (*numbers, *maybe):
        value = values[name]
        if not (_is_number(value) or (value is None and name in maybe)):
            raise InputError(f"{what}: {name} must be a number, not {value!r}")
    if not isinstance(values["is_estimate"], bool):
        raise InputError(f"{what}: is_estimate must be true or false, not {values['is_estimate']!r}")


def floats(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float | None]:
    """Those values as floats, which JSON may have written as whole numbers."""
    return {name: None if values[name] is None else float(values[name]) for name in names}


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**53
    return isinstance(value, float) and math.isfinite(value)
