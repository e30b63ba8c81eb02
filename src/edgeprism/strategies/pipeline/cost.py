"""What a request costs when a model's pieces are split over devices."""

from __future__ import annotations

from edgeprism.specs.cost import Cost, DeviceCost
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.pipeline.partition import check, cut_bytes, piece_macs

COORDINATOR = 0


def cost(model: ModelSpec, plan: Plan, *, num_tokens: int, batch: int, element_bytes: int) -> Cost:
    """Counts for a batch of ``batch`` samples of ``num_tokens`` tokens each.

    ViT-B/16, two devices, cut in the middle, by hand: each has six blocks, 6 * 1,453,954,560 multiply-accumulates, the
    first one the patch embedding besides; it hands on 197 * 768 * 4 = 605,184 bytes a sample.
    """
    check(model, plan)
    macs = piece_macs(model, num_tokens)
    cuts = cut_bytes(model, plan.codec, num_tokens=num_tokens, batch=batch, element_bytes=element_bytes)
    sent = [0] * plan.num_devices
    path = [COORDINATOR, *(stage.device for stage in plan.stages), COORDINATOR]
    at = [0, *(stage.stop for stage in plan.stages)]
    for sender, receiver, cut in zip(path, path[1:], at, strict=False):
        sent[sender] += cuts[cut] if sender != receiver else 0
    own = {stage.device: stage for stage in plan.stages}
    parts = [macs[own[device].start : own[device].stop] if device in own else () for device in range(plan.num_devices)]
    return Cost(
        devices=tuple(
            DeviceCost(
                num_samples=batch if part else 0,
                num_tokens=num_tokens if part else 0,
                key_rows=num_tokens if part else 0,
                macs=batch * sum(part),
                bytes_sent=sent[device],
            )
            for device, part in enumerate(parts)
        ),
        input_bytes=cuts[0] if plan.stages[0].device != COORDINATOR else 0,
    )
