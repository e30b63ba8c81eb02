"""How long to wait for other devices before the request goes on without them."""

from __future__ import annotations

import os
from collections.abc import Hashable

# A wait ends after FACTOR times the expected time, but not before FLOOR_S: short requests jitter.
FACTOR = 3.0
FLOOR_S = 0.5
# The first request of its kind also allocates, starts threads and measures kernels, on every device.
WARM_UP_S = 0.7
# Deadlines that are missed again and again grow, to so many times what was expected before the first.
MAX_GROWTH = 4.0
FIRST_OF_KIND = 1.5
MAX_KINDS = 1024
NEW_WEIGHT = 0.3  # of the newest request, against those before
# Assumed of a link until a request of the same kind has been timed: 20 Mbit/s.
ASSUMED_LINK_BYTES_PER_S = 2.5e6


class Patience:
    """Expected seconds of each kind of request: counted at first, then what was observed.

    ``floor_s`` is the shortest deadline; the environment's EDGEPRISM_DEADLINE_S by default, for machines and networks
    that stand still for longer than half a second.
    """

    def __init__(self, floor_s: float | None = None) -> None:
        self.floor_s = given_floor_s(FLOOR_S) if floor_s is None else floor_s
        self._observed_s: dict[Hashable, float] = {}
        self._num_timeouts: dict[Hashable, int] = {}  # since one was in time
        self._warm: set[Hashable] = set()

    def timeout_s(self, kind: Hashable, *, of: Hashable, compute_s: float, num_bytes: int) -> float:
        """Seconds to wait for a request of ``kind``; ``compute_s`` and ``num_bytes`` are the counted work. ``of`` is
        who does it: what is new to them takes longer once."""
        expected_s = self.expected_s(kind, of=of, compute_s=compute_s, num_bytes=num_bytes)
        num_doublings = self._num_timeouts.get(kind, 0) - (kind in self._observed_s)
        growth = min(2.0 ** max(0, num_doublings), MAX_GROWTH)
        return growth * max(self.floor_s, FACTOR * expected_s)

    def expected_s(self, kind: Hashable, *, of: Hashable, compute_s: float, num_bytes: int) -> float:
        """Seconds that a request of ``kind`` takes: as observed, else as counted."""
        warm_up_s = 0.0 if of in self._warm else WARM_UP_S
        return self._observed_s.get(kind, warm_up_s + compute_s + num_bytes / ASSUMED_LINK_BYTES_PER_S)

    def slack(self, kind: Hashable, *, of: Hashable) -> float | None:
        """How many times longer than usual a request of ``kind`` may take: the first of a kind takes longer, and of the
        very first of all nobody knows (None)."""
        if kind in self._observed_s:
            return 1.0
        return FIRST_OF_KIND if of in self._warm else None

    def learn(self, kind: Hashable, seconds: float, *, of: Hashable) -> None:
        """Takes in how long an undisturbed request took."""
        before = self._observed_s.get(kind, seconds)
        self._observed_s[kind] = before + NEW_WEIGHT * (seconds - before)
        self._num_timeouts.pop(kind, None)
        while len(self._observed_s) > MAX_KINDS:  # texts have many lengths
            del self._observed_s[next(iter(self._observed_s))]
        self._warm.add(of)

    def learn_timeout(self, kind: Hashable) -> None:
        """Takes in that a request was given up. Once is a failure, where it is known how long such requests take; when
        it happens again at once they may simply take longer by now, so the next one gets twice as long, and the one
        after that four times."""
        self._num_timeouts[kind] = self._num_timeouts.get(kind, 0) + 1


def given_floor_s(usual_s: float) -> float:
    """The environment's EDGEPRISM_DEADLINE_S, else what is usual."""
    text = os.environ.get("EDGEPRISM_DEADLINE_S", "")
    try:
        return float(text) if float(text) > 0 else usual_s
    except ValueError:
        return usual_s
