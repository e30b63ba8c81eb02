"""What a request costs on one device."""

from __future__ import annotations

from edgeprism.specs.cost import Cost, DeviceCost, whole_model_macs
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan


def cost(model: ModelSpec, plan: Plan, *, num_tokens: int, batch: int, element_bytes: int) -> Cost:
    """Everything on the coordinator, nothing on the wire; ViT-B/16 is worked by hand in `specs.cost.block_macs`."""
    assert plan.num_devices == 1
    del element_bytes  # of what travels
    device = DeviceCost(
        num_samples=batch,
        num_tokens=num_tokens,
        key_rows=num_tokens,
        macs=batch * whole_model_macs(model, num_tokens),
        bytes_sent=0,
    )
    return Cost(devices=(device,))
