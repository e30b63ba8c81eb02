"""The partition with the shortest period where all devices send over one medium, one at a time, as on WiFi.

Then a full pipeline finishes a micro-batch in the time of its slowest stage or of all its transfers together,
whichever is longer. For a limit T on the stages, f(T) is the least that transfers can take together; it comes from
dynamic programming over sets of devices, the last of them, and cuts. f falls as T grows, so the best period is where
the two cross: the first T with f(T) <= T, or f just before it. T is the time of some stage, so there are finitely many.

Exact for up to 8 devices. Beyond, sets are too many for this: the best of some sets of 8, and of the partition for
links of their own, with a bound below which no partition can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeprism.errors import PlanError
from edgeprism.planner.own_links import fastest_on_own_links
from edgeprism.planner.pipeline import NOTHING, Pipeline
from edgeprism.planner.sets import (
    Layer,
    check_num_devices,
    farthest,
    fits,
    layers,
    stage_seconds,
    transfer_seconds,
    what_lacks,
)
from edgeprism.specs.plan import Stage

EXACT_UP_TO = 8  # devices
ROUNDING = 1e-9  # of sums of seconds

Table = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnOneMedium:
    """``lower_bound_s``: no partition has a shorter period; where ``stages`` are exact, theirs."""

    stages: tuple[Stage, ...]
    lower_bound_s: float


def fastest_on_one_medium(pipeline: Pipeline) -> OnOneMedium:
    """See the module. PlanError where nothing fits."""
    check_num_devices(pipeline)
    usable = [device for device, memory in enumerate(pipeline.memory_bytes) if memory != NOTHING]
    if len(usable) <= EXACT_UP_TO:
        stages = _Exact(pipeline, usable).stages()
        if stages is None:
            raise PlanError(what_lacks(pipeline))
        return OnOneMedium(stages=stages, lower_bound_s=pipeline.period_s(stages))
    found = [fastest_on_own_links(replace(pipeline, has_one_medium=False))]
    for some in _sets(pipeline, usable):
        stages = _Exact(pipeline, some).stages()
        if stages is not None:
            found.append(stages)
    best = min(found, key=pipeline.period_s)
    return OnOneMedium(stages=best, lower_bound_s=min(pipeline.period_s(best), lower_bound_s(pipeline)))


class _Exact:
    """Over some of the devices."""

    def __init__(self, pipeline: Pipeline, devices: Sequence[int]) -> None:
        self._pipeline, self._devices = pipeline, tuple(devices)
        self._stage_s = stage_seconds(pipeline)[list(devices)]  # (device, start, stop)
        self._fits = fits(pipeline)[list(devices)]
        everyone = [*devices, pipeline.home]  # last comes home
        self._transfer_s = transfer_seconds(pipeline)[np.ix_(everyone, everyone)]
        self._layers = list(layers(len(devices)))
        self._parents: dict[tuple[int, int], tuple[Numbers, Numbers]] = {}

    def stages(self) -> tuple[Stage, ...] | None:
        """None where nothing fits."""
        limits = np.unique(self._stage_s[self._fits] * (1 + 1e-12))
        low, high = 0, len(limits) - 1
        if high < 0 or self._least_s(float(limits[high])) == math.inf:
            return None
        while low < high:
            middle = (low + high) // 2
            limit_s = float(limits[middle])
            low, high = (low, middle) if self._least_s(limit_s) <= limit_s else (middle + 1, high)
        found = [self._stages_within(float(limits[number])) for number in {low, max(0, low - 1)}]
        return min((stages for stages in found if stages is not None), key=self._pipeline.period_s, default=None)

    def _least_s(self, limit_s: float) -> float:
        """Of all transfers together, no stage taking longer than the limit; infinite where there is no partition."""
        return self._search(limit_s)[0]

    def _search(self, limit_s: float) -> tuple[float, int, int]:
        """The least, the set of devices, and the last of them."""
        home, cuts = len(self._devices), self._pipeline.num_pieces + 1
        costs = np.where(self._fits & (self._stage_s <= limit_s), 0.0, math.inf)  # (device, start, stop)
        spent = np.full((2**home, home, cuts), math.inf)
        best = (math.inf, 0, 0)
        for layer in self._layers:
            device = layer.device
            for devices, before in zip(map(int, layer.sets), map(int, layer.before), strict=True):
                if before:
                    through = spent[before] + self._transfer_s[:home, device]  # (device before, cut)
                    last = through.argmin(axis=0)
                    arrived = through[last, np.arange(cuts)]
                else:
                    last, arrived = np.zeros(cuts, dtype=np.int64), np.full(cuts, math.inf)
                    arrived[0] = self._transfer_s[home, device, 0]
                begun = arrived[:, None] + costs[device]
                start = begun.argmin(axis=0)
                spent[devices, device] = begun[start, np.arange(cuts)]
                self._parents[devices, device] = last, start
                whole_s = float(spent[devices, device, -1] + self._transfer_s[device, home, -1])
                if whole_s < best[0]:
                    best = (whole_s, devices, device)
        return best

    def _stages_within(self, limit_s: float) -> tuple[Stage, ...] | None:
        least_s, devices, device = self._search(limit_s)
        if least_s == math.inf:
            return None
        stop, stages = self._pipeline.num_pieces, list[Stage]()
        while devices:
            last, start = (parents for parents in self._parents[devices, device])
            begun = int(start[stop])
            stages.insert(0, Stage(device=self._devices[device], start=begun, stop=stop))
            devices, device, stop = devices & ~(1 << device), int(last[begun]), begun
        return tuple(stages)


def _sets(pipeline: Pipeline, usable: Sequence[int]) -> list[list[int]]:
    """Eight devices that may be the best: the fastest, those with the most memory, those nearest to home."""
    home = pipeline.home

    def away_s(device: int) -> float:
        return pipeline.transfer_s(home, device, 0) + pipeline.transfer_s(device, home, pipeline.num_pieces)

    orders = (
        lambda device: sum(pipeline.piece_s[device]),
        lambda device: (-pipeline.memory_bytes[device], sum(pipeline.piece_s[device])),
        lambda device: (away_s(device), sum(pipeline.piece_s[device])),
    )
    found = (sorted(sorted(usable, key=order)[:EXACT_UP_TO]) for order in orders)
    return [list(one) for one in dict.fromkeys(map(tuple, found))]


def lower_bound_s(pipeline: Pipeline) -> float:
    """Of the period of any partition. Stages within T need so many devices at least, whatever is sent; so many send at
    least what is least at any cut, over the fastest link, and at one of the ends something comes from home or goes
    there."""
    everyone = range(pipeline.num_devices)
    if pipeline.num_devices == 1:
        return math.fsum(pipeline.piece_s[0]) * (1 - ROUNDING)
    away = [(one, other) for one in everyone for other in everyone if one != other]

    def least_s(cut: int) -> float:
        return min(pipeline.transfer_s(one, other, cut) for one, other in away)

    between_s = min((least_s(cut) for cut in range(1, pipeline.num_pieces)), default=0.0)
    end_s = min(least_s(0), least_s(pipeline.num_pieces))
    stage_s, may = stage_seconds(pipeline), fits(pipeline)
    sets: list[Layer] = list(layers(pipeline.num_devices))
    sizes = np.array([bin(number).count("1") for number in range(2**pipeline.num_devices)])

    def sent_s(limit_s: float) -> float:
        reached = farthest(pipeline, stage_s, may, sets, limit_s * (1 + ROUNDING))
        whole = sizes[reached == pipeline.num_pieces]
        if not len(whole):
            return math.inf
        count = int(whole.min())
        return 0.0 if count == 1 else (count - 1) * min(between_s, end_s) + end_s

    limits = np.unique(stage_s[may])
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if sent_s(float(limits[middle])) <= limits[middle] else (middle + 1, high)
    before_s = sent_s(float(limits[low - 1])) if low else math.inf
    return min(max(float(limits[low]), sent_s(float(limits[low]))), before_s) * (1 - ROUNDING)
