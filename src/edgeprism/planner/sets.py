"""What the searches share: sets of devices in the order in which they grow, and what stages take and fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeprism.errors import PlanError
from edgeprism.planner.pipeline import Pipeline
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
    devices = pipeline.num_devices
    prefix = np.concatenate([np.zeros((devices, 1)), np.cumsum(np.array(pipeline.piece_s), axis=1)], axis=1)
    found: Seconds = prefix[:, None, :] - prefix[:, :, None]
    return found


def fits(pipeline: Pipeline) -> Flags:
    """Whether a device's memory allows a stage, by device, start and stop."""
    cuts = range(pipeline.num_pieces + 1)
    return np.array(
        [
            [
                [
                    stop >= start and pipeline.stage_bytes(Stage(device=device, start=start, stop=stop)) <= memory_bytes
                    for stop in cuts
                ]
                for start in cuts
            ]
            for device, memory_bytes in enumerate(pipeline.memory_bytes)
        ]
    )


def farthest(pipeline: Pipeline, stage_s: Seconds, may: Flags, sets: Sequence[Layer], limit_s: float) -> Numbers:
    """By set of devices: the farthest cut that they reach if no stage takes longer and sending takes no time."""
    devices, cuts = pipeline.num_devices, pipeline.num_pieces + 1
    stops = np.where(may & (stage_s <= limit_s), np.arange(cuts), -1).max(axis=2)  # (device, start)
    stops = np.maximum.accumulate(stops, axis=1)
    reached = np.zeros(2**devices, dtype=np.int64)
    for layer in sets:
        np.maximum.at(reached, layer.sets, stops[layer.device][reached[layer.before]])
    return reached


def what_lacks(pipeline: Pipeline) -> str:
    """Why nothing fits, what is missing and what would help."""
    memory = [max(0.0, one) for one in pipeline.memory_bytes]
    total, there = sum(pipeline.weight_bytes), sum(memory)
    if there < total:
        return (
            f"the model's weights take {total / 1e6:.0f} MB, and all devices together have {there / 1e6:.0f} MB: "
            f"{(total - there) / 1e6:.0f} MB lack; add a device, or take a smaller dtype"
        )
    alone = [
        pipeline.stage_bytes(Stage(device=0, start=piece, stop=piece + 1)) / 1e6
        for piece in range(pipeline.num_pieces)
    ]  # fmt: skip
    return (
        f"no partition fits: pieces take {min(alone):.0f} to {max(alone):.0f} MB each with their queues, and the "
        f"devices have {min(memory) / 1e6:.0f} to {max(memory) / 1e6:.0f} MB; take a smaller micro-batch or "
        "dtype, or add a device"
    )
