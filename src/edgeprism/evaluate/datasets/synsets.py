"""`meta.mat` of the ILSVRC 2012 devkit: which synset each of its numbers stands for.

It is a MATLAB 5 file, which SciPy reads; that is asked for only here (the extra `imagenet`).
"""

from __future__ import annotations

from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import wrong

NUM_CLASSES = 1000


def read_synsets(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> id of the 1,000 synsets that pictures are labelled with."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(
            f"{path} is read by SciPy, which is missing: pip install 'edgeprism[imagenet]'; "
            "LOC_val_solution.csv with LOC_synset_mapping.txt, or class folders, do without it"
        ) from None
    try:
        synsets = loadmat(str(path), squeeze_me=True)["synsets"]
        rows = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in synsets
            if int(row["num_children"]) == 0  # the others are the tree above them
        }
    except Exception as exc:  # SciPy raises many kinds for a damaged file
        raise wrong(path, f"no MATLAB file with the devkit's synsets ({exc})") from exc
    if sorted(rows) != list(range(1, NUM_CLASSES + 1)):
        raise wrong(path, f"it numbers {len(rows)} synsets; 1 to {NUM_CLASSES} are needed")
    return rows
