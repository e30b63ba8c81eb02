"""Random variants of a training picture: one light distortion, a crop, a flip, and mixtures of pictures.

One distortion drawn per picture follows TrivialAugment (Mueller and Hutter, 2021), milder, since the pictures are only
32 pixels wide; the mixtures are mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from demo.model import resize

SMALLEST_CROP = 0.5
"""Smallest share of the picture's area that a crop keeps."""
LARGEST_ASPECT = 4 / 3
MIXUP_ALPHA = 0.4
GREY = (124, 116, 104)
"""Fills what a rotation or a shear uncovers: the mean colour, which is zero after normalising."""


def vary(image: Image.Image, side_px: int, rng: np.random.Generator) -> np.ndarray:
    """A random variant of `image`, uint8 (side, side, 3)."""
    distort = DISTORTIONS[rng.integers(len(DISTORTIONS))]
    image = distort(image, rng.uniform(-1, 1))
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return resize(image, side_px, box=_crop_box(image, rng))


def mix(pixels: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Each picture (batch, channel, row, column) mixed with another of the batch; targets (batch, class) likewise."""
    partner = torch.from_numpy(rng.permutation(len(pixels)))
    if rng.random() < 0.5:
        share = float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA))
        mixed = share * pixels + (1 - share) * pixels[partner]
    else:
        mixed, share = _paste(pixels, pixels[partner], rng)
    return mixed, share * targets + (1 - share) * targets[partner]


def _paste(pixels: Tensor, others: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
    """A random square of `others` over `pixels`, and the share of `pixels` that is left."""
    side_px = pixels.shape[-1]
    square_px = int(side_px * math.sqrt(1 - rng.random()))
    top, left = rng.integers(0, side_px - square_px + 1, size=2)
    area = (..., slice(top, top + square_px), slice(left, left + square_px))
    mixed = pixels.clone()
    mixed[area] = others[area]
    return mixed, 1 - (square_px / side_px) ** 2


def _crop_box(image: Image.Image, rng: np.random.Generator) -> tuple[float, float, float, float]:
    area = rng.uniform(SMALLEST_CROP, 1) * image.width * image.height
    log_aspect = math.log(LARGEST_ASPECT)
    aspect = math.exp(rng.uniform(-log_aspect, log_aspect))
    width = min(math.sqrt(area * aspect), image.width)
    height = min(math.sqrt(area / aspect), image.height)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return left, top, left + width, top + height


# Each distortion takes a strength from -1 to 1, where 0 changes little or nothing.


def _same(image: Image.Image, strength: float) -> Image.Image:
    return image


def _rotate(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(25 * strength, Image.Resampling.BICUBIC, fillcolor=GREY)


def _shear_x(image: Image.Image, strength: float) -> Image.Image:
    slope = 0.3 * strength
    return _affine(image, (1, slope, -slope * image.height / 2, 0, 1, 0))


def _shear_y(image: Image.Image, strength: float) -> Image.Image:
    slope = 0.3 * strength
    return _affine(image, (1, 0, 0, slope, 1, -slope * image.width / 2))


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)


def _brightness(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + 0.6 * strength)


def _contrast(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + 0.6 * strength)


def _colour(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + 0.9 * strength)


def _sharpness(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength)


def _posterise(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(strength)))


def _autocontrast(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalise(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.equalize(image)


DISTORTIONS = (
    _same,
    _rotate,
    _shear_x,
    _shear_y,
    _brightness,
    _contrast,
    _colour,
    _sharpness,
    _posterise,
    _autocontrast,
    _equalise,
)
