"""Links of a set rate between processes of one machine, without root: what `--link-rate` gives.

A process stands between the devices and paces what they send each other (``pacer``; ``spawn`` starts and ends it). It
is a stand-in for `edgeprism lab`, whose links are the kernel's: here messages pass a program in Python, which takes
some of a core, and the check that the lab makes of itself is not made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprism.errors import InputError

MAX_RATE_MBIT = 1000.0  # which the process sustains


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPace:
    """Of every device's link, each direction. InputError for what cannot be."""

    rate_mbit: float
    """1e6 bit/s of Ethernet frames."""
    delay_ms: float = 0.0
    """One way."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.rate_mbit <= MAX_RATE_MBIT:
            raise InputError(f"--link-rate must be 0.1 to {MAX_RATE_MBIT:g} Mbit/s, not {self.rate_mbit:g}")
        if not (math.isfinite(self.delay_ms) and 0 <= self.delay_ms <= 1000):
            raise InputError(f"--link-delay must be 0 to 1000 ms, not {self.delay_ms:g}")

    def __str__(self) -> str:
        return f"--link-rate {self.rate_mbit:g}" + (f" --link-delay {self.delay_ms:g}" if self.delay_ms else "")
