"""Random variants of pictures: a crop, brought back to size, and a flip. The teacher sees them too."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SMALLEST_CROP = 0.5
"""Smallest share of the area that a crop keeps."""


def vary(
    pixels: Float[Tensor, "batch channels height width"], generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """A variant of each picture, drawn by ``generator``."""
    return torch.cat([_variant(picture[None], generator) for picture in pixels])


def _variant(picture: Tensor, generator: torch.Generator) -> Tensor:
    area, across, down, flips = torch.rand(4, generator=generator).tolist()
    share = math.sqrt(SMALLEST_CROP + (1 - SMALLEST_CROP) * area)
    height, width = (max(1, round(side * share)) for side in picture.shape[2:])
    top = int(down * (picture.shape[2] - height + 1))
    left = int(across * (picture.shape[3] - width + 1))
    crop = picture[:, :, top : top + height, left : left + width]
    crop = F.interpolate(crop, size=picture.shape[2:], mode="bilinear", antialias=True)
    return crop.flip(3) if flips < 0.5 else crop
