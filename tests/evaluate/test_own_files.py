"""A folder of pictures, a CSV file, and the three layouts of ImageNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism.errors import InputError
from edgeprism.evaluate.datasets.registry import load_dataset

SYNSETS = [f"n{number:08d}" for number in range(1_000_000, 1_001_000)]


def picture(path: Path) -> Path:
    """A small one; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_a_folder_for_each_label(tmp_path: Path) -> None:
    """Sub-folders are labels; other files, hidden and empty folders are passed over."""
    for name in ("dog/10.png", "dog/9.jpg", "cat/a.png", ".hidden/b.png", "empty/notes.txt"):
        picture(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).parent.mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("none")
    dataset = load_dataset("pictures", data=tmp_path)
    assert dataset.labels == ("cat", "dog") and dataset.targets is not None
    shown = {path.name: label for path, label in zip(dataset.inputs, dataset.targets.tolist(), strict=True)}
    assert shown == {"a.png": 0, "9.jpg": 1, "10.png": 1}


def test_a_part_of_a_labelled_folder_has_all_labels(tmp_path: Path) -> None:
    """--limit takes the first inputs, so they come in an order that has nothing to do with labels, always the same."""
    for number in range(40):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png")
    first, again = (load_dataset("pictures", data=tmp_path).first(10) for _ in range(2))
    assert first.targets is not None and 2 <= first.targets.sum() <= 8
    assert first.inputs == again.inputs


def test_a_flat_folder_is_not_labelled(tmp_path: Path) -> None:
    """Pictures directly in it; both kinds at once are asked about; none at all is said."""
    with pytest.raises(InputError, match=r"has no pictures .all. in it; a folder has a sub-folder"):
        load_dataset("pictures", data=tmp_path)
    picture(tmp_path / "a.png")
    assert load_dataset("pictures", data=tmp_path).targets is None
    picture(tmp_path / "dog" / "b.png")
    with pytest.raises(InputError, match=r"such as a.png and dog; .* not both"):
        load_dataset("pictures", data=tmp_path)


def test_csv_of_texts(tmp_path: Path) -> None:
    """One or two columns of text, names or numbers of labels, or values; extra columns are passed over."""
    file = tmp_path / "own.csv"
    file.write_text('id,Text,label\n1,"good, and ""long""\nover two lines",yes\n2,bad,no\n')
    dataset = load_dataset("csv", data=file)
    assert dataset.inputs == [('good, and "long"\nover two lines',), ("bad",)]
    assert (dataset.labels, dataset.targets.tolist()) == (("no", "yes"), [1, 0])
    file.write_text("text,text2,label\na,b,10\nc,d,9\n")
    dataset = load_dataset("csv", data=file)
    assert dataset.inputs == [("a", "b"), ("c", "d")]
    assert (dataset.labels, dataset.targets.tolist()) == (("9", "10"), [1, 0])
    file.write_text("text,label\na,1.5\nc,3\n")
    dataset = load_dataset("csv", data=file)
    assert (dataset.is_regression, dataset.targets.tolist(), dataset.metrics[0]) == (True, [1.5, 3.0], "pearson")
    file.write_text("text\na\n")
    assert load_dataset("csv", data=file).targets is None


def test_csv_of_pictures(tmp_path: Path) -> None:
    """Paths are relative to the file."""
    picture(tmp_path / "shots" / "a.png")
    (tmp_path / "own.csv").write_text("path,label\nshots/a.png,dog\n")
    dataset = load_dataset("csv", data=tmp_path / "own.csv")
    assert (dataset.kind, dataset.inputs) == ("pictures", [tmp_path / "shots" / "a.png"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name,label\na,b\n", "line 1: the header must have either path or text; it has name, label"),
        (b"", "line 1: the header must have either path or text; it has nothing"),
        (b"text,text\na,b\n", "line 1: a column stands twice"),
        (b"text,label\n", "it has a header and no rows"),
        (b"text,label\na,b\nc\n", "line 3: 2 fields are needed, and 1 there"),
        (b"text,label\na,b\nc, \n", "line 3: label is empty"),
        (b'text,label\na,b\n"c"d,e\n', "line 3: "),
        (b"path,label\na.png,b\n", "line 2: no such picture: a.png"),
        (b"text,label\n\xff,b\n", "it is not UTF-8"),
    ],
)
def test_wrong_csv_files_are_named_with_the_line(tmp_path: Path, text: bytes, message: str) -> None:
    """Which file, which line, and what was expected."""
    (tmp_path / "own.csv").write_bytes(text)
    with pytest.raises(InputError, match=f"own.csv.*{message}"):
        load_dataset("csv", data=tmp_path / "own.csv")


def mapping(path: Path) -> None:
    """Kaggle's list of the synsets."""
    path.write_text("".join(f"{synset} thing {number}, object\n" for number, synset in enumerate(SYNSETS)))


