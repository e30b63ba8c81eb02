"""`edgeprism finetune`: what it writes, that it goes on where it stopped, and one line for what cannot be used."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer

import edgeprism
from edgeprism.cli import finetune_options
from edgeprism.cli.main import main
from edgeprism.evaluate.finetune import Trainer
from edgeprism.evaluate.trainable import with_codec
from edgeprism.models.load import load_pretrained
from edgeprism.tasks.inputs import prepare_pictures_with
from tests.evaluate.tiny import write_data, write_model_directory
from tests.families import example, expected

TINY = ("--batch", "4", "--steps", "6", "--checkpoint-every", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data."""
    root = tmp_path_factory.mktemp("finetune")
    write_model_directory("ViTForImageClassification", root / "vit", hidden_dropout_prob=0.1)
    write_model_directory("BertForSequenceClassification", root / "bert")
    write_model_directory("ViTModel", root / "bare")
    write_model_directory("ViTForImageClassification", root / "few", num_labels=3)
    write_data(root / "data")
    return root


def finetune(root: Path, output: Path, *options: str, model: str = "vit", dataset: str = "cifar10") -> int:
    """The command's exit status."""
    words = ["finetune", str(root / model), "--dataset", dataset, "--data", str(root / "data"), "--output", str(output)]
    codec = () if "--codec" in options else ("--codec", "means:4")
    rank = () if {"--full", "--rank"} & set(options) else ("--rank", "4")
    return main([*words, *codec, *TINY, *rank, "--device", "cpu", *options])


