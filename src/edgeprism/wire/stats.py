"""What a transport has done since it was last asked: bytes, frames and where the time went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Stats:
    """Counters of one device. Bytes are those of frames, before encryption and TCP; times are seconds of its thread."""

    bytes_sent: int = 0
    bytes_received: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    frames_dropped: int = 0
    """Refused or outdated; the log names the first few."""
    send_s: float = 0.0
    """Inside ``send`` and ``start``: laying out frames and queueing them."""
    receive_s: float = 0.0
    """Parsing frames that came."""
    wait_s: float = 0.0
    """Blocked, waiting for other devices."""