def test_own_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By what is in them, wherever they lie; a part of them is still theirs."""
    seen = []
    for folder, text in (
        ("a", "good,1\nbad,0\n"),
        ("b", "good,1\nworse,0\n"),
        ("c", "good,1\nbad,0\n"),
        ("d", "good,1\nbad,1\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.csv").write_text("text,label\n" + text)
        data = load_dataset("csv", data=tmp_path / folder / "data.csv")
        assert data.first(1).content == data.content
        seen.append(data.content)
    assert seen[0] == seen[2] and len({*seen}) == 3


def test_imagenet_in_class_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbered by the order of the ids, of which all must be known."""
    monkeypatch.setenv("EDGEPRISM_DATA", str(tmp_path))
    root = tmp_path / "imagenet"
    for number in (7, 3):
        picture(root / "val" / SYNSETS[number] / f"ILSVRC2012_val_{number:08d}.JPEG")
    with pytest.raises(InputError, match="has 2 of 1000 class folders, so they cannot be numbered"):
        load_dataset("imagenet")
    mapping(root / "LOC_synset_mapping.txt")
    dataset = load_dataset("imagenet")
    assert (dataset.targets.tolist(), dataset.labels) == ([3, 7], tuple(SYNSETS))
    picture(root / "val" / "n99999999" / "a.JPEG")
    with pytest.raises(InputError, match=r"n99999999 is a class folder that LOC_synset_mapping.txt does not have"):
        load_dataset("imagenet")


def test_imagenet_as_kaggle_has_it(tmp_path: Path) -> None:
    """Pictures in one folder, and the solution beside it."""
    for number in (1, 2):
        picture(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    with pytest.raises(InputError, match="has pictures, but not what they show; ImageNet is"):
        load_dataset("imagenet", data=tmp_path)
    mapping(tmp_path / "LOC_synset_mapping.txt")
    solution = tmp_path / "LOC_val_solution.csv"
    rows = [f"ILSVRC2012_val_{number:08d},{SYNSETS[number * 100]} 1 2 3 4 " for number in (2, 1)]
    solution.write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    assert load_dataset("imagenet", data=tmp_path).targets.tolist() == [100, 200]
    solution.write_text("\n".join(["ImageId,PredictionString", rows[0], "ILSVRC2012_val_00000001,dog 1 2 3 4"]))
    with pytest.raises(InputError, match=r"LOC_val_solution.csv, line 3: 'dog' is no synset"):
        load_dataset("imagenet", data=tmp_path)
    solution.write_text("\n".join(["ImageId,PredictionString", rows[0]]))
    with pytest.raises(InputError, match=r"it does not say what ILSVRC2012_val_00000001.JPEG shows"):
        load_dataset("imagenet", data=tmp_path)
    solution.write_text("id,label\n")
    with pytest.raises(InputError, match=r"LOC_val_solution.csv, line 1: the header must be"):
        load_dataset("imagenet", data=tmp_path)
    (tmp_path / "LOC_synset_mapping.txt").write_text(f"{SYNSETS[0]} a\nbirds b\n")
    with pytest.raises(InputError, match=r"LOC_synset_mapping.txt, line 2"):
        load_dataset("imagenet", data=tmp_path)


def test_imagenet_with_the_devkit(tmp_path: Path) -> None:
    """Numbers of the ground truth are explained by meta.mat, whose other synsets are the tree above the thousand."""
    scipy_io = pytest.importorskip("scipy.io")
    order = np.random.default_rng(0).permutation(1000)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number + 1, SYNSETS[place], "thing", 0) for number, place in enumerate(order)]
    synsets = np.array([*rows, (1001, "n00001740", "entity", 2)], dtype=fields)[:, None]
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    scipy_io.savemat(data / "meta.mat", {"synsets": synsets})
    for number in (1, 2):
        picture(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n171\n")
    dataset = load_dataset("imagenet", data=tmp_path)
    assert dataset.targets is not None and dataset.targets.tolist() == [order[489], order[360]]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n1001\n")
    with pytest.raises(InputError, match=r"ground_truth.txt, line 2: '1001' is no number of a synset"):
        load_dataset("imagenet", data=tmp_path)
    (data / "meta.mat").write_bytes(b"no matlab")
    with pytest.raises(InputError, match=r"meta.mat: no MATLAB file"):
        load_dataset("imagenet", data=tmp_path)


def test_running_text(tmp_path: Path) -> None:
    """A file; or the files of a folder, in the order that people count, or one of them by its name."""
    for name, text in (("part10.txt", "ten"), ("part9.txt", "nine"), ("test.txt", "scored"), ("notes.md", "none")):
        (tmp_path / name).write_text(text)
    dataset = load_dataset("text", data=tmp_path)
    assert (dataset.kind, dataset.metrics) == ("stream", ("perplexity",))
    assert dataset.inputs == ["nine\n\nten\n\nscored"]
    assert load_dataset("text", data=tmp_path, split="test").inputs == ["scored"]
    assert load_dataset("text", data=tmp_path / "notes.md").inputs == ["none"]
    with pytest.raises(InputError, match=r"has no text .train. in it; running text is a file"):
        load_dataset("text", data=tmp_path, split="train")
    (tmp_path / "part9.txt").write_bytes(b"good\n\xff")
    with pytest.raises(InputError, match=r"part9.txt, line 2: it is not UTF-8"):
        load_dataset("text", data=tmp_path)
