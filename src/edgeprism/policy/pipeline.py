"""What a model's pieces take on the devices of a performance map: the numbers that the planner cuts by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgeprism.planner.pipeline import NOTHING, Pipeline
from edgeprism.policy.network import Network
from edgeprism.policy.predict import dot
from edgeprism.policy.work import work_of
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.performance_map import Costs
from edgeprism.specs.plan import Plan
from edgeprism.strategies.pipeline.partition import cut_bytes, piece_macs, piece_values


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
    given."""
    (work,) = work_of(model, Plan.local(), batch=micro_batch, num_tokens=num_tokens, element_bytes=element_bytes)
    macs = piece_macs(model, num_tokens)
    devices = range(len(costs.devices))
    seconds = [dot(one.compute, work.compute_features()) if one.compute else 0.0 for one in costs.devices]
    limits = {device: (memory_bytes or {}).get(device, math.inf) for device in costs.measured}
    rates = [[_rate(network, one, other) for other in devices] for one in devices]
    latencies = [[network.latency_s(one, other) if one != other else 0.0 for other in devices] for one in devices]
    return Pipeline(
        piece_s=tuple(tuple(total_s * part / sum(macs) for part in macs) for total_s in seconds),
        cut_bytes=cut_bytes(model, codec, num_tokens=num_tokens, batch=micro_batch, element_bytes=element_bytes),
        weight_bytes=tuple(element_bytes * count for count in piece_values(model)),
        work_bytes=(_work_bytes(model, num_tokens, micro_batch, element_bytes),) * len(macs),
        memory_bytes=tuple(limits.get(device, NOTHING) for device in devices),
        latency_s=_matrix(latencies),
        bytes_per_s=_matrix(rates),
    )


def _rate(network: Network, one: int, other: int) -> float:
    return network.bytes_per_s(one, other) if one != other else math.inf


def _work_bytes(model: ModelSpec, num_tokens: int, micro_batch: int, element_bytes: int) -> int:
    """The rows, what attention has beside them (queries, keys, values, what it gathered), and the wide half."""
    width = 4 * model.hidden_size + 2 * model.key_value_width + model.intermediate_size
    return micro_batch * num_tokens * width * element_bytes


def _matrix(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows)
