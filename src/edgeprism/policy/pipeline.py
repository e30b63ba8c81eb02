"""What a model's pieces take on the devices of a performance map: the numbers that the planner cuts by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgeprism.planner.pipeline import NOTHING, Matrix, Pipeline
from edgeprism.policy.network import Network
from edgeprism.policy.predict import dot
from edgeprism.policy.work import work_of
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.performance_map import Costs, DeviceCosts
from edgeprism.specs.plan import Plan
from edgeprism.strategies.pipeline.partition import (
    TEXTS_A_STAGE,
    cut_bytes,
    kept_bytes,
    piece_work,
    work_bytes,
)


def pipeline_of(
    costs: Costs,
    model: ModelSpec,
    network: Network,
    *,
    num_tokens: int,
    micro_batch: int,
    element_bytes: int,
    codec: CodecSpec = EXACT,
    memory_bytes: Mapping[int, float] | None = None,
) -> Pipeline:
    """For micro-batches of so many samples. A device's pieces share what such a request takes it alone by their
    multiply-accumulates; one that was not measured is not used. ``memory_bytes`` by device: no limit where none is
    given. Models that generate keep keys and values of ``num_tokens`` for as many texts as may be in flight."""
    (work,) = work_of(model, Plan.local(), batch=micro_batch, num_tokens=num_tokens, element_bytes=element_bytes)
    macs = piece_work(model, num_tokens)
    devices = range(len(costs.devices))
    seconds = [dot(one.compute, work.compute_features()) if one.compute else 0.0 for one in costs.devices]
    limits = {device: (memory_bytes or {}).get(device, math.inf) for device in costs.measured}
    latency_s, bytes_per_s = link_matrices(network, len(devices))
    num_texts = TEXTS_A_STAGE * len(costs.measured) * micro_batch
    return Pipeline(
        piece_s=tuple(tuple(total_s * part / sum(macs) for part in macs) for total_s in seconds),
        cut_bytes=cut_bytes(model, codec, num_tokens=num_tokens, batch=micro_batch, element_bytes=element_bytes),
        weight_bytes=kept_bytes(model, num_tokens, element_bytes, num_texts),
        work_bytes=(work_bytes(model, num_tokens, micro_batch, element_bytes),) * len(macs),
        memory_bytes=tuple(limits.get(device, NOTHING) for device in devices),
        latency_s=latency_s,
        has_one_medium=network.is_one_medium,
        bytes_per_s=bytes_per_s,
        s_per_byte=tuple(_a_megabyte_s(one) / 1e6 for one in costs.devices),
    )


def unmeasured(
    model: ModelSpec,
    *,
    speeds: Sequence[float],
    memory_bytes: Sequence[float],
    num_tokens: int,
    micro_batch: int,
    element_bytes: int,
    codec: CodecSpec = EXACT,
) -> Pipeline:
    """Where nothing was measured: devices that are so fast beside each other, with links that cost nothing. So it is
    for what fits, and its seconds mean nothing."""
    macs, count = piece_work(model, num_tokens), len(speeds)
    return Pipeline(
        piece_s=tuple(tuple(one / speed for one in macs) for speed in speeds),
        cut_bytes=cut_bytes(model, codec, num_tokens=num_tokens, batch=micro_batch, element_bytes=element_bytes),
        weight_bytes=kept_bytes(model, num_tokens, element_bytes, TEXTS_A_STAGE * count * micro_batch),
        work_bytes=(work_bytes(model, num_tokens, micro_batch, element_bytes),) * len(macs),
        memory_bytes=tuple(memory_bytes),
        latency_s=((0.0,) * count,) * count, bytes_per_s=((math.inf,) * count,) * count,
    )  # fmt: skip


def _a_megabyte_s(costs: DeviceCosts) -> float:
    """Of the thread that computes a stage: carrying it, laying it out or parsing it, and staging it."""
    return costs.compute[-1] + costs.wire[-1] + costs.staging[-1] if costs.compute else 0.0


def link_matrices(network: Network, num_devices: int) -> tuple[Matrix, Matrix]:
    """Latency and rate from device to device, as a `Pipeline` takes them."""
    devices = range(num_devices)
    latency_s = tuple(
        tuple(network.latency_s(one, other) if one != other else 0.0 for other in devices) for one in devices
    )
    bytes_per_s = tuple(
        tuple(network.bytes_per_s(one, other) if one != other else math.inf for other in devices) for one in devices
    )
    return latency_s, bytes_per_s
