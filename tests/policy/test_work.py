"""The work that is counted is the work that is done: against torch's own count of a run."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgeprism.models import linear
from edgeprism.models.registry import adapt
from edgeprism.policy.work import FRAME_BYTES, work_of
from edgeprism.specs.model import SUPPORTED_ARCHITECTURES
from edgeprism.specs.plan import Plan
from edgeprism.strategies.replica.forward import run_samples
from edgeprism.strategies.sequence.partition import token_bounds
from tests.families import example, make


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_one_device(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family, the rows that its head reads included: within a fiftieth, which heads and poolers may take."""
    monkeypatch.setattr(linear, "packing_pays", lambda dtype: False)  # torch counts its own kernels only
    model = adapt(make(architecture))
    inputs = {name: tensor for name, tensor in example(architecture).items() if name != "attention_mask"}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run_samples(model, inputs)
    batch, num_tokens = next(iter(inputs.values())).shape[0], model.num_tokens(inputs)
    (work,) = work_of(model.spec, Plan.local(), batch=batch, num_tokens=num_tokens, element_bytes=4)
    counted = counter.get_total_flops() / 2
    assert work.linear_macs == pytest.approx(counted, rel=0.02)  # attention's own kernel is not among what torch counts


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_parts_for_the_head(architecture: str) -> None:
    """Bytes that devices send the coordinator at the end are those of the parts that they make: of a mean, one sum."""
    model = adapt(make(architecture))
    inputs = {name: tensor for name, tensor in example(architecture).items() if name != "attention_mask"}
    batch, num_tokens = next(iter(inputs.values())).shape[0], model.num_tokens(inputs)
    for shares in ((0.5, 0.5), (0.0, 0.4, 0.6)):
        plan = Plan(strategy="sequence", shares=shares)
        works = work_of(model.spec, plan, batch=batch, num_tokens=num_tokens, element_bytes=4)
        reads = model.tokens(inputs).reads
        for (start, stop), work in list(zip(token_bounds(num_tokens, shares), works, strict=True))[1:]:
            layouts = reads.layouts(start, stop, batch, model.spec.hidden_size, torch.float32)
            num_bytes = sum(4 * prod(shape) for _, shape in layouts)
            assert work.result_bytes == num_bytes + FRAME_BYTES
