"""Data sets by name: what reads them, their splits, and where they are looked for.

--data names a file or folder. Without it the folder EDGEPRISM_DATA (`../shared/data` where that exists) is searched for
the folders that the official archives unpack to; then the hub, if the package `datasets` is installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset, digest_of

DEFAULT_FOLDER = Path("../shared/data")

Load = Callable[[Path, str, str], Dataset | None]
"""(file or folder, name, split) -> the data set; None where nothing of it is there, InputError for a wrong format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name. The first split is the default; ``folders`` are looked for below the folder of all data."""

    module: str
    splits: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @property
    def load(self) -> Load:
        """What reads it."""
        load: Load = import_module(f"edgeprism.evaluate.datasets.{self.module}").load
        return load


def _glue(*folders: str, dev: tuple[str, ...] = ("dev",)) -> Entry:
    inside = tuple(f"{root}{folder}" for root in ("", "glue_data/", "glue/") for folder in folders)
    return Entry(
        module="glue", splits=(*dev, "train", *(split.replace("dev", "test") for split in dev)), folders=inside
    )


_CBT = Entry(module="cbt", splits=("valid", "test", "train"), folders=("CBTest/data", "CBTest", "cbt"))

ENTRIES: dict[str, Entry] = {
    "cifar10": Entry(
        module="cifar", splits=("test", "train"), folders=("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py")
    ),
    "cifar100": Entry(
        module="cifar", splits=("test", "train"), folders=("cifar100", "cifar-100-binary", "cifar-100-python")
    ),
    "imagenet": Entry(module="imagenet", splits=("val",), folders=("imagenet", "ILSVRC2012", "ILSVRC", "imagenet-1k")),
    "cola": _glue("CoLA", "cola"),
    "sst2": _glue("SST-2", "sst2"),
    "mrpc": _glue("MRPC", "mrpc"),
    "stsb": _glue("STS-B", "stsb"),
    "qqp": _glue("QQP", "qqp"),
    "mnli": _glue("MNLI", "mnli", dev=("dev_matched", "dev_mismatched")),
    "mnli-mm": _glue("MNLI", "mnli", dev=("dev_mismatched", "dev_matched")),
    "qnli": _glue("QNLI", "QNLIv2", "qnli"),
    "rte": _glue("RTE", "rte"),
    "wnli": _glue("WNLI", "wnli"),
    "cbt-cn": _CBT,
    "cbt-ne": _CBT,
    "cbt-v": _CBT,
    "cbt-p": _CBT,
    "wikitext2": Entry(
        module="wikitext", splits=("valid", "test", "train"), folders=("wikitext2", "wikitext-2-raw", "wikitext-2")
    ),
    "wikitext103": Entry(
        module="wikitext",
        splits=("valid", "test", "train"),
        folders=("wikitext103", "wikitext-103-raw", "wikitext-103"),
    ),
    "pictures": Entry(module="folder", splits=("all",)),
    "csv": Entry(module="table", splits=("all",)),
    "text": Entry(module="text", splits=("all", "train", "valid", "test")),
}
OWN = ("pictures", "csv", "text")
"""The user's own files: these need --data."""


def load_dataset(name: str, *, split: str | None = None, data: Path | None = None) -> Dataset:
    """A data set by name. InputError where there is none of that name or split, or it is in a wrong format."""
    if name not in ENTRIES:
        raise InputError(f"unknown data set {name!r}; use one of {', '.join(ENTRIES)}")
    entry = ENTRIES[name]
    split = split or entry.splits[0]
    if split not in entry.splits:
        raise InputError(f"{name} has no split {split!r}; use one of {', '.join(entry.splits)}")
    if name in OWN and data is None:
        raise InputError(f"--dataset {name} is your own: name it with --data")
    if data is not None and not data.exists():
        raise InputError(f"--data {data} does not exist")
    for place in _places(entry, data):
        if place.exists() and (found := entry.load(place, name, split)) is not None:
            return replace(found, content=digest_of(found)) if name in OWN else found
    if data is not None:
        raise InputError(f"{data} has no {name} ({split}) in it; {_formats(entry)}")
    from edgeprism.evaluate.datasets.hub import from_hub

    unset = f"no {name} ({split}) was found: EDGEPRISM_DATA is not set, and there is no {DEFAULT_FOLDER} here"
    root = _root()
    return from_hub(name, split, looked_in=unset if root is None else f"{root} has no {name} ({split})")


def training_split(name: str) -> str | None:
    """The split to train or calibrate on; None, all of it, of one's own files. InputError where only what models are
    scored on can be read."""
    if name in ENTRIES and name not in OWN and "train" not in ENTRIES[name].splits:
        raise InputError(
            f"{name} is read for scoring only; take pictures of its training part with --dataset pictures --data FOLDER"
        )
    return None if name in OWN else "train"


def _places(entry: Entry, data: Path | None) -> list[Path]:
    root = data or _root()
    if root is None:
        return []
    if root.is_file():
        return [root]
    below = [root / folder for folder in entry.folders]
    return [root, *below] if data is not None else below


def _root() -> Path | None:
    if given := os.environ.get("EDGEPRISM_DATA"):
        return Path(given)
    return DEFAULT_FOLDER if DEFAULT_FOLDER.is_dir() else None


def _formats(entry: Entry) -> str:
    """What would be read."""
    formats: str = import_module(f"edgeprism.evaluate.datasets.{entry.module}").FORMATS
    return formats
