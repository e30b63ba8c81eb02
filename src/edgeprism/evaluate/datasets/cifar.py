"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): the official binary and Python versions, or an .npz.

The Python version is made of pickles, which can run code when they are read the usual way; `pickles` reads them safely.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset, wrong
from edgeprism.evaluate.datasets.pickles import read_pickle

FORMATS = "CIFAR is a folder with the official binary (.bin) or Python batches, or an .npz with images and labels"

SIDE_PX, CHANNELS = 32, 3
PIXEL_BYTES = SIDE_PX * SIDE_PX * CHANNELS

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Pictures (number, 32, 32, 3) and label numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """Where one of the two data sets keeps what."""

    labels: tuple[str, ...]
    label_bytes: int  # before the pixels of a record; the last one counts
    files: dict[str, tuple[str, ...]]  # by split, without the suffix of the binary version
    label_key: str  # in the pickles


_VERSIONS = {
    "cifar10": _Version(
        labels=CIFAR10,
        label_bytes=1,
        files={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
        label_key="labels",
    ),
    "cifar100": _Version(
        labels=CIFAR100,
        label_bytes=2,  # coarse, fine
        files={"train": ("train",), "test": ("test",)},
        label_key="fine_labels",
    ),
}


def load(path: Path, name: str, split: str) -> Dataset | None:
    """The data set in a folder (or an .npz file); None where there is nothing of it."""
    version = _VERSIONS[name]
    parts = _parts(path, version, split)
    if not parts:
        return None
    images, labels = zip(*(_checked(file, read(file), version) for file, read in parts), strict=True)
    return Dataset(
        name=name,
        split=split,
        kind="pictures",
        inputs=list(np.concatenate(images)),
        targets=np.concatenate(labels),
        labels=version.labels,
        numbers_are_known=True,
    )


def _parts(path: Path, version: _Version, split: str) -> list[tuple[Path, Callable[[Path], Arrays]]]:
    """The files of a split, each with what reads it."""
    if path.is_file():
        return [(path, _read_npz)] if path.suffix == ".npz" else []

    def read_binary(file: Path) -> Arrays:
        return _read_binary(file, version.label_bytes)

    def read_python(file: Path) -> Arrays:
        return _read_python(file, version.label_key)

    for suffix, read in ((".bin", read_binary), ("", read_python)):
        files = [path / (stem + suffix) for stem in version.files[split]]
        there = [file for file in files if file.is_file()]
        if there and len(there) < len(files):
            missing = next(file for file in files if file not in there)
            raise InputError(f"{path} has {there[0].name} and not {missing.name}; unpack the whole archive")
        if there:
            return [(file, read) for file in there]
    archives = sorted(file for file in path.glob("*.npz") if re.match(rf"{split}(?![a-z])", file.stem))
    if len(archives) > 1:
        raise InputError(f"{path} has {len(archives)} files for {split}; name one with --data: {archives[0]}")
    return [(archives[0], _read_npz)] if archives else []


def _read_binary(path: Path, label_bytes: int) -> Arrays:
    """Records of the label, then 1,024 red, 1,024 green and 1,024 blue bytes, row by row."""
    data = np.fromfile(path, dtype=np.uint8)
    record_bytes = label_bytes + PIXEL_BYTES
    if not len(data) or len(data) % record_bytes:
        raise wrong(path, f"{len(data)} bytes are no whole number of records of {record_bytes} bytes")
    records = data.reshape(-1, record_bytes)
    return _from_planes(records[:, label_bytes:]), records[:, label_bytes - 1].astype(np.int64)


def _read_python(path: Path, label_key: str) -> Arrays:
    batch = read_pickle(path)
    if not isinstance(batch, dict):
        raise wrong(path, "a batch is a dictionary with data and labels; this is none")
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = named.get("data"), named.get(label_key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXEL_BYTES:
        raise wrong(path, f"'data' must be an array of uint8, (number, {PIXEL_BYTES})")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise wrong(path, f"'{label_key}' must be a list of numbers")
    return _from_planes(data), np.array(labels, dtype=np.int64)


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        raise wrong(path, f"no .npz with arrays 'images' and 'labels' ({_first_line(exc)})") from exc
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIDE_PX, SIDE_PX, CHANNELS):
        raise wrong(path, f"'images' must be uint8 (number, 32, 32, 3), not {images.dtype} {images.shape}")
    if labels.dtype.kind not in "ui" or labels.ndim != 1:
        raise wrong(path, f"'labels' must be whole numbers (number), not {labels.dtype} {labels.shape}")
    return images, labels.astype(np.int64)


def _from_planes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(number, 3072) in planes of colour as pictures (number, rows, columns, colours)."""
    return pixels.reshape(-1, CHANNELS, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1)


def _checked(path: Path, arrays: Arrays, version: _Version) -> Arrays:
    images, labels = arrays
    if len(images) != len(labels):
        raise wrong(path, f"{len(images)} pictures, but {len(labels)} labels")
    outside = np.flatnonzero((labels < 0) | (labels >= len(version.labels)))
    if len(outside):
        count, label = len(version.labels), int(labels[outside[0]])
        raise wrong(path, f"label {label} is not between 0 and {count - 1}", record=int(outside[0]) + 1)
    return images, labels


def _first_line(exc: Any) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
