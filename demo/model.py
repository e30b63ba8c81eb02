"""What the demo model is: its configuration, its labels, and how a picture becomes its input.

Training, scoring and the directory that is written all take these from here, so that they cannot disagree.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Dinov2Config

from demo.backbone import GRID_SIDE, HIDDEN_SIZE, NUM_HEADS, NUM_LAYERS, PATCH_SIZE_PX

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""CIFAR-10's classes, in the order of its label numbers."""

INPUT_SIDE_PX = 168
"""12 x 12 patches and CLS make 145 tokens: enough to share out over devices, and cheap to train on."""

CHANNEL_MEAN = (0.485, 0.456, 0.406)
CHANNEL_STD = (0.229, 0.224, 0.225)


def model_config() -> Dinov2Config:
    """`image_size` is the side of the pretrained position grid; the model interpolates it to the input's."""
    return Dinov2Config(
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        image_size=GRID_SIDE * PATCH_SIZE_PX,
        patch_size=PATCH_SIZE_PX,
        use_mask_token=False,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )


def processor_config() -> dict[str, object]:
    """The preprocessor_config.json of transformers that does what `resize` and `normalise` do."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": INPUT_SIDE_PX, "width": INPUT_SIDE_PX},
        "resample": int(Image.Resampling.BICUBIC),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CHANNEL_MEAN),
        "image_std": list(CHANNEL_STD),
    }


def resize(
    image: Image.Image, side_px: int = INPUT_SIDE_PX, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """The picture, or the part of it in `box`, as uint8 (side, side, 3)."""
    return np.asarray(image.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC, box=box))


def normalise(images: np.ndarray) -> Tensor:
    """uint8 (batch, rows, columns, 3) to float32 (batch, 3, rows, columns) in units of the channels' spread."""
    scaled = torch.tensor(images, dtype=torch.float32) / 255
    standard = (scaled - torch.tensor(CHANNEL_MEAN)) / torch.tensor(CHANNEL_STD)
    return standard.permute(0, 3, 1, 2).contiguous()  # (batch, channel, row, column)
