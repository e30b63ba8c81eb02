"""Where nothing measures: joules from what this process computed and what this device sent, by declared constants.

    joules = idle_w · seconds  +  busy_core_w · CPU seconds  +  joule_per_byte · bytes sent

CPU seconds are those of all threads of this process, so that several processes on one machine can each stand for a
board. Bytes are those of all network interfaces but loopback, in this process's network namespace.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import final

from edgeprism.errors import InputError
from edgeprism.profiler.energy.files import ROOT, text_or_empty
from edgeprism.profiler.energy.sensor import Clock, Meter

_PERIOD_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateConstants:
    """A Raspberry Pi 4 on WiFi, unless you say otherwise. docs/explanation/energy.md says where these are from."""

    idle_w: float = 2.7
    """The board when it does nothing; measured by others (Geerling, Pi Dramble: 540 mA at 5 V)."""
    busy_core_w: float = 0.93
    """For each core that computes; four of them take the same board from 2.7 to 6.4 W (same source)."""
    joule_per_byte: float = 80e-9
    """For each byte sent, its reception included: assumed, 1 W of radio at 100 Mbit/s."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not (math.isfinite(value := getattr(self, field.name)) and value >= 0):
                raise InputError(f"the estimate of energy: {field.name} must be 0 or more, not {value}")


@final
class EstimateMeter(Meter):
    """Joules by the formula above, since it was made."""

    covers = "board"
    counts_joules = True
    period_s = _PERIOD_S
    is_estimate = True

    def __init__(
        self,
        constants: EstimateConstants | None = None,
        *,
        root: Path = ROOT,
        clock: Clock = time.monotonic,
        cpu_clock: Clock = time.process_time,
        num_bytes_sent: Callable[[], int] | None = None,
    ) -> None:
        self._constants = constants or EstimateConstants()
        self._num_bytes_sent = num_bytes_sent or (lambda: bytes_sent(root))
        self._clock, self._cpu_clock = clock, cpu_clock
        self._began = clock(), cpu_clock(), self._num_bytes_sent()
        idle_w, core_w, byte_j = self._constants.idle_w, self._constants.busy_core_w, self._constants.joule_per_byte
        self.source = (
            f"estimate: {idle_w:g} W, {core_w:g} W for each busy core of this process, "
            f"{byte_j * 1e9:g} nJ for each byte sent"
        )

    def read(self) -> float:
        """Joules; never fails."""
        began_s, began_cpu_s, began_bytes = self._began
        constants = self._constants
        return (
            constants.idle_w * (self._clock() - began_s)
            + constants.busy_core_w * (self._cpu_clock() - began_cpu_s)
            + constants.joule_per_byte * max(0, self._num_bytes_sent() - began_bytes)
        )


def bytes_sent(root: Path = ROOT) -> int:
    """Since boot, by the kernel's /proc/net/dev; 0 where it does not say."""
    total = 0
    for line in text_or_empty(root / "proc/net/dev").splitlines():
        interface, colon, numbers = line.partition(":")
        words = numbers.split()
        if (
            colon and interface.strip() != "lo" and len(words) > 8 and words[8].isdigit()
        ):  # eight numbers of what came stand before
            total += int(words[8])
    return total
