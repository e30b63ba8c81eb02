"""Pictures on their way to another device: a byte a value, and the same answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import edgeprism
from edgeprism.errors import FrameError, InputError
from edgeprism.models.registry import adapt
from edgeprism.runtime.job import as_received, as_sent, replica_job
from edgeprism.specs.plan import Plan
from edgeprism.strategies.sequence.cost import cost
from edgeprism.strategies.sequence.partition import token_bounds
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


VISION = (
    "ViTForImageClassification",
    "ViTModel",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2ForImageClassification",
)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.3, 0.5), (0.01, 0.99), (0.0, 0.5, 0.5)])
@pytest.mark.parametrize("architecture", VISION)
def test_strips_travel_instead_of_rows(architecture: str, shares: tuple[float, ...]) -> None:
    """Right answers for the bytes that were counted; what has more levels takes more, and is right as well."""
    model = make(architecture, image_size=96)
    plan = Plan(strategy="sequence", shares=shares)
    with (
        edgeprism.Cluster.in_process(len(shares)) as cluster,
        edgeprism.load(model, cluster=cluster, plan=plan) as engine,
    ):
        num_bytes = []
        for x in (pictures(8, 96), torch.randn(8, 3, 96, 96)):
            with torch.no_grad():
                wanted = model(pixel_values=x)[0]
            assert (engine(pixel_values=x)[0] - wanted).abs().max() <= 1e-4
            assert engine.last_trace is not None and not engine.last_trace.failures
            num_bytes.append(engine.last_trace.devices[0].bytes_sent)
        num_tokens = engine.last_trace.num_tokens
        counted = cost(engine.spec, plan, num_tokens=num_tokens, batch=8, element_bytes=4).input_bytes
    rows = sum(8 * (stop - start) * 64 * 4 for start, stop in token_bounds(num_tokens, shares)[1:])
    assert num_bytes[1] - num_bytes[0] == pytest.approx(rows - counted, abs=200 * len(shares))
    assert rows > counted + 1000 * len(shares)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", VISION)
@pytest.mark.parametrize("size_px", [(96, 96), (64, 128), (72, 70)])
def test_a_strip_embeds_to_the_rows_of_the_whole(architecture: str, size_px: tuple[int, int], dtype: str) -> None:
    """Wherever a run of tokens begins, also of pictures that have not the model's own size."""
    reference = make(architecture, image_size=96).to(getattr(torch, dtype))
    model = adapt(reference)
    x = pictures(2, 128)[:, :, : size_px[0], : size_px[1]]
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in model.input_names else {}
    with torch.no_grad():
        tokens = model.tokens({"pixel_values": x, **options})
        embeddings = getattr(reference, reference.base_model_prefix, reference).embeddings
        whole = embeddings(x.to(reference.dtype), **options)
        assert tokens.num_tokens == whole.shape[1]
        for start in range(tokens.num_tokens):
            for stop in {start + 1, min(start + 15, tokens.num_tokens), tokens.num_tokens}:
                rows = model.embed(tokens.features_of(start, stop))
                assert torch.equal(rows, whole[:, start:stop])


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ((-8, 96, 0, 9, 0), "does not fit"),
        ((90, 96, 0, 9, 0), "does not fit"),
        ((0, 10**9, 0, 9, 0), "does not fit"),
        ((0, 96, 9, 9, 0), "has no tokens"),
        ((0, 96, 0, 1000, 0), "has no tokens"),
        ((0, 10**5, 0, 9, 0), "has no tokens"),
        ((0, 96), "no place"),
    ],
)
def test_a_strip_that_is_none_is_refused(place: tuple[int, ...], what: str) -> None:
    """Before memory is taken for the picture that it says it is of."""
    model = adapt(make("ViTForImageClassification", image_size=96))
    strip = model.tokens({"pixel_values": pictures(1, 96)}).features_of(0, 9)
    with pytest.raises(InputError, match=what):
        model.embed({**strip, "place": torch.tensor(place)})
