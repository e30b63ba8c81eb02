"""Percentiles of any number of times in little memory: counts in steps of 1 %, and the largest as it was.

A camera may run for months; keeping every time would fill a small board's memory.
"""

from __future__ import annotations

import math
from collections import Counter

STEP = math.log(1.01)
SHORTEST_S = 1e-5
PERCENTS = (50, 90, 95, 99)


class Latencies:
    """Takes times in, says percentiles: each at most 0.5 % beside one of the times that were taken in.

    >>> latencies = Latencies()
    >>> for milliseconds in range(1, 101):
    ...     latencies.add(milliseconds / 1e3)
    >>> [round(1e3 * latencies.percentile_s(percent)) for percent in (50, 95)]
    [50, 95]
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.num_times = 0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        """Takes one time in."""
        self._counts[round(math.log(max(SHORTEST_S, seconds)) / STEP)] += 1
        self.num_times += 1
        self.max_s = max(self.max_s, seconds)

    def percentile_s(self, percent: int) -> float:
        """The shortest time that so many percent of the times do not exceed; NaN where there are none."""
        missing = max(1, math.ceil(self.num_times * percent / 100))
        for step in sorted(self._counts):
            missing -= self._counts[step]
            if missing <= 0:
                return min(self.max_s, math.exp(step * STEP))
        return math.nan

    def to_json(self) -> dict[str, float | None]:
        """Milliseconds by percentile, and the longest; null where there are none."""
        if not self.num_times:
            return dict.fromkeys([*(f"p{percent}" for percent in PERCENTS), "max"])
        document: dict[str, float | None] = {
            f"p{percent}": round(1e3 * self.percentile_s(percent), 3) for percent in PERCENTS
        }
        return {**document, "max": round(1e3 * self.max_s, 3)}
