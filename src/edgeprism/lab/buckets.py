"""Token buckets, and what passes them: a rate counts Ethernet frames, of which 1448 of 1514 bytes are a message's.

What a real Ethernet has besides (preamble, checksum, gap: 24 bytes a frame) does not count.
"""

from __future__ import annotations

FRAME_BYTES, SEGMENT_BYTES = 1514, 1448
"""A full Ethernet frame as a bucket counts it, and its load: less 14 of Ethernet, 20 of IP, 32 of TCP."""
UNLIMITED_MBIT = 40_000.0
MAX_FRAMES, AT_ONCE_S = 8, 125e-6
"""What a link sends at once takes no longer than that, or is one frame."""
TIMER_S, FAST_TIMER_S, FAST_MBIT = 125e-6, 250e-6, 500.0
"""How late the kernel's timers may be, and above 500 Mbit/s, where there is a frame every 24 µs or less: a bucket holds
what a link sends meanwhile, and the frames that it sends at once."""
QUEUE_S, MIN_QUEUE_BYTES = 50e-3, 256 * 1024
"""What waits before a bucket, at most: that of so long, and never less than so much."""


def frames_at_once(rate_mbit: float | None) -> int:
    """How many full frames a link may send as one packet, as a network card with segmentation offload does.

    >>> [frames_at_once(rate) for rate in (20.0, 190.0, 200.0, 400.0, 1000.0, None)]
    [1, 1, 2, 4, 8, 8]
    """
    if rate_mbit is None:
        return MAX_FRAMES
    return max(1, min(MAX_FRAMES, int(rate_mbit * 1e6 / 8 * AT_ONCE_S / FRAME_BYTES)))


def burst_bytes(rate_mbit: float, num_frames: int) -> int:
    """What a full bucket lets pass at once: the least that sustains the rate with packets of so many frames."""
    late_s = TIMER_S if rate_mbit <= FAST_MBIT else FAST_TIMER_S
    return round(num_frames * FRAME_BYTES + late_s * rate_mbit * 1e6 / 8)


def bucket(rate_mbit: float | None, num_frames: int, more_s: float = 0.0) -> str:
    """In the words of `tc`; it holds what a link sends in ``more_s`` besides."""
    rate = UNLIMITED_MBIT if rate_mbit is None else rate_mbit
    burst = burst_bytes(rate, num_frames) + round(more_s * rate * 1e6 / 8)
    queue = max(MIN_QUEUE_BYTES, round(QUEUE_S * rate * 1e6 / 8)) + burst
    return f"tbf rate {rate * 1e6:.0f}bit burst {burst}b limit {queue}b"


def wire_bytes(num_bytes: int) -> int:
    """What carries so many bytes over one TCP connection: full frames, nothing lost, and no acknowledgements.

    >>> wire_bytes(1), wire_bytes(1448), wire_bytes(1449)
    (67, 1514, 1581)
    """
    return num_bytes + (FRAME_BYTES - SEGMENT_BYTES) * -(-num_bytes // SEGMENT_BYTES)


def wire_s(num_bytes: int, rate_mbit: float) -> float:
    """The least time that so many bytes take over one TCP connection of a link: every frame full, nothing lost."""
    return num_bytes * FRAME_BYTES / SEGMENT_BYTES * 8 / (rate_mbit * 1e6)
