"""A pipeline to plan: a model cut into pieces, the devices and links it may run on, and what a partition of it takes.

All seconds and bytes are of one micro-batch. Computing, sending and receiving overlap, so a full pipeline finishes a
micro-batch in the time of its slowest stage or transfer (of all transfers together, where they share a medium); one
request alone takes the sum of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeprism.errors import InputError, PlanError
from edgeprism.specs.plan import Stage

Matrix = tuple[tuple[float, ...], ...]
NOTHING = -1.0
"""Memory of a device that can hold nothing, not even what it would hand on: one that is not to be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """See the module. InputError where the numbers do not fit together."""

    piece_s: Matrix
    """By device, then piece."""
    cut_bytes: tuple[int, ...]
    """What travels at each cut: first the inputs, last the outputs, so one more than pieces."""
    weight_bytes: tuple[int, ...]
    """Of each piece, its cache of keys and values included."""
    work_bytes: tuple[int, ...]
    """What computing a piece holds besides; a stage holds that of its largest piece."""
    memory_bytes: tuple[float, ...]
    """Of each device; infinite where it is no limit, ``NOTHING`` where it is not to be used."""
    latency_s: Matrix
    """From device to device."""
    bytes_per_s: Matrix
    s_per_byte: tuple[float, ...] = ()
    """Of each device's computing, for what its stage is sent and sends: the same cores carry it. Empty: nothing. What
    home hands out and takes for stages of others is not counted."""
    queue_length: int = 2
    """Micro-batches that a stage keeps of what comes, and of what goes."""
    has_one_medium: bool = False
    """Whether all devices send over one medium, one at a time, as on WiFi."""
    home: int = 0
    """The device that has the inputs and wants the outputs; it may have a stage, and need not."""

    def __post_init__(self) -> None:
        pieces, devices = len(self.weight_bytes), len(self.piece_s)
        if not pieces or not devices:
            raise InputError("a pipeline has at least one piece and one device")
        lengths = {
            "piece_s": [len(row) for row in self.piece_s] == [pieces] * devices,
            "cut_bytes": len(self.cut_bytes) == pieces + 1,
            "work_bytes": len(self.work_bytes) == pieces,
            "memory_bytes": len(self.memory_bytes) == devices,
            "latency_s": [len(row) for row in self.latency_s] == [devices] * devices,
            "bytes_per_s": [len(row) for row in self.bytes_per_s] == [devices] * devices,
            "s_per_byte": len(self.s_per_byte) in (0, devices),
        }
        if wrong := [name for name, fits in lengths.items() if not fits]:
            raise InputError(f"{wrong[0]} does not fit {pieces} pieces and {devices} devices")
        if not 0 <= self.home < devices:
            raise InputError(f"the inputs are on device {self.home}, and there are {devices}")
        if min(map(min, (*self.piece_s, *self.latency_s, (0.0, *self.s_per_byte)))) < 0:
            raise InputError("a pipeline's seconds are not negative")
        if min(map(min, self.bytes_per_s)) <= 0:
            raise InputError("a link's rate is more than 0")

    @property
    def num_pieces(self) -> int:
        """Of the model."""
        return len(self.weight_bytes)

    @property
    def num_devices(self) -> int:
        """That may be used."""
        return len(self.piece_s)

    def compute_s(self, stage: Stage) -> float:
        """Seconds of a stage's computing, and of handling what comes and goes."""
        device, start, stop = stage.device, stage.start, stage.stop
        return math.fsum([*self.piece_s[device][start:stop], self.taken_s(device, start), self.given_s(device, stop)])

    def taken_s(self, device: int, start: int) -> float:
        """Seconds of a device's computing that go into taking what its stage begins with."""
        return 0.0 if device == self.home and start == 0 else self._handled_s(device, start)

    def given_s(self, device: int, stop: int) -> float:
        """Seconds of its computing that go into handing on what its stage ends with."""
        return 0.0 if device == self.home and stop == self.num_pieces else self._handled_s(device, stop)

    def _handled_s(self, device: int, cut: int) -> float:
        return self.s_per_byte[device] * self.cut_bytes[cut] if self.s_per_byte else 0.0

    def transfer_s(self, sender: int, receiver: int, cut: int) -> float:
        """Seconds of handing on what is at a cut; none where it stays. Outputs go home from the device that has the
        head, which hands them to nobody else."""
        if sender == receiver:
            return 0.0
        if cut == self.num_pieces and receiver != self.home:
            return math.inf
        return self.latency_s[sender][receiver] + self.cut_bytes[cut] / self.bytes_per_s[sender][receiver]

    def stage_bytes(self, stage: Stage) -> int:
        """Memory that a stage takes: weights, work, two queues, and what it takes from one and puts into the other."""
        pieces = slice(stage.start, stage.stop)
        queues = (self.queue_length + 1) * (self.cut_bytes[stage.start] + self.cut_bytes[stage.stop])
        return sum(self.weight_bytes[pieces]) + max(self.work_bytes[pieces], default=0) + queues

    def fits(self, stages: Sequence[Stage]) -> bool:
        """Whether each device has the memory for its stage."""
        return all(self.stage_bytes(stage) <= self.memory_bytes[stage.device] for stage in stages)

    def transfers(self, stages: Sequence[Stage]) -> list[float]:
        """Seconds of each: the inputs to the first stage, from stage to stage, the outputs home."""
        path = [self.home, *(stage.device for stage in stages), self.home]
        cuts = [0, *(stage.stop for stage in stages)]
        return [
            self.transfer_s(sender, receiver, cut) for sender, receiver, cut in zip(path, path[1:], cuts, strict=False)
        ]

    def period_s(self, stages: Sequence[Stage]) -> float:
        """Between two micro-batches that are done, in a full pipeline."""
        transfers = self.transfers(stages)
        return max(*map(self.compute_s, stages), *([math.fsum(transfers)] if self.has_one_medium else transfers))

    def request_s(self, stages: Sequence[Stage]) -> float:
        """Of one micro-batch alone, from its inputs at home to its outputs there."""
        return math.fsum([*map(self.compute_s, stages), *self.transfers(stages)])

    def runnable(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Without stages at the ends that hold nothing and need not be: of device 0, which has the inputs and wants the
        outputs anyway."""
        first, last = 0, len(stages)
        while last > first + 1 and stages[last - 1].start == stages[last - 1].stop:
            last -= 1  # home: nobody else is handed outputs
        while first < last - 1 and stages[first].start == stages[first].stop and stages[first].device == self.home:
            first += 1
        return tuple(stages[first:last])

    def check(self, stages: Sequence[Stage]) -> None:
        """PlanError unless these stages are a partition that fits: every piece once, in order, on devices that differ
        and have the memory."""
        at = 0
        for stage in stages:
            if stage.start != at or stage.stop < stage.start:
                what = "skips" if stage.start > at else "repeats"
                raise PlanError(f"the stage on device {stage.device} {what} pieces: {at} is next, and it has {stage}")
            at = stage.stop
            if not 0 <= stage.device < self.num_devices:
                raise PlanError(f"there is no device {stage.device}")
            needed, there = self.stage_bytes(stage), self.memory_bytes[stage.device]
            if needed > there:
                raise PlanError(
                    f"device {stage.device} lacks {(needed - there) / 1e6:.1f} MB ({needed - there:.0f} bytes): pieces "
                    f"{stage.start} to {stage.stop} take {needed / 1e6:.1f} MB, and it has {there / 1e6:.1f} MB"
                )
        if stages and stages[-1].start == stages[-1].stop and stages[-1].device != self.home:
            raise PlanError(f"device {stages[-1].device} has the last stage and no pieces: nobody hands it outputs")
        if at != self.num_pieces:
            raise PlanError(f"the stages end at piece {at}, and the model has {self.num_pieces}")
        devices = [stage.device for stage in stages]
        if len(set(devices)) < len(devices):
            raise PlanError("a device has two stages; it computes one at a time, so give it one")
