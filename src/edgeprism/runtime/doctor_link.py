"""What ``edgeprism doctor`` makes of a device that answers: of the link with it, and of what it says about itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import edgeprism
from edgeprism.runtime.check import Check
from edgeprism.runtime.doctor import memory_check
from edgeprism.runtime.probe import LinkReport

SLOW_TRIP_S = 0.02  # a block waits for one: twelve of them are a quarter of a second
LARGE_JITTER_S = 0.01
SLOW_BYTES_PER_S = 5e6  # 40 Mbit/s: the rows of one ViT-B picture take 0.1 s a block
FAR_CLOCK_S = 1.0


def link_checks(name: str, link: LinkReport) -> Iterator[Check]:
    """Round trip, rate and wall clock of the device with that name."""
    check = partial(Check.of, name, is_of_peer=True)
    is_prompt = link.round_trip_s <= SLOW_TRIP_S and link.jitter_s <= LARGE_JITTER_S
    yield check(
        "round trip",
        "ok" if is_prompt else "warn",
        f"{_seconds(link.round_trip_s)}, jitter {_seconds(link.jitter_s)} ({link.num_round_trips} messages)",
        "WiFi that saves power does this: sudo iw dev wlan0 set power_save off, at both ends, or take a cable",
        round_trip_s=link.round_trip_s,
        jitter_s=link.jitter_s,
    )
    slower = min(link.to_bytes_per_s, link.from_bytes_per_s)
    yield check(
        "rate",
        "ok" if slower >= SLOW_BYTES_PER_S else "warn",
        f"{_rate(link.to_bytes_per_s)} to it, {_rate(link.from_bytes_per_s)} from it",
        "take a cable, or 5 GHz nearer to the access point; else replica, or sequence with means or int4, sends least",
        to_bytes_per_s=link.to_bytes_per_s,
        from_bytes_per_s=link.from_bytes_per_s,
    )
    ahead_s = link.clock_ahead_s
    yield check(
        "wall clock",
        "ok" if abs(ahead_s) <= FAR_CLOCK_S else "warn",
        f"{_seconds(abs(ahead_s))} {'ahead of' if ahead_s >= 0 else 'behind'} this device's",
        "the times in both logs do not match: sudo timedatectl set-ntp true, on both",
        clock_ahead_s=ahead_s,
    )


def fact_checks(name: str, facts: dict[str, Any]) -> Iterator[Check]:
    """What the device with that name says about itself (``probe.facts``), as far as it can be used."""
    check = partial(Check.of, name, is_of_peer=True)
    versions = {str(part): str(text) for part, text in facts["versions"].items()}
    ours = edgeprism.__version__
    yield check(
        "versions",
        "ok" if versions.get("edgeprism") == ours else "warn",
        ", ".join(f"{part} {text or 'none'}" for part, text in versions.items()),
        f"here it is edgeprism {ours}; they understand each other, but install the same on both",
    )
    free_bytes = facts.get("memory_available_bytes")
    yield memory_check(name, free_bytes if isinstance(free_bytes, int) else None, is_of_peer=True)
    cores = f"{facts.get('num_cores')} cores, {facts.get('num_threads')} threads"
    yield check("device", "ok", f"{facts.get('machine')}, {cores}, cpu{' and cuda' if facts.get('has_cuda') else ''}")


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2f} ms"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
