"""What a request costs when the batch is split: whole samples on each device, raw inputs sent once."""

from __future__ import annotations

from edgeprism.specs.cost import PIXEL_BYTES, TEXT_TOKEN_BYTES, Cost, DeviceCost, whole_model_macs
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.replica.partition import sample_bounds


def cost(model: ModelSpec, plan: Plan, *, num_tokens: int, batch: int, element_bytes: int) -> Cost:
    """Counts for a batch of ``batch`` samples of ``num_tokens`` tokens each.

    Pictures of eight bits a channel travel as those (`codecs.levels`), texts as ids. ViT-B/16, batch 8 on two devices,
    by hand: each computes four samples, 4 * 35.13 = 140.50 GFLOP, and the coordinator sends four images of
    3 * 224 * 224 = 150,528 bytes. Values of more levels travel in the dtype that the model computes in instead.
    """
    counts = [stop - start for start, stop in sample_bounds(batch, plan.shares)]
    sample_bytes = model.input_values(num_tokens) * (PIXEL_BYTES if model.is_vision else TEXT_TOKEN_BYTES)
    input_bytes = sum(counts[1:]) * sample_bytes
    sample_macs = whole_model_macs(model, num_tokens)
    devices = tuple(
        DeviceCost(
            num_samples=count,
            num_tokens=num_tokens if count else 0,
            key_rows=num_tokens if count else 0,
            macs=count * sample_macs,
            bytes_sent=input_bytes if index == 0 else 0,
        )
        for index, count in enumerate(counts)
    )
    return Cost(devices=devices, input_bytes=input_bytes)
