"""What an emulated device is: a name, a link, a delay, a speed, a memory limit and a core. Numbers only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeprism.errors import InputError
from edgeprism.lab.buckets import MAX_FRAMES, frames_at_once
from edgeprism.specs.plan import MAX_DEVICES

MIN_SPEED = 0.05  # the kernel keeps 5 % of a core from processes of real-time priority
MAX_RATE_MBIT = 10_000.0
MAX_DEMAND = 0.8  # of a core that several devices share: each gets its part at once, whatever the others do


@dataclass(frozen=True, slots=True, kw_only=True)
class LabDevice:
    """One emulated device; InputError for values that mean nothing."""

    name: str
    rate_mbit: float | None
    """Of its link, each direction, in 1e6 bit/s of frames; None for no limit. In a shared medium the medium's rate."""
    delay_ms: float = 0.0
    """How long each packet that it sends is under way, besides the time that the rate takes."""
    speed: float = 1.0
    """The part of its core that it has."""
    memory_mb: int | None = None
    """All that its processes may hold, in 1e6 bytes; None for no limit."""
    core: int | None = None
    """The only core that it runs on; None lets the lab choose."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", self.name):
            raise InputError(f"a device's name is made of letters, digits, dots and dashes, not {self.name!r}")
        check_rate(self.rate_mbit)
        check_delay(self.delay_ms)
        if not MIN_SPEED <= self.speed <= 1:
            raise InputError(f"speed must be {MIN_SPEED:g} to 1 (a part of one core), not {self.speed:g}")
        if self.memory_mb is not None and self.memory_mb < 1:
            raise InputError(f"memory must be at least 1 MB, not {self.memory_mb}")

    def to_json(self) -> dict[str, Any]:
        """As ``from_json`` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LabDevice:
        """TypeError for fields that do not exist."""
        floats = {name: float(document[name]) for name in ("rate_mbit", "delay_ms", "speed") if document.get(name)}
        return cls(**{**document, **floats})


def check_rate(rate_mbit: float | None) -> None:
    """InputError unless a link can have it."""
    if rate_mbit is not None and not 0.01 <= rate_mbit <= MAX_RATE_MBIT:
        raise InputError(f"a rate must be 0.01 to {MAX_RATE_MBIT:g} Mbit/s, not {rate_mbit:g}")


def check_delay(delay_ms: float) -> None:
    """InputError unless a link can have it."""
    if not (math.isfinite(delay_ms) and 0 <= delay_ms <= 10_000):
        raise InputError(f"a delay must be 0 to 10000 ms, not {delay_ms:g}")


def check_devices(devices: Sequence[LabDevice], *, is_shared: bool) -> None:
    """InputError for devices that do not fit together."""
    if not 2 <= len(devices) <= MAX_DEVICES:
        raise InputError(f"a lab has 2 to {MAX_DEVICES} devices, not {len(devices)}")
    names = [device.name for device in devices]
    if len(set(names)) < len(names):
        raise InputError(f"two devices of a lab have one name: {', '.join(names)}")
    if is_shared and len({device.rate_mbit for device in devices}) > 1:
        raise InputError("a shared medium has one rate, which is the rate of every device")


def choose_frames(devices: Sequence[LabDevice], num_frames: int | None) -> int:
    """How many frames the links send at once: what is asked for, else what suits the slowest of them. One where there
    are delays: the relay takes single frames. InputError for a number that cannot be."""
    is_delayed = any(device.delay_ms for device in devices)
    if num_frames is None:
        return 1 if is_delayed else min(frames_at_once(device.rate_mbit) for device in devices)
    if not 1 <= num_frames <= MAX_FRAMES:
        raise InputError(f"a link sends 1 to {MAX_FRAMES} frames at once, not {num_frames}")
    if num_frames > 1 and is_delayed:
        raise InputError(f"a link with a delay sends one frame at once, not {num_frames}")
    return num_frames


def place(devices: Sequence[LabDevice], cores: Sequence[int], *, share_cores: bool) -> tuple[int, ...]:
    """The core of each device: the one that it asks for, else one that nobody has. InputError where there are too few,
    or where those that share a core have speeds that together are more than there is of it."""
    for device in devices:
        if device.core is not None and device.core not in cores:
            raise InputError(f"{device.name} wants core {device.core}; there are {', '.join(map(str, cores))}")
    taken = [device.core for device in devices if device.core is not None]
    free = [core for core in cores if core not in taken] or list(cores)
    chosen, num_given = [], 0
    for device in devices:
        if device.core is not None:
            chosen.append(device.core)
        else:
            chosen.append(free[num_given % len(free)])
            num_given += 1
    shared = {core for core in chosen if chosen.count(core) > 1}
    speeds = {core: [each.speed for each, its in zip(devices, chosen, strict=True) if its == core] for core in shared}
    crowded = [core for core in sorted(shared) if sum(speeds[core]) > MAX_DEMAND + 1e-9]
    if crowded and not share_cores:
        raise InputError(
            f"{len(devices)} devices need a core each, and this machine has {len(cores)}; have fewer devices, give "
            f"those of one core speeds of {MAX_DEMAND:g} together (--speed), or let several have one core "
            "(--share-cores), which slows each of them while another one computes"
        )
    for core in crowded:
        if min(speeds[core]) < 1:
            raise InputError(
                f"the devices on core {core} have speeds of {sum(speeds[core]):g} together; at most {MAX_DEMAND:g} of "
                "a core can be promised to devices that share it"
            )
    return tuple(chosen)
