"""A folder of one's own pictures: a sub-folder for each label; or, for agreement only, all in the folder itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset
from edgeprism.tasks.frames import natural
from edgeprism.tasks.pictures import is_picture

FORMATS = "a folder has a sub-folder of pictures for each label, or pictures directly in it"

ORDER_SEED = 0


def load(path: Path, name: str, split: str) -> Dataset | None:
    """The pictures; None where there is none. Labelled ones come in a fixed random order: the first of them by name
    would all have one label."""
    if not path.is_dir():
        return None
    labelled = {folder.name: pictures_in(folder) for folder in sub_folders(path)}
    labelled = {label: pictures for label, pictures in labelled.items() if pictures}
    flat = pictures_in(path)
    if labelled and flat:
        raise InputError(
            f"{path} has pictures and sub-folders of pictures, such as {flat[0].name} and {next(iter(labelled))}; "
            f"{FORMATS}, not both"
        )
    if not labelled and not flat:
        return None
    numbered = [(picture, number) for number, label in enumerate(labelled) for picture in labelled[label]]
    shuffled = [numbered[place] for place in np.random.default_rng(ORDER_SEED).permutation(len(numbered))]
    return Dataset(
        name=f"{name} {path.resolve().name}",
        split=split,
        kind="pictures",
        inputs=flat or [picture for picture, _ in shuffled],
        targets=np.array([number for _, number in shuffled], dtype=np.int64) if labelled else None,
        labels=tuple(labelled),
    )


def sub_folders(path: Path) -> list[Path]:
    """Those that are not hidden, by name."""
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly in a folder, ``img2`` before ``img10``."""
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(filter(is_picture, files), key=lambda file: (natural(file.name), file.name))