def test_pictures(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An ordinary directory of other weights, with its processor and an account; one JSON document."""
    assert finetune(root, tmp_path / "out", "--json", "--hold-out", "4") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out" / "finetune.json").read_text())
    held_out = document["held_out"]
    assert held_out["num_inputs"] == 4 and document["num_examples"] == 20
    assert {"one_device", "codec", "finetuned_one_device", "finetuned_codec"} < set(held_out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "nothing is left beside it"
    before, after = (load_file(folder / "model.safetensors") for folder in (root / "vit", tmp_path / "out"))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert sum(before[name].ndim == 2 for name in changed) > 10 and not any(
        "layernorm" in name or "classifier" in name for name in changed
    )
    assert (tmp_path / "out" / "config.json").read_text() == (root / "vit" / "config.json").read_text()
    AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    with edgeprism.load(str(tmp_path / "out")) as engine:
        assert engine(**example("ViTModel"))["logits"].isfinite().all()


@pytest.mark.parametrize("loss", ["distil", "task"])
def test_texts_every_weight(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str) -> None:
    """Texts of their own lengths, too short ones left out; the embedding is trained as well."""
    options = ("--full", "--loss", loss, "--hold-out", "0", "--dtype", "bfloat16", "--lr", "1e-3")
    assert finetune(root, tmp_path / "out", *options, model="bert", dataset="sst2") == 0
    assert "texts are too short for codec means:4.0 and are left out".replace("4.0", "4") in capsys.readouterr().err
    before, after = (load_file(folder / "model.safetensors") for folder in (root / "bert", tmp_path / "out"))
    name = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(before[name], after[name]) and all(tensor.isfinite().all() for tensor in after.values())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("a cat") == ["a", "cat"]


class _BrokenOffError(Exception):
    """In the middle of a run."""


@pytest.mark.parametrize("options", [(), ("--full", "--loss", "task", "--codec", "kv:int4")], ids=["low-rank", "full"])
def test_goes_on_to_the_same_bits(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Broken off after step 5, with a checkpoint of step 4, it ends with the bytes of a run that was not, dropout
    and random variants included; a run that is in the way, or of other settings, is not overwritten."""
    assert finetune(root, tmp_path / "whole", *options) == 0
    step = Trainer._step

    def breaks(self: Trainer, number: int, indices: Any) -> float:
        if number == 5:
            raise _BrokenOffError
        return step(self, number, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", breaks)
        with pytest.raises(_BrokenOffError):
            finetune(root, tmp_path / "parts", *options)
    assert not (tmp_path / "parts").exists() and (tmp_path / "parts.checkpoint").exists()
    assert finetune(root, tmp_path / "parts", *options) == 2, "a checkpoint is in the way"
    assert finetune(root, tmp_path / "parts", *options, "--resume", "--seed", "9") == 2, "of another seed"
    numbers: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda self, number, i: numbers.append(number) or step(self, number, i))
        assert finetune(root, tmp_path / "parts", *options, "--resume") == 0
    assert numbers == [4, 5]
    files = [tmp_path / run / "model.safetensors" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "parts.checkpoint").exists()


def test_other_tables_are_another_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that was made with one calibration does not go on with another."""
    files = []
    for limit in ("4", "12"):
        data = ("--dataset", "cifar10", "--data", str(root / "data"), "--limit", limit, "--json")
        made = main(["calibrate", str(root / "vit"), "--codec", "delta+int4", *data, "--out", str(tmp_path / limit)])
        assert made == 0
        files.append(json.loads(capsys.readouterr().out)["calibrations"][0]["file"])
    step = Trainer._step

    def breaks(self: Trainer, number: int, indices: Any) -> float:
        if number == 3:
            raise _BrokenOffError
        return step(self, number, indices)

    options = ("--codec", "delta+int4", "--calibration")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", breaks)
        with pytest.raises(_BrokenOffError):
            finetune(root, tmp_path / "out", *options, files[0])
    assert finetune(root, tmp_path / "out", *options, files[1], "--resume") == 2
    assert "was made with other settings: calibration" in capsys.readouterr().err
    assert finetune(root, tmp_path / "out", *options, files[0], "--resume") == 0


def test_the_codec_costs_less_afterwards(root: Path, tmp_path: Path) -> None:
    """Distilled, a model answers through the codec more nearly as it did without."""
    assert finetune(root, tmp_path / "out", "--steps", "40", "--lr", "1e-3", "--no-vary", "--batch", "8") == 0
    before, after = load_pretrained(str(root / "vit")), load_pretrained(str(tmp_path / "out"))
    prepare = prepare_pictures_with(root / "vit")
    with np.load(root / "data" / "cifar10" / "train_5k.npz") as arrays:
        inputs = prepare([Image.fromarray(image) for image in arrays["images"][:8]])
    wanted = expected(before, inputs)["logits"].log_softmax(-1)
    gaps = []
    for model in (before, after):
        got = expected(with_codec(model, "means:4", 2), inputs)["logits"].log_softmax(-1)
        gaps.append(float(torch.nn.functional.kl_div(got, wanted, reduction="batchmean", log_target=True)))
    assert gaps[1] < 0.3 * gaps[0]


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "codec": (("--codec", "zip"), "unknown codec"),
    "one device": (("--devices", "1"), "at least 2"),
    "rank": (("--rank", "0"), "--rank must be at least 1"),
    "learning rate": (("--lr", "nan"), "--lr must be more than 0"),
    "held out": (("--hold-out", "99"), "leaves none of the 24"),
    "dtype": (("--dtype", "int8"), "float32 or bfloat16"),
    "device": (("--device", "tpu"), "cpu or cuda"),
    "data set": (("--dataset", "mnist"), "unknown data set"),
    "checkpoint": (("--resume",), "no checkpoint"),
    "means": (("--codec", "means:12"), "use a rate of at most"),
    "exact": (("--codec", "exact"), "nothing to learn"),
    "too high a rank": (("--rank", "100000"), "more than this model's matrices have"),
    "rank of every weight": (("--full", "--rank", "4"), "give one of the two"),
    "steps and epochs": (("--epochs", "2"), "give one of the two"),
    "too high a rate": (("--lr", "1e30"), "give at most 1"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    """Exit status 2, one line that says what would be taken, and no file."""
    assert finetune(root, tmp_path / "out", *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("edgeprism: ")
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writes no model, and says what to change."""
    monkeypatch.setattr(finetune_options, "MAX_LR", math.inf)
    assert finetune(root, tmp_path / "out", "--lr", "1e30", "--checkpoint-every", "100") == 2
    assert "training has diverged" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_no_hindrance(root: Path, tmp_path: Path) -> None:
    """Half a directory of its own is removed."""
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").write_bytes(b"half")
    assert finetune(root, tmp_path / "out", "--hold-out", "0") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_pictures_without_labels(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own answers are learned, and those before are right where it is scored; there is nothing else to learn."""
    (tmp_path / "own").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own" / f"{number}.png")
    given = ("--data", str(tmp_path / "own"), "--hold-out", "4", "--json")
    assert finetune(root, tmp_path / "out", *given, dataset="pictures") == 0
    held_out = json.loads(capsys.readouterr().out)["held_out"]
    assert held_out["measure"] == "accuracy, its own answers before being right"
    assert held_out["one_device"] == 1.0
    assert finetune(root, tmp_path / "task", *given, "--loss", "task", dataset="pictures") == 2
    assert "has no labels, which --loss task learns" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many kB; skipped where only root may."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size_kb: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a small file system needs root")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_without_room(root: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Is told before anything is trained."""
    disk = small_disk(16)
    assert finetune(root, disk / "out") == 2
    assert "make room" in capsys.readouterr().err.splitlines()[-1]
    assert list(disk.iterdir()) == []


def test_a_disk_that_is_full_in_the_end(
    root: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Costs nothing that was trained: its checkpoint is there, and --resume writes the model once there is room."""
    weights_kb = (root / "vit" / "model.safetensors").stat().st_size // 1024
    disk = small_disk(2 * weights_kb)
    filler = disk / "filler"
    assert finetune(root, disk / "out", "--checkpoint-every", "100", "--hold-out", "0") == 0  # there is room
    shutil.rmtree(disk / "out")
    step = Trainer.save

    def fills(self: Trainer, path: Path) -> None:
        step(self, path)
        filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 32 * 1024)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", fills)
        assert finetune(root, disk / "out", "--checkpoint-every", "100", "--hold-out", "0") == 2
    assert "--resume" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in disk.iterdir()) == ["filler", "out.checkpoint"]
    filler.unlink()
    assert finetune(root, disk / "out", "--checkpoint-every", "100", "--hold-out", "0", "--resume") == 0
    assert sorted(path.name for path in disk.iterdir()) == ["out"]


def test_models_and_places_that_cannot_be_used(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model without labels, one for other inputs, a directory that exists, a place that does not."""
    assert finetune(root, tmp_path / "out", model="bare") == 2
    assert finetune(root, tmp_path / "out", model="bert") == 2
    assert finetune(root, tmp_path / "out", model="few") == 2
    assert finetune(root, tmp_path) == 2
    assert finetune(root, tmp_path / "no" / "out") == 2
    assert finetune(root, Path("/proc/out")) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "loading" not in line]
    for line, words in zip(
        errors,
        (
            "ViTModel is none",
            "classifies pictures",
            "do not match the model's head",
            "exists",
            "no directory",
            "cannot be written",
        ),
        strict=True,
    ):
        assert words in line
