"""Links of a set rate between processes of one machine, without root: what `--link-rate` gives.

A process stands between the devices and paces what they send each other (``pacer``). It is a stand-in for `edgeprism
lab`, whose links are the kernel's: here messages pass a program in Python, which takes some of a core, and the check
that the lab makes of itself is not made.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from edgeprism.errors import InputError, PeerError
from edgeprism.runtime import pacer

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


class PacedLinks:
    """The links between devices that listen at ``addresses`` (tcp://127.0.0.1:PORT, by rank); close it at the end."""

    def __init__(self, pace: LinkPace, addresses: Sequence[str]) -> None:
        pairs = list(combinations(range(len(addresses)), 2))  # a device dials those of higher rank
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        self._process = subprocess.Popen(
            [sys.executable, "-I", pacer.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        given = {
            "rate_bytes_s": pace.rate_mbit * 1e6 / 8,
            "delay_s": pace.delay_ms / 1e3,
            "pairs": [[dialler, target, ports[target]] for dialler, target in pairs],
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(given).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise PeerError("the process that paces the links did not start; its words are above")
        self._ports = dict(zip(pairs, json.loads(line), strict=True))

    def address(self, dialler: int, target: int) -> str:
        """Where ``dialler`` dials ``target``, a device of higher rank."""
        return f"tcp://127.0.0.1:{self._ports[dialler, target]}"

    def close(self) -> None:
        """Ends the process, and with it what connections there are."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(timeout=5)
