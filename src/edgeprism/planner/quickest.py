"""The partition that answers one request soonest: exact, by dynamic programming over sets of devices.

For each set S, its last device e and each cut: the least time at which S can have computed up to there, e being last.
It comes from S without e, over the device before e and the cut at which e began. Sets are gone through by size; times
are kept of two sizes, and of all only who was before. What cannot beat the best answer so far, by a bound of what is
left (`rest`), is dropped, from some good partitions on that are found quickly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgeprism.errors import PlanError
from edgeprism.planner.own_links import fastest_on_own_links
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.rest import Rest
from edgeprism.planner.sets import Flags, check_num_devices, computing, fits, transfer_seconds
from edgeprism.specs.plan import Stage

Times = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Parents = npt.NDArray[np.uint16]
CUT_BITS = 12  # of a parent, the other 4 are its device
_CHUNK = 2048  # sets at once
_NOWHERE = -1


def quickest(pipeline: Pipeline) -> tuple[Stage, ...]:
    """Stages with the shortest time of one request that devices and memory allow. PlanError where nothing fits."""
    check_num_devices(pipeline)
    if pipeline.num_pieces >= 2**CUT_BITS:
        raise PlanError(f"partitions are found for models of up to {2**CUT_BITS - 1} pieces, not {pipeline.num_pieces}")
    return _Quickest(pipeline).stages()


class _Quickest:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        devices, cuts = pipeline.num_devices, pipeline.num_pieces + 1
        self._devices, self._cuts = devices, cuts
        self._begun_s, self._ended_s = computing(pipeline)
        self._transfer_s, may = transfer_seconds(pipeline), fits(pipeline)
        self._rest = Rest(pipeline, may, self._transfer_s)
        every = np.arange(2**devices, dtype=np.int64)
        self._size_of = sum((every >> device & 1 for device in range(devices)), np.zeros_like(every))
        self._starts = [[_starts(may[device, :, stop]) for stop in range(cuts)] for device in range(devices)]
        self._row = np.full((devices, 2**devices), _NOWHERE, dtype=np.int64)
        """By device and set: where the set is among those of its size that end with the device; nowhere if none can."""
        self._parents: dict[tuple[int, int], Parents] = {}  # by size and last device: (sets, cuts)

    def stages(self) -> tuple[Stage, ...]:
        """See ``quickest``."""
        good = self._good()
        good_s = self._pipeline.request_s(good) * (1 + 1e-9)
        return self._within(good_s) or good

    def _within(self, limit_s: float) -> tuple[Stage, ...] | None:
        """The best of all that take less; None where none does."""
        home, best_s = self._pipeline.home, limit_s
        before_s: dict[int, Times] = {}
        best: tuple[int, int] | None = None  # a set, and its last device
        self._row[:] = _NOWHERE
        self._parents.clear()
        going_on = np.zeros(1, dtype=np.int64)  # sets that may lead to something, in order; first the one of nobody
        left_s = np.zeros((1, self._cuts))  # at least, by such a set and cut
        for size in range(1, self._devices + 1):
            now_s: dict[int, Times] = {}
            of_size = np.unique(going_on[:, None] | 1 << np.arange(self._devices))
            of_size = of_size[self._size_of[of_size] == size]
            rest_s, is_going_on = self._rest.of(of_size), np.zeros(len(of_size), dtype=np.bool_)
            for device in range(self._devices):
                places = np.flatnonzero((of_size >> device & 1) == 1)
                befores = np.searchsorted(going_on, of_size[places] ^ (1 << device))
                comes = going_on[np.minimum(befores, len(going_on) - 1)] == of_size[places] ^ (1 << device)
                places, befores = places[comes], befores[comes]
                if not len(places):
                    continue
                sets = of_size[places]
                too_late_s = best_s - left_s[befores] + self._rest.arriving_s[device]
                found_s, parents = self._ending_with(device, sets, before_s, too_late_s)
                end_s = found_s[:, -1] + self._transfer_s[device, home, -1]
                if end_s.min() < best_s:
                    best_s, best = float(end_s.min()), (int(sets[end_s.argmin()]), device)
                found_s[found_s + rest_s[places] >= best_s] = np.inf
                is_kept = np.isfinite(found_s).any(axis=1)
                is_going_on[places[is_kept]] = True
                if best is not None and best[1] == device:
                    is_kept |= sets == best[0]
                self._row[device, sets[is_kept]] = np.arange(is_kept.sum())
                self._parents[size, device] = parents[is_kept]
                now_s[device] = found_s[is_kept]
            before_s, going_on, left_s = now_s, of_size[is_going_on], rest_s[is_going_on]
            if not len(going_on):
                break
        return None if best is None else self._trace(*best)

    def _good(self) -> tuple[Stage, ...]:
        """The best of some good partitions: what cannot beat it need not be looked at. PlanError where nothing fits."""
        pipeline = self._pipeline
        found = [fastest_on_own_links(replace(pipeline, has_one_medium=False))]
        by_speed = sorted(range(self._devices), key=lambda device: sum(pipeline.piece_s[device]))
        for first in range(self._devices):  # few devices, each as full as its memory allows
            at, stages = 0, list[Stage]()
            for device in by_speed[first:]:
                for stop in range(self._cuts - 1, at, -1):
                    stage = Stage(device=device, start=at, stop=stop)
                    if pipeline.stage_bytes(stage) <= pipeline.memory_bytes[device]:
                        stages.append(stage)
                        at = stop
                        break
            if at == self._cuts - 1:
                found.append(tuple(stages))
        return min(found, key=pipeline.request_s)

    def _ending_with(
        self, device: int, sets: Numbers, before_s: dict[int, Times], too_late_s: Times
    ) -> tuple[Times, Parents]:
        """When each set can have computed up to each cut, this device being last: (sets, cuts). What reaches it too
        late, by set and cut, is left out."""
        found_s = np.full((len(sets), self._cuts), np.inf)
        parents = np.zeros((len(sets), self._cuts), dtype=np.uint16)
        for part in np.array_split(np.arange(len(sets)), max(1, len(sets) // _CHUNK)):
            arrived_s = np.full((len(part), self._cuts), np.inf)
            senders = np.full((len(part), self._cuts), device, dtype=np.int64)
            without = sets[part] ^ (1 << device)
            if not before_s:
                arrived_s[:, 0] = self._transfer_s[self._pipeline.home, device, 0]
            for sender, times in before_s.items():
                rows = self._row[sender, without]
                is_there = np.flatnonzero(rows != _NOWHERE)
                is_there = is_there[(without[is_there] >> sender & 1) == 1]
                if not len(is_there):
                    continue
                came_s = times[rows[is_there]] + self._transfer_s[sender, device]
                is_first = came_s < arrived_s[is_there]
                arrived_s[is_there] = np.where(is_first, came_s, arrived_s[is_there])
                senders[is_there] = np.where(is_first, sender, senders[is_there])
            arrived_s[arrived_s >= too_late_s[part]] = np.inf
            found_s[part], parents[part] = self._computed(arrived_s, senders, device)
        return found_s, parents

    def _computed(self, arrived_s: Times, senders: Numbers, device: int) -> tuple[Times, Parents]:
        relative_s = arrived_s - self._begun_s[device]
        through_s = self._ended_s[device] - self._begun_s[device]  # of a stage without pieces, by cut
        done_s = np.full(arrived_s.shape, np.inf)
        parents = np.zeros(arrived_s.shape, dtype=np.uint16)
        rows = np.flatnonzero(np.isfinite(relative_s).any(axis=1))
        relative_s, senders, arrived_s = relative_s[rows], senders[rows], arrived_s[rows]
        each = np.arange(len(rows))
        for stop, starts in enumerate(self._starts[device]):
            choices = relative_s[:, starts]
            if not choices.size:
                continue
            chosen = choices.argmin(axis=1)
            chosen = chosen + starts.start if isinstance(starts, slice) else starts[chosen]
            computed_s = relative_s[each, chosen] + self._ended_s[device, stop]
            # a stage without pieces is not told apart by how sums are rounded: it would win
            done_s[rows, stop] = np.where(chosen == stop, arrived_s[:, stop] + through_s[stop], computed_s)
            parents[rows, stop] = senders[each, chosen] << CUT_BITS | chosen
        return done_s, parents

    def _trace(self, devices: int, last: int) -> tuple[Stage, ...]:
        stop, stages = self._cuts - 1, list[Stage]()
        while True:
            number = int(self._parents[int(self._size_of[devices]), last][self._row[last, devices], stop])
            sender, start = number >> CUT_BITS, number & (2**CUT_BITS - 1)
            stages.append(Stage(device=last, start=start, stop=stop))
            devices ^= 1 << last
            if not devices:
                return tuple(reversed(stages))
            last, stop = sender, start


def _starts(may: Flags) -> Numbers | slice:
    """Where a stage may begin, of flags by cut; mostly all between two."""
    starts = np.flatnonzero(may)
    if len(starts) and len(starts) == starts[-1] - starts[0] + 1:
        return slice(int(starts[0]), int(starts[-1]) + 1)
    return starts
