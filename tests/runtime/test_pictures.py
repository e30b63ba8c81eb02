"""Pictures on their way to another device: a byte a value, and the same answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import edgeprism
from edgeprism.errors import FrameError
from edgeprism.runtime.job import as_received, as_sent, replica_job
from edgeprism.specs.plan import Plan
from tests.families import make


def pictures(batch: int, size_px: int) -> Tensor:
    """As an image processor gives them."""
    eight_bits = torch.randint(0, 256, (batch, 3, size_px, size_px), generator=torch.Generator().manual_seed(0))
    return (eight_bits / 255 - 0.5) / 0.5


def test_pictures_travel_as_levels_and_come_back() -> None:
    """Noise of more levels beside them travels as it is."""
    x, noise = pictures(2, 64), torch.randn(2, 3, 64, 64)
    for pixels, is_short in ((x, True), (noise, False)):
        job = replica_job({"pixel_values": pixels}, (1,), ((0, 2),), 1.0)
        sent, tensors = as_sent(job, {"pixel_values": pixels})
        assert sent.levels == (("pixel_values",) if is_short else ())
        assert (sum(tensor.nbytes for tensor in tensors) < pixels.nbytes / 3) == is_short
        assert torch.equal(as_received(sent, tensors)["pixel_values"], pixels)


def test_levels_that_do_not_fit_are_refused() -> None:
    """A table of too few levels, none at all, for another tensor, or numbers that are none."""
    x = pictures(1, 96)
    job, (numbers, table) = as_sent(replica_job({"pixel_values": x}, (1,), ((0, 1),), 1.0), {"pixel_values": x})
    for wrong, tensors in (
        (job, [numbers, table[:, :9]]),
        (job, [numbers, table[:2]]),
        (job, [numbers]),
        (job, [x, table]),
        (job, [numbers, numbers]),
        (job, [numbers[0], table]),
        (replace(job, levels=("ids",)), [numbers, table]),
        (replace(job, levels=()), [numbers, table]),
    ):
        with pytest.raises(FrameError, match=r"names \d tensors|came with a table"):
            as_received(wrong, tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 4])
def test_samples_of_another_device_are_what_they_would_be_here(batch: int, dtype: str) -> None:
    """Bit by bit the same pictures: so the same answers, for less than a third of the bytes."""
    model = make("ViTForImageClassification", image_size=96).to(getattr(torch, dtype))
    x = pictures(batch, 96)
    shares = (0.0, 1.0)
    with (
        edgeprism.Cluster.in_process(2) as cluster,
        edgeprism.load(model, cluster=cluster, plan=Plan(strategy="replica", shares=shares)) as engine,
    ):
        there = engine(pixel_values=x)
        assert engine.last_trace is not None and not engine.last_trace.failures
        assert engine.last_trace.plan.shares == shares
        assert engine.last_trace.bytes_sent < 1.4 * x.numel() + 8000
        engine.use("local")
        assert torch.equal(engine(pixel_values=x).logits, there.logits)
