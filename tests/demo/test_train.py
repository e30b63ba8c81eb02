"""What the demo's training does to pictures, tokens and the schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from demo.augment import DISTORTIONS, mix, vary
from demo.train import PatchDropout, Settings


def picture() -> Image.Image:
    """32 x 32 pixels of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_patch_dropout_keeps_cls_and_whole_patches() -> None:
    """In training CLS stays first and the share of patches is kept, each unchanged and at most once; else all stay."""
    torch.manual_seed(0)
    tokens = torch.arange(2 * 9).reshape(2, 9, 1).float()
    dropout = PatchDropout()
    dropout.kept_share = 0.5
    kept = dropout.train()(tokens)
    assert kept.shape == (2, 5, 1)
    torch.testing.assert_close(kept[:, 0], tokens[:, 0])
    for row, kept_row in zip(tokens, kept, strict=True):
        assert len(kept_row.unique()) == 5
        assert set(kept_row.flatten().tolist()) <= set(row.flatten().tolist())
    assert dropout.eval()(tokens) is tokens


@pytest.mark.parametrize("distort", DISTORTIONS)
@pytest.mark.parametrize("strength", [-1.0, 0.0, 1.0])
def test_a_distortion_keeps_size_and_mode(distort, strength: float) -> None:
    """Whatever its strength, a distortion gives an RGB picture of the same size."""
    image = distort(picture(), strength)
    assert (image.size, image.mode) == ((32, 32), "RGB")


def test_variants_depend_on_the_generator_alone() -> None:
    """The same random numbers give the same variant, others another."""
    first, again, other = (vary(picture(), 28, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (28, 28, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("seed", range(6))
def test_mixed_targets_match_mixed_pixels(seed: int) -> None:
    """Targets are mixed in the proportion of the pixels: with pictures of constant 0 and 1, the mean is the target."""
    pixels = torch.stack([torch.zeros(3, 28, 28), torch.ones(3, 28, 28)])
    targets = torch.eye(2)
    mixed, mixed_targets = mix(pixels, targets, np.random.default_rng(seed))
    torch.testing.assert_close(mixed_targets.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), mixed_targets[:, 1], atol=1e-5, rtol=0)


def test_each_epoch_has_its_stage() -> None:
    """Epochs run through the stages in order, each as often as it says, and then there are none."""
    settings = Settings()
    sides = [settings.stage_of(index).side_px for index in range(settings.num_epochs)]
    assert sides == [stage.side_px for stage in settings.stages for _ in range(stage.num_epochs)]
    with pytest.raises(IndexError):
        settings.stage_of(settings.num_epochs)
