"""What the searches share: sets of devices in the order in which they grow, and what stages take and fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeprism.errors import PlanError
from edgeprism.planner.pipeline import NOTHING, Pipeline
from edgeprism.specs.plan import MAX_DEVICES, Stage

Seconds = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layer:
    """All sets of one size that hold a device: their numbers, and those of the same sets without it."""

    device: int
    sets: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]


def check_num_devices(pipeline: Pipeline) -> None:
    """PlanError where there are more devices than sets can be gone through."""
    if pipeline.num_devices > MAX_DEVICES:
        raise PlanError(f"partitions are exact for up to {MAX_DEVICES} devices, and there are {pipeline.num_devices}")


def layers(num_devices: int) -> Iterator[Layer]:
    """By size of the set, then by device."""
    sets = np.arange(2**num_devices, dtype=np.int64)
    sizes = np.zeros(len(sets), dtype=np.int64)
    for device in range(num_devices):
        sizes += sets >> device & 1
    for size in range(1, num_devices + 1):
        of_size = sets[sizes == size]
        for device in range(num_devices):
            with_device = of_size[(of_size >> device & 1) == 1]
            yield Layer(device, with_device, with_device ^ (1 << device))


def stage_seconds(pipeline: Pipeline) -> Seconds:
    """Of computing, by device, start and stop."""
    begun_s, ended_s = computing(pipeline)
    found: Seconds = ended_s[:, None, :] - begun_s[:, :, None]
    return found


def computing(pipeline: Pipeline) -> tuple[Seconds, Seconds]:
    """(begun, ended) by device and cut: what a stage between two cuts computes is ``ended`` at its stop less ``begun``
    at its start."""
    devices, cuts = range(pipeline.num_devices), range(pipeline.num_pieces + 1)
    sums = np.cumsum(np.array(pipeline.piece_s), axis=1)
    prefix = np.concatenate([np.zeros((len(devices), 1)), sums], axis=1)
    taken_s = np.array([[pipeline.taken_s(device, cut) for cut in cuts] for device in devices])
    given_s = np.array([[pipeline.given_s(device, cut) for cut in cuts] for device in devices])
    return prefix - taken_s, prefix + given_s


def fits(pipeline: Pipeline) -> Flags:
    """Whether a device's memory allows a stage, by device, start and stop."""
    cuts = range(pipeline.num_pieces + 1)
    needed = np.full((len(cuts), len(cuts)), np.inf)  # where a stage would end before it begins
    for start in cuts:
        for stop in cuts[start:]:
            needed[start, stop] = pipeline.stage_bytes(Stage(device=0, start=start, stop=stop))
    memory_bytes = np.array(pipeline.memory_bytes)[:, None, None]
    found: Flags = (needed <= memory_bytes) & np.isfinite(needed)
    return found


def transfer_seconds(pipeline: Pipeline) -> Seconds:
    """Of handing on, by sender, receiver and cut."""
    devices, cuts = range(pipeline.num_devices), range(pipeline.num_pieces + 1)
    return np.array([[[pipeline.transfer_s(one, other, cut) for cut in cuts] for other in devices] for one in devices])


def farthest(pipeline: Pipeline, stage_s: Seconds, may: Flags, sets: Sequence[Layer], limit_s: float) -> Numbers:
    """By set of devices: the farthest cut that they reach if no stage takes longer and sending takes no time."""
    devices, cuts = pipeline.num_devices, pipeline.num_pieces + 1
    stops = np.where(may & (stage_s <= limit_s), np.arange(cuts), -1).max(axis=2)  # (device, start)
    stops = np.maximum.accumulate(stops, axis=1)
    reached = np.zeros(2**devices, dtype=np.int64)
    for layer in sets:
        np.maximum.at(reached, layer.sets, stops[layer.device][reached[layer.before]])
    return reached


def what_lacks(pipeline: Pipeline, names: Sequence[int] | None = None) -> str:
    """Why nothing fits: which device lacks how many bytes, and what would help. ``names``: the numbers of the devices
    for people, by default their own."""
    usable = [device for device, memory in enumerate(pipeline.memory_bytes) if memory != NOTHING]
    names = range(pipeline.num_devices) if names is None else names
    memory = {device: max(0.0, pipeline.memory_bytes[device]) for device in usable}
    listed = ", ".join(f"device {names[device]} has {there / 1e6:.0f} MB" for device, there in memory.items())
    total, there = sum(pipeline.weight_bytes), sum(memory.values())
    if there < total:
        return (
            f"the model's weights take {total / 1e6:.0f} MB, and {(total - there) / 1e6:.0f} MB lack: {listed}; add a "
            "device, or take a smaller dtype"
        )
    pieces = range(pipeline.num_pieces)
    least = [min(pipeline.stage_bytes(Stage(device=0, start=one, stop=one + 1)) for one in pieces)] if memory else []
    short = [
        f"device {names[device]} lacks {(least[0] - there) / 1e6:.1f} MB for even the smallest piece"
        for device, there in memory.items()
        if there < least[0]
    ]
    return (
        f"no partition fits: the weights take {total / 1e6:.0f} MB, each stage its queues and the pieces' own work "
        f"besides, and {listed}{'; ' if short else ''}{'; '.join(short)}; take a smaller micro-batch or dtype, or add "
        "a device"
    )
