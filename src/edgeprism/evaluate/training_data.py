"""Where `finetune` gets its inputs and labels: the training part of a data set.

`cifar10` is `cifar10/train_*.npz` (arrays `images` and `labels`) and `sst2` is `sst2/train.tsv`, in the folder that
--data or EDGEPRISM_DATA names.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeprism.errors import InputError

DEFAULT_FOLDER = Path("../shared/data")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """``inputs`` are pictures (rows, columns, 3) of uint8, or tuples of one or two texts; ``targets`` label numbers."""

    name: str
    kind: Literal["pictures", "texts"]
    inputs: Sequence[Any]
    targets: npt.NDArray[Any]


def load_training(name: str, data: Path | None = None) -> TrainingData:
    """The training part of a data set; InputError where it is not found or not readable."""
    readers = {"cifar10": _cifar10, "sst2": _sst2}
    if name not in readers:
        raise InputError(f"unknown data set {name!r}; use one of {', '.join(readers)}")
    root = data or Path(os.environ.get("EDGEPRISM_DATA", DEFAULT_FOLDER))
    return readers[name](root / name if (root / name).is_dir() else root)


def _cifar10(folder: Path) -> TrainingData:
    files = sorted(folder.glob("train*.npz"))
    if not files:
        raise InputError(f"{folder} has no train*.npz; name the folder of the data with --data or EDGEPRISM_DATA")
    try:
        with np.load(files[0], allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError) as exc:
        raise InputError(f"{files[0]}: no .npz with arrays 'images' and 'labels' ({exc})") from exc
    return TrainingData(name="cifar10", kind="pictures", inputs=list(images), targets=labels.astype(np.int64))


def _sst2(folder: Path) -> TrainingData:
    file = folder / "train.tsv"
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        texts, labels = [(row["sentence"],) for row in rows], [int(row["label"]) for row in rows]
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no train.tsv; name the folder of the data with --data or EDGEPRISM_DATA"
        ) from None
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"{file}: two columns, sentence and label, with tabs between them are needed ({exc})") from exc
    return TrainingData(name="sst2", kind="texts", inputs=texts, targets=np.array(labels, dtype=np.int64))
