"""How long to wait for other devices before the request goes on without them."""

from __future__ import annotations

from collections.abc import Hashable

# A wait ends after FACTOR times the expected time, but not before FLOOR_S: short requests jitter.
FACTOR = 3.0
FLOOR_S = 2.0
# What a request is expected to take at most, once others of its kind were given up.
MAX_LEARNT_S = 60.0
# Assumed of a link until a request of the same kind has been timed: 20 Mbit/s.
ASSUMED_LINK_BYTES_PER_S = 2.5e6


class Patience:
    """Expected seconds of each kind of request: counted at first, then what was observed."""

    def __init__(self) -> None:
        self._observed_s: dict[Hashable, float] = {}

    def timeout_s(self, kind: Hashable, *, compute_s: float, num_bytes: int) -> float:
        """Seconds to wait for a request of ``kind``; ``compute_s`` and ``num_bytes`` are the counted work."""
        expected_s = self._observed_s.get(kind, compute_s + num_bytes / ASSUMED_LINK_BYTES_PER_S)
        return max(FLOOR_S, FACTOR * expected_s)

    def learn(self, kind: Hashable, seconds: float) -> None:
        """Takes in how long an undisturbed request took: slower counts at once, faster bit by bit."""
        before = self._observed_s.get(kind, seconds)
        self._observed_s[kind] = max(seconds, 0.9 * before + 0.1 * seconds)

    def learn_timeout(self, kind: Hashable, timeout_s: float) -> None:
        """Takes in that a request was given up after ``timeout_s``: perhaps it takes longer, so the next such one gets
        twice as long."""
        self._observed_s[kind] = max(self._observed_s.get(kind, 0.0), min(2 * timeout_s / FACTOR, MAX_LEARNT_S))
