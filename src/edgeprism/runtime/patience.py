"""How long to wait for other devices before the request goes on without them."""

from __future__ import annotations

import os
from collections.abc import Hashable

# A wait ends after FACTOR times the expected time, but not before FLOOR_S: short requests jitter.
FACTOR = 3.0
FLOOR_S = 0.5
# The first request of its kind also allocates, starts threads and measures kernels, on every device.
WARM_UP_S = 0.7
# What a request is expected to take at most, once others of its kind were given up.
MAX_LEARNT_S = 60.0
NEW_WEIGHT = 0.3  # of the newest request, against those before
# Assumed of a link until a request of the same kind has been timed: 20 Mbit/s.
ASSUMED_LINK_BYTES_PER_S = 2.5e6


class Patience:
    """Expected seconds of each kind of request: counted at first, then what was observed.

    ``floor_s`` is the shortest deadline; the environment's EDGEPRISM_DEADLINE_S by default, for machines and networks
    that stand still for longer than half a second.
    """

    def __init__(self, floor_s: float | None = None) -> None:
        self.floor_s = _floor_s() if floor_s is None else floor_s
        self._observed_s: dict[Hashable, float] = {}
        self._num_timeouts: dict[Hashable, int] = {}  # since one was in time

    def timeout_s(self, kind: Hashable, *, compute_s: float, num_bytes: int) -> float:
        """Seconds to wait for a request of ``kind``; ``compute_s`` and ``num_bytes`` are the counted work."""
        counted_s = WARM_UP_S + compute_s + num_bytes / ASSUMED_LINK_BYTES_PER_S
        return max(self.floor_s, FACTOR * self._observed_s.get(kind, counted_s))

    def learn(self, kind: Hashable, seconds: float) -> None:
        """Takes in how long an undisturbed request took."""
        before = self._observed_s.get(kind, seconds)
        self._observed_s[kind] = before + NEW_WEIGHT * (seconds - before)
        self._num_timeouts.pop(kind, None)

    def learn_timeout(self, kind: Hashable, timeout_s: float) -> None:
        """Takes in that a request was given up after ``timeout_s``. Once is a failure; when it happens again at once,
        such requests may simply take longer by now, so the next one gets twice as long."""
        self._num_timeouts[kind] = self._num_timeouts.get(kind, 0) + 1
        if self._num_timeouts[kind] > 1 or kind not in self._observed_s:
            self._observed_s[kind] = max(self._observed_s.get(kind, 0.0), min(2 * timeout_s / FACTOR, MAX_LEARNT_S))


def _floor_s() -> float:
    text = os.environ.get("EDGEPRISM_DEADLINE_S", "")
    try:
        return float(text) if float(text) > 0 else FLOOR_S
    except ValueError:
        return FLOOR_S
