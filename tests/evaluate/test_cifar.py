"""CIFAR in its official files: what is in them comes out, and what is wrong in them is named."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from edgeprism.errors import InputError
from edgeprism.evaluate.datasets.pickles import read_pickle
from edgeprism.evaluate.datasets.registry import load_dataset

IMAGES = np.random.default_rng(0).integers(256, size=(6, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([3, 8, 8, 0, 6, 9])


def planes(images: np.ndarray) -> np.ndarray:
    """Pictures as the official files hold them: all red, all green, all blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def binary(images: np.ndarray, *labels: np.ndarray) -> bytes:
    """Records of labels and pixels."""
    return np.concatenate([*(column[:, None].astype(np.uint8) for column in labels), planes(images)], axis=1).tobytes()


def as_python_2_wrote_it(images: np.ndarray, labels: list[int], key: str) -> bytes:
    """The opcodes of the official pickles: protocol 2, byte strings as Python 2 had them, numpy.core."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) * 2 + number(0)
    dtype += b"tb"
    pixels = planes(images)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    array += b"(" + number(1) + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86" + dtype + b"\x89"
    array += text(pixels.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    items = text(b"data") + array + text(key.encode()) + listed
    return b"\x80\x02}(" + items + b"u."


def pixels_of(dataset: object) -> np.ndarray:
    """All inputs as one array."""
    return np.stack(dataset.inputs)  # type: ignore[attr-defined]


def test_cifar10_binary(tmp_path: Path) -> None:
    """Five training batches, one after the other, and the test batch."""
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(
            binary(IMAGES[number - 1 : number], LABELS[number - 1 : number])
        )
    (tmp_path / "test_batch.bin").write_bytes(binary(IMAGES, LABELS))
    train, test = (load_dataset("cifar10", split=split, data=tmp_path) for split in ("train", "test"))
    assert (pixels_of(train) == IMAGES[:5]).all() and train.targets.tolist() == LABELS[:5].tolist()
    assert (pixels_of(test) == IMAGES).all() and test.targets.tolist() == LABELS.tolist()
    assert test.labels[3] == "cat"


def test_cifar100_binary(tmp_path: Path) -> None:
    """A coarse label comes before the fine one, which counts."""
    fine = np.array([99, 0, 42, 7, 7, 19])
    (tmp_path / "cifar-100-binary").mkdir()
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(binary(IMAGES, np.full(6, 11), fine))
    dataset = load_dataset("cifar100", data=tmp_path)
    assert (pixels_of(dataset) == IMAGES).all() and dataset.targets.tolist() == fine.tolist()
    assert (len(dataset.labels), dataset.labels[0], dataset.labels[99]) == (100, "apple", "worm")


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_python_version(tmp_path: Path, protocol: int) -> None:
    """The official pickles, and such as today's Python and numpy write."""
    official = as_python_2_wrote_it(IMAGES, LABELS.tolist(), "labels")
    assert (pickle.loads(official, encoding="bytes")[b"data"] == planes(IMAGES)).all(), "they are what numpy reads"
    today = pickle.dumps({"data": planes(IMAGES), "fine_labels": LABELS.tolist()}, protocol=protocol)
    (tmp_path / "test_batch").write_bytes(official)
    (tmp_path / "test").write_bytes(today)
    for name in ("cifar10", "cifar100"):
        dataset = load_dataset(name, data=tmp_path)
        assert (pixels_of(dataset) == IMAGES).all() and dataset.targets.tolist() == LABELS.tolist()


class Evil:
    """Runs a command when it is unpickled the usual way."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was-here",)


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no array needs is refused, with the file, before anything is called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(InputError, match=r"test_batch: .*system, which no data needs"):
        load_dataset("cifar10", data=tmp_path)
    assert not (tmp_path / "was-here").exists()
    (tmp_path / "cut").write_bytes(pickle.dumps({"data": planes(IMAGES)})[:500])
    with pytest.raises(InputError, match="cut: no pickle of plain data"):
        read_pickle(tmp_path / "cut")


def test_npz(tmp_path: Path) -> None:
    """By its folder, or by name; two that could be meant are asked about."""
    for name in ("test_500", "train_5k"):
        np.savez(tmp_path / f"{name}.npz", images=IMAGES, labels=LABELS.astype(np.uint8))
    assert load_dataset("cifar10", data=tmp_path).targets.tolist() == LABELS.tolist()
    assert len(load_dataset("cifar10", data=tmp_path / "train_5k.npz").first(4).inputs) == 4
    np.savez(tmp_path / "test_2.npz", images=IMAGES, labels=LABELS)
    with pytest.raises(InputError, match=r"2 files for test; name one with --data"):
        load_dataset("cifar10", data=tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test_batch.bin", binary(IMAGES, LABELS)[:-1], "18437 bytes are no whole number of records of 3073 bytes"),
        ("test_batch.bin", b"", "0 bytes"),
        ("test_batch.bin", binary(IMAGES, LABELS * 4), r"test_batch.bin, record 1: label 12 is not between 0 and 9"),
        ("test_batch", pickle.dumps([1]), "a batch is a dictionary"),
        ("test_batch", pickle.dumps({"data": planes(IMAGES)}), "'labels' must be a list of numbers"),
        (
            "test_batch",
            pickle.dumps({"data": planes(IMAGES)[:, 1:]}),
            r"'data' must be an array of uint8, \(number, 3072\)",
        ),
        ("test_batch", pickle.dumps({"data": planes(IMAGES), "labels": [1]}), "6 pictures, but 1 labels"),
        ("test.npz", b"no archive", "test.npz: no .npz with arrays"),
        ("data_batch_1.bin", b"", "has no cifar10 .test. in it; CIFAR is a folder"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    """With what is wrong in them."""
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset("cifar10", data=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_part_of_an_archive_is_not_enough(tmp_path: Path) -> None:
    """Training on three of five batches by accident helps nobody."""
    (tmp_path / "data_batch_1.bin").write_bytes(binary(IMAGES, LABELS))
    with pytest.raises(InputError, match=re.escape("has data_batch_1.bin and not data_batch_2.bin")):
        load_dataset("cifar10", split="train", data=tmp_path)


def test_images_of_another_size(tmp_path: Path) -> None:
    """Arrays that are no CIFAR."""
    np.savez(tmp_path / "test.npz", images=IMAGES[:, 1:], labels=LABELS)
    with pytest.raises(InputError, match=r"must be uint8 \(number, 32, 32, 3\), not uint8 \(6, 31, 32, 3\)"):
        load_dataset("cifar10", data=tmp_path)
