"""Pictures as levels: what comes back is what was sent, bit by bit, and what has too many levels is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgeprism.codecs.levels import from_levels, to_levels

IMAGENET = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def eight_bits(*shape: int, seed: int = 0) -> Tensor:
    """Values from 0 to 255."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("how", ["halves", "imagenet", "scaled first"])
def test_normalised_pictures_come_back_bit_by_bit(how: str, dtype: torch.dtype) -> None:
    """However they were scaled, a byte a value is enough."""
    pixels = eight_bits(2, 3, 48, 40)
    mean, deviation = (torch.tensor(0.5), torch.tensor(0.5)) if how == "halves" else IMAGENET
    x = (pixels * (1 / 255) - mean) / deviation if how != "scaled first" else (pixels - mean * 255) / (deviation * 255)
    x = x.to(dtype)
    sent = to_levels(x)
    assert sent is not None
    numbers, table = sent
    assert numbers.dtype == torch.uint8 and numbers.shape == x.shape and numbers.is_contiguous()
    assert table.shape == (3, 256) and table.dtype == dtype
    assert torch.equal(from_levels(numbers, table), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_of_few_levels_comes_back(dtype: torch.dtype) -> None:
    """One colour; black and white; a zero with a sign."""
    x = torch.full((1, 3, 64, 64), 0.25, dtype=dtype)
    x[:, 1, ::2], x[:, 2] = 0.75, -0.0
    sent = to_levels(x)
    assert sent is not None
    back = from_levels(*sent)
    assert torch.equal(back, x) and bool(back[:, 2].signbit().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_of_more_levels_are_left_as_they_are(dtype: torch.dtype) -> None:
    """Noise; 257 levels; one value beside the grid where no sample looks; a NaN, an infinity; a zero of each sign."""
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    many = (torch.arange(64 * 64 * 3) % 257).view(1, 3, 64, 64).to(dtype)
    assert to_levels(noise) is None
    if dtype == torch.float32:
        assert to_levels(many) is None
    grid = (eight_bits(1, 3, 64, 64) / 255).to(dtype)
    for odd in (0.12345, float("nan"), float("inf"), -0.0):
        x = grid.clone()
        x[0, 1, 0, 1] = odd
        sent = to_levels(x)
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert sent is None or torch.equal(from_levels(*sent).view(bits), x.view(bits))


def test_what_is_too_small_or_no_picture_is_left_as_it_is() -> None:
    """Its table would take as long."""
    assert to_levels(eight_bits(1, 3, 16, 16) / 255) is None
    assert to_levels(eight_bits(1, 32, 32, 32) / 255) is None
