"""The partition that answers one request soonest: exact, by dynamic programming over sets of devices.

For each set S, its last device e and each cut: the least time at which S can have computed up to there, e being last.
It comes from S without e, over the device before e and the cut at which e began. Sets are gone through by size; times
are kept of two sizes, and of all only who was before. What cannot beat the best answer so far is dropped, from some
good partitions on that are found quickly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgeprism.errors import PlanError
from edgeprism.planner.own_links import fastest_on_own_links
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.sets import check_num_devices, computing
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
        piece_s = np.array(pipeline.piece_s)
        self._begun_s, self._ended_s = computing(pipeline)
        self._transfer_s = np.array(
            [
                [[pipeline.transfer_s(one, other, cut) for cut in range(cuts)] for other in range(devices)]
                for one in range(devices)
            ]
        )
        self._rest_s = np.concatenate([np.cumsum(piece_s.min(axis=0)[::-1])[::-1], [0.0]]) * (1 - 1e-12)
        """By cut: what is left, each piece on the device that is fastest for it."""
        self._starts = [[self._starts_of(device, stop) for stop in range(cuts)] for device in range(devices)]
        self._row = np.full((devices, 2**devices), _NOWHERE, dtype=np.int64)
        """By device and set: where the set is among those of its size that end with the device; nowhere if none can."""
        self._parents: dict[tuple[int, int], Parents] = {}  # by size and last device: (sets, cuts)

    def _starts_of(self, device: int, stop: int) -> Numbers | slice:
        """Where a stage of this device may begin that ends there; mostly all from one cut on."""
        pipeline = self._pipeline
        starts = [
            start
            for start in range(stop + 1)
            if pipeline.stage_bytes(Stage(device=device, start=start, stop=stop)) <= pipeline.memory_bytes[device]
        ]
        if starts and len(starts) == starts[-1] - starts[0] + 1:
            return slice(starts[0], starts[-1] + 1)
        return np.array(starts, dtype=np.int64)

    def stages(self) -> tuple[Stage, ...]:
        """See ``quickest``."""
        home, every = self._pipeline.home, np.arange(2**self._devices, dtype=np.int64)
        size_of = sum((every >> device & 1 for device in range(self._devices)), np.zeros_like(every))
        good = self._good()
        best_s = self._pipeline.request_s(good) * (1 + 1e-9)
        before_s: dict[int, Times] = {}
        best: tuple[int, int] | None = None  # a set, and its last device
        for size in range(1, self._devices + 1):
            now_s: dict[int, Times] = {}
            for device in range(self._devices):
                sets = every[(size_of == size) & ((every >> device & 1) == 1)]
                found_s, parents = self._ending_with(device, sets, before_s)
                end_s = found_s[:, -1] + self._transfer_s[device, home, -1]
                if end_s.min() < best_s:
                    best_s, best = float(end_s.min()), (int(sets[end_s.argmin()]), device)
                found_s[found_s + self._rest_s >= best_s] = np.inf  # what is left takes too long on any devices
                is_kept = np.isfinite(found_s).any(axis=1)
                if best is not None and best[1] == device:
                    is_kept |= sets == best[0]
                self._row[device, sets[is_kept]] = np.arange(is_kept.sum())
                self._parents[size, device] = parents[is_kept]
                now_s[device] = found_s[is_kept]
            before_s = now_s
            if not any(np.isfinite(found_s).any() for found_s in before_s.values()):
                break
        return good if best is None else self._trace(*best, size_of)

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

    def _ending_with(self, device: int, sets: Numbers, before_s: dict[int, Times]) -> tuple[Times, Parents]:
        """When each set can have computed up to each cut, this device being last: (sets, cuts)."""
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

    def _trace(self, devices: int, last: int, size_of: Numbers) -> tuple[Stage, ...]:
        stop, stages = self._cuts - 1, list[Stage]()
        while True:
            number = int(self._parents[int(size_of[devices]), last][self._row[last, devices], stop])
            sender, start = number >> CUT_BITS, number & (2**CUT_BITS - 1)
            stages.append(Stage(device=last, start=start, stop=stop))
            devices ^= 1 << last
            if not devices:
                return tuple(reversed(stages))
            last, stop = sender, start
