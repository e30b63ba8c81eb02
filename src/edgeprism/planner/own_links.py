"""The partition with the shortest period where every two devices have a link of their own: exact, by a search for the
least threshold that some partition keeps.

For a threshold T, which cuts can be reached when the devices of a set S have had their stages, the last one on device
d? A state is (S, d), its value a bitset of cuts. A set S with last device e comes from S without e, whatever its last
device d was: take the cuts reached there that may be sent from d to e within T, and from each the cuts to which e can
compute within T and its memory. The farthest cut alone would not do: what is sent differs from cut to cut, so a nearer
one may be the only one that a slow link carries.

T is the time of some stage or some transfer, so there are finitely many; the search is binary among them. A relaxation
(the farthest cut, no links) gives where it begins, which most often is the answer.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from edgeprism.errors import PlanError
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.sets import (
    check_num_devices,
    farthest,
    fits,
    layers,
    stage_seconds,
    transfer_seconds,
    what_lacks,
)
from edgeprism.specs.plan import Stage

WORD_BITS = 64
Bits = npt.NDArray[np.uint64]
Table = npt.NDArray[np.float64]


def fastest_on_own_links(pipeline: Pipeline) -> tuple[Stage, ...]:
    """Stages with the shortest period that devices and memory allow. PlanError where nothing fits, with what lacks."""
    check_num_devices(pipeline)
    search = _Search(pipeline)
    thresholds = search.thresholds()
    low = bisect_left(range(len(thresholds)), True, key=lambda number: search.may_fit(float(thresholds[number])))
    if low == len(thresholds):
        raise PlanError(what_lacks(pipeline))
    if (stages := search.stages(float(thresholds[low]))) is not None:
        return stages
    best, high = None, len(thresholds)
    # a wider step each time: the answer is most often near, and a threshold that is too low is refused quickly
    step = 1
    while low + step < high and best is None:
        best = search.stages(float(thresholds[low + step]))
        low, high, step = (low, low + step, step) if best is not None else (low + step, high, 2 * step)
    if best is None:
        best = search.stages(float(thresholds[-1]))
        high = len(thresholds) - 1
    if best is None:
        raise PlanError(what_lacks(pipeline))
    while high - low > 1:
        middle = (low + high) // 2
        found = search.stages(float(thresholds[middle]))
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


class _Search:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        devices, cuts = pipeline.num_devices, pipeline.num_pieces + 1
        self._num_words = -(-cuts // WORD_BITS)
        self._stage_s, self._fits = stage_seconds(pipeline), fits(pipeline)
        self._transfer_s = transfer_seconds(pipeline)
        self._layers = list(layers(devices))

    def thresholds(self) -> Table:
        """Every time that a stage or a transfer can take, in order; a little more than each, for sums round."""
        upper = np.triu(np.ones(self._stage_s.shape[1:], dtype=bool))
        times = np.concatenate([self._stage_s[:, upper].ravel(), self._transfer_s.ravel()])
        return np.unique(times[np.isfinite(times)] * (1 + 1e-12))

    def may_fit(self, threshold_s: float) -> bool:
        """Whether a partition could keep a threshold if every link did: False is certain."""
        reached = farthest(self._pipeline, self._stage_s, self._fits, self._layers, threshold_s)
        return bool(reached.max() == self._pipeline.num_pieces)

    def stages(self, threshold_s: float) -> tuple[Stage, ...] | None:
        """A partition that keeps a threshold; None where there is none."""
        devices, cuts, home = self._pipeline.num_devices, self._pipeline.num_pieces + 1, self._pipeline.home
        reach = _packed(self._fits & (self._stage_s <= threshold_s), self._num_words)  # (device, start, words)
        sends = _packed(self._transfer_s <= threshold_s, self._num_words)  # (sender, receiver, words)
        tables = [_table(reach[device]) for device in range(devices)]
        states = np.zeros((2**devices, devices, self._num_words), dtype=np.uint64)
        end = np.zeros(self._num_words, dtype=np.uint64)
        end[(cuts - 1) // WORD_BITS] = np.uint64(1) << np.uint64((cuts - 1) % WORD_BITS)
        for layer in self._layers:
            device = layer.device
            if len(layer.sets) == 1 and layer.before[0] == 0:  # the first stage: its inputs come from home
                if self._transfer_s[home, device, 0] <= threshold_s:
                    states[layer.sets[0], device] = reach[device, 0]
            else:
                arrived = np.bitwise_or.reduce(states[layer.before] & sends[:, device], axis=1)
                states[layer.sets, device] = _expand(arrived, tables[device])
            is_done = (states[layer.sets, device] & end).any(axis=1)
            if is_done.any() and self._transfer_s[device, home, cuts - 1] <= threshold_s:
                return self._trace(states, int(layer.sets[int(is_done.argmax())]), device, reach, sends)
        return None

    def _trace(self, states: Bits, devices: int, last: int, reach: Bits, sends: Bits) -> tuple[Stage, ...]:
        """The stages that led to the end, from the last one back."""
        stop, stages = self._pipeline.num_pieces, list[Stage]()
        while True:
            before = devices & ~(1 << last)
            if not before:
                return (Stage(device=last, start=0, stop=stop), *reversed(stages))
            device, start = next(
                (device, start)
                for device in range(self._pipeline.num_devices)
                if before >> device & 1
                for start in range(stop, -1, -1)
                if _has(states[before, device] & sends[device, last], start) and _has(reach[last, start], stop)
            )
            stages.append(Stage(device=last, start=start, stop=stop))
            devices, last, stop = before, device, start


def _packed(flags: npt.NDArray[np.bool_], num_words: int) -> Bits:
    """The last axis as bits of words."""
    padded = np.zeros((*flags.shape[:-1], num_words * WORD_BITS), dtype=bool)
    padded[..., : flags.shape[-1]] = flags
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8")


def _table(reach: Bits) -> Bits:
    """For each byte of a bitset of cuts and each of its values, all that is reached from them: (bytes, 256, words)."""
    cuts, num_words = reach.shape
    table = np.zeros((-(-cuts // 8), 256, num_words), dtype=np.uint64)
    values = np.arange(256)
    for cut in range(cuts):
        table[cut // 8, (values >> cut % 8 & 1) == 1] |= reach[cut]
    return table


def _expand(arrived: Bits, table: Bits) -> Bits:
    """What is reached from any of the cuts in each bitset."""
    number = arrived.view(np.uint8)  # (sets, bytes), the least byte first
    reached = np.zeros_like(arrived)
    for byte in range(table.shape[0]):
        values = number[:, byte]
        if values.any():
            reached |= table[byte, values]
    return reached


def _has(bits: Bits, cut: int) -> bool:
    return bool(int(bits[cut // WORD_BITS]) >> cut % WORD_BITS & 1)
