"""Whether plan `auto` splits a model by its layers: where device 0 cannot hold all of it, or where others cannot and a
stream is faster through all of them.

Where every device holds the whole model there is nothing to ask: `replica` takes a stream through faster, one request
is answered soonest by one device or by `sequence`, and the performance map says which. Here nothing was profiled,
since nothing could be: how fast the devices and their links are is measured in a moment each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeprism.errors import PeerError, PlanError
from edgeprism.planner.fewer import with_fewer
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.quickest import quickest
from edgeprism.planner.throughput import fastest
from edgeprism.policy.network import Network
from edgeprism.policy.pipeline import link_matrices
from edgeprism.profiler.fit import link_costs
from edgeprism.runtime.link_probe import ask, free_bytes, measure_link
from edgeprism.runtime.machine import MEMORY_PART, memory_available_bytes
from edgeprism.runtime.membership import Membership
from edgeprism.runtime.messages import Introduction
from edgeprism.runtime.speed import speed_of_products
from edgeprism.specs.codec import EXACT
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.performance_map import LinkMeasured
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.pipeline.partition import (
    TEXTS_A_STAGE,
    cut_bytes,
    kept_bytes,
    num_pieces,
    piece_work,
    stage_weight_bytes,
    work_bytes,
)
from edgeprism.wire.transport import COORDINATOR, Transport

log = logging.getLogger(__name__)

WORTH_IT = 1.05
"""How many times as many samples a second a pipeline must promise, where the other devices could do without."""
ANSWER_S, SPEED_TIMEOUT_S = 5.0, 10.0
MAX_SPEED_RATIO = 1000.0  # of a device that may be believed to this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """``note``: why, in one line."""

    plan: Plan
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    number: int
    free_bytes: float
    macs_per_s: float
    link: LinkMeasured | None
    """None of this device."""


def split_by_layers(
    transport: Transport,
    introductions: Mapping[int, Introduction],
    model: ModelSpec,
    dtype: torch.dtype,
    objective: str,
) -> Split | None:
    """The stages where they are needed, or pay; None where they are not. PlanError where nothing fits, with what lacks.
    For the thread that owns the transport, before anything is loaded."""
    here = memory_available_bytes()
    if here is None:
        return None
    members, absent = Membership(transport, introductions), dict[int, str]()
    answered = members.introduce(ANSWER_S)  # who was another coordinator's has another rank, and may still be its
    free = {COORDINATOR: float(here), **free_bytes(transport, answered, absent)}
    whole_bytes = stage_weight_bytes(model, 0, num_pieces(model), dtype.itemsize)
    too_small = [device for device, there in free.items() if MEMORY_PART * there < whole_bytes]
    is_needed = COORDINATOR in too_small
    if not too_small or len(free) < 2 or not (is_needed or objective == "throughput"):
        return None
    devices = _looked_at(transport, free, dtype, absent)
    absent |= {device: why for device, why in members.absent().items() if device not in answered}
    left_out = "; ".join(f"device {device} is left out: {why}" for device, why in sorted(absent.items()))
    pipeline = _pipeline(model, devices, dtype.itemsize)
    try:
        if objective == "throughput":
            stages = with_fewer(pipeline, pipeline.runnable(fastest(pipeline)), pipeline.period_s)
        else:
            stages = with_fewer(pipeline, pipeline.runnable(quickest(pipeline)), pipeline.request_s)
    except PlanError as exc:
        if is_needed:
            raise PlanError(f"{exc}{'; ' if left_out else ''}{left_out}") from exc
        return None
    if not is_needed and not _pays(pipeline, stages, [one.number not in too_small for one in devices]):
        return None
    placed = [Stage(device=devices[one.device].number, start=one.start, stop=one.stop) for one in stages]
    first = too_small[0]
    note = (
        f"auto: pipeline, since the model's weights take {whole_bytes / 1e6:.0f} MB and device {first} has "
        f"{free[first] / 1e6:.0f} MB free{'; ' if left_out else ''}{left_out}"
    )
    log.info("%s: stages %s", note, ", ".join(map(str, placed)))
    return Split(plan=Plan.pipeline(placed, transport.num_devices, EXACT), note=note)


def _looked_at(
    transport: Transport, free: Mapping[int, float], dtype: torch.dtype, absent: dict[int, str]
) -> list[_Device]:
    """Those that answer in time, with their speeds and links, this device first."""
    own = speed_of_products(dtype)
    found = [_Device(number=COORDINATOR, free_bytes=free[COORDINATOR], macs_per_s=own, link=None)]
    for device in sorted(free.keys() - {COORDINATOR}):
        try:
            name = str(dtype).removeprefix("torch.")
            speed = ask(transport, device, "speed", given=name, timeout_s=SPEED_TIMEOUT_S).get("macs_per_s")
            link = measure_link(transport, device)
        except PeerError as exc:
            absent[device] = str(exc)
            continue
        if not isinstance(speed, float) or not own / MAX_SPEED_RATIO <= speed <= own * MAX_SPEED_RATIO:
            absent[device] = "it claims a speed that cannot be"
            continue
        found.append(_Device(number=device, free_bytes=free[device], macs_per_s=speed, link=link))
    return found


def _pays(pipeline: Pipeline, stages: Sequence[Stage], holds: Sequence[bool]) -> bool:
    """Whether more samples a second come through these stages than through the devices that hold everything."""
    alone = [
        pipeline.period_s([Stage(device=place, start=0, stop=pipeline.num_pieces)])
        for place, can_hold in enumerate(holds)
        if can_hold
    ]
    return 1 / pipeline.period_s(stages) >= WORTH_IT * sum(1 / period_s for period_s in alone)


def _pipeline(model: ModelSpec, devices: Sequence[_Device], element_bytes: int) -> Pipeline:
    """Of single samples, which for texts are short ones."""
    num_tokens = model.usual_tokens
    macs, num = piece_work(model, num_tokens), num_pieces(model)
    network = Network(
        links=tuple(
            link_costs(one.link, device=place) for place, one in enumerate(devices) if one.link is not None
        )
    )  # fmt: skip
    latency_s, bytes_per_s = link_matrices(network, len(devices))
    num_texts = TEXTS_A_STAGE * len(devices)
    return Pipeline(
        piece_s=tuple(tuple(count / one.macs_per_s for count in macs) for one in devices),
        cut_bytes=cut_bytes(model, EXACT, num_tokens=num_tokens, batch=1, element_bytes=element_bytes),
        weight_bytes=kept_bytes(model, num_tokens, element_bytes, num_texts),
        work_bytes=(work_bytes(model, num_tokens, 1, element_bytes),) * num,
        memory_bytes=tuple(MEMORY_PART * one.free_bytes for one in devices),
        latency_s=latency_s,
        bytes_per_s=bytes_per_s,
        has_one_medium=network.is_one_medium,
    )
