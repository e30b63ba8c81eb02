"""ImageNet-1k's validation set (ILSVRC 2012): 50,000 pictures and which of 1,000 synsets each shows.

Read are the three layouts that people have: class folders (`val/n01440764/*.JPEG`); the challenge's archive as Kaggle
hands it out (`LOC_val_solution.csv`, `LOC_synset_mapping.txt`); and the original pictures in one folder with the devkit
(`data/ILSVRC2012_validation_ground_truth.txt`, whose numbers `data/meta.mat` explains). Synsets are numbered in the
order of their ids, as in every published model.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset, wrong
from edgeprism.evaluate.datasets.folder import pictures_in, sub_folders
from edgeprism.evaluate.datasets.synsets import read_synsets

FORMATS = (
    "ImageNet is a folder with val/n01440764/*.JPEG; or val/*.JPEG and LOC_val_solution.csv with "
    "LOC_synset_mapping.txt, or the devkit's data/ folder"
)
NUM_SYNSETS = 1000
_SYNSET = re.compile(r"n\d{8}")
_PICTURE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def load(path: Path, name: str, split: str) -> Dataset | None:
    """The validation set; None where there is none."""
    if not path.is_dir():
        return None
    places = (path, path / "val", path / "ILSVRC2012_img_val", path / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    for folder in (place for place in places if place.is_dir()):
        by_synset = [sub for sub in sub_folders(folder) if _SYNSET.fullmatch(sub.name)]
        if by_synset:
            return _from_folders(path, name, split, by_synset)
        pictures = [file for file in sorted(folder.iterdir()) if _PICTURE.fullmatch(file.name)]
        if pictures:
            return _from_list(path, name, split, pictures)
    return None


def _from_folders(root: Path, name: str, split: str, folders: Sequence[Path]) -> Dataset:
    ids = _mapping(root) or [folder.name for folder in folders]
    if len(ids) != NUM_SYNSETS:
        raise InputError(
            f"{folders[0].parent} has {len(ids)} of {NUM_SYNSETS} class folders, so they cannot be numbered; put "
            f"LOC_synset_mapping.txt beside it, or take --dataset pictures where the folders have the head's labels"
        )
    numbers = {synset: number for number, synset in enumerate(ids)}
    if unknown := [folder for folder in folders if folder.name not in numbers]:
        raise InputError(f"{unknown[0]} is a class folder that LOC_synset_mapping.txt does not have")
    pictures = [(picture, numbers[folder.name]) for folder in folders for picture in pictures_in(folder)]
    pictures.sort(key=lambda labelled: labelled[0].name)  # the official names are in no order of labels
    return _dataset(name, split, pictures, ids)


def _from_list(root: Path, name: str, split: str, pictures: Sequence[Path]) -> Dataset:
    """All pictures in one folder: what they show is in a file beside it."""
    solution = _find(root, "LOC_val_solution.csv")
    mapping = _mapping(root)
    if solution is not None and mapping:
        return _dataset(name, split, _by_solution(solution, pictures, mapping), mapping)
    truth, meta = _find(root, _TRUTH), _find(root, "meta.mat")
    if truth is not None and meta is not None:
        synsets = read_synsets(meta)
        ids = sorted(synsets.values())
        numbers = {given: ids.index(synset) for given, synset in synsets.items()}
        return _dataset(name, split, _by_truth(truth, pictures, numbers), ids)
    raise InputError(f"{pictures[0].parent} has pictures, but not what they show; {FORMATS}")


def _by_solution(path: Path, pictures: Sequence[Path], ids: Sequence[str]) -> list[tuple[Path, int]]:
    """Kaggle's: ImageId,PredictionString, the latter the id of a synset and a box, for each object."""
    numbers = {synset: number for number, synset in enumerate(ids)}
    shown: dict[str, int] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        if next(reader, None) != ["ImageId", "PredictionString"]:
            raise wrong(path, "the header must be ImageId,PredictionString", line=1)
        for fields in reader:
            synset = fields[1].split(" ")[0] if len(fields) == 2 else ""
            if synset not in numbers:
                raise wrong(path, f"{synset or fields!r} is no synset of LOC_synset_mapping.txt", line=reader.line_num)
            shown[fields[0]] = numbers[synset]
    if missing := [picture for picture in pictures if picture.stem not in shown]:
        raise wrong(path, f"it does not say what {missing[0].name} shows")
    return [(picture, shown[picture.stem]) for picture in pictures]


def _by_truth(path: Path, pictures: Sequence[Path], numbers: dict[int, int]) -> list[tuple[Path, int]]:
    """The devkit's: one number a line, in the order of the pictures' own numbers."""
    shown: list[int] = []
    for line, text in enumerate(path.read_text(encoding="utf-8").split(), start=1):
        if not text.isdecimal() or int(text) not in numbers:
            raise wrong(path, f"{text!r} is no number of a synset that meta.mat has", line=line)
        shown.append(numbers[int(text)])
    chosen = []
    for picture in pictures:
        match = _PICTURE.fullmatch(picture.name)
        assert match is not None
        if not 1 <= int(match[1]) <= len(shown):
            raise wrong(path, f"it has {len(shown)} lines, none for {picture.name}")
        chosen.append((picture, shown[int(match[1]) - 1]))
    return chosen


def _mapping(root: Path) -> list[str]:
    """The ids in LOC_synset_mapping.txt, sorted; none without the file."""
    path = _find(root, "LOC_synset_mapping.txt")
    if path is None:
        return []
    ids: set[str] = set()
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        synset, _, named = text.partition(" ")
        if not _SYNSET.fullmatch(synset) or not named:
            raise wrong(path, "a line is the id of a synset, a blank and its words", line=line)
        ids.add(synset)
    if len(ids) != NUM_SYNSETS:
        raise wrong(path, f"it has {len(ids)} synsets; {NUM_SYNSETS} are needed")
    return sorted(ids)


def _find(root: Path, name: str) -> Path | None:
    """A file in the folder, its devkit, or beside it."""
    for folder in (root, root / "data", root / "ILSVRC2012_devkit_t12" / "data", root.parent):
        if (folder / name).is_file():
            return folder / name
    return None


def _dataset(name: str, split: str, pictures: list[tuple[Path, int]], ids: Sequence[str]) -> Dataset:
    """Labels are the ids: of the synsets' words some stand for two (crane)."""
    return Dataset(
        name=name,
        split=split,
        kind="pictures",
        inputs=[picture for picture, _ in pictures],
        targets=np.array([number for _, number in pictures], dtype=np.int64),
        labels=tuple(ids),
        numbers_are_known=True,
    )
