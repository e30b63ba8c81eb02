"""The CIFAR-10 pictures that the demo model is trained and scored on (Krizhevsky, 2009).

They are no part of this repository. `EDGEPRISM_DATA` names the folder that holds `cifar10/train_5k.npz` and
`cifar10/test_500.npz`, each with `images` (uint8, number x 32 x 32 x 3) and `labels` (uint8).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Beside the repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Pictures with their label numbers, in the same order."""

    images: list[Image.Image]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Pictures:
        return Pictures(images=self.images[part], labels=self.labels[part])


def train_pictures() -> Pictures:
    """The 5,085 pictures for training and for choosing."""
    return _load("train_5k.npz")


def test_pictures() -> Pictures:
    """The 500 pictures that the final model is scored on, once."""
    return _load("test_500.npz")


def _load(name: str) -> Pictures:
    path = Path(os.environ.get("EDGEPRISM_DATA", DEFAULT_FOLDER)) / "cifar10" / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; set EDGEPRISM_DATA to the folder that holds cifar10/{name}")
    with np.load(path) as arrays:
        images = [Image.fromarray(pixels) for pixels in arrays["images"]]
        return Pictures(images=images, labels=arrays["labels"].astype(np.int64))
