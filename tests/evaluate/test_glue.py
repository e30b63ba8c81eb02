"""The nine tasks of GLUE in their official files, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprism.errors import InputError
from edgeprism.evaluate.datasets.registry import load_dataset

# name, folder, file, its first lines, inputs, targets, metrics
OFFICIAL = [
    (
        "cola",
        "CoLA",
        "dev.tsv",
        'gj04\t1\t\tThe sailors rode the breeze clear of the rocks.\ngj04\t0\t*\tBill "quoted off the rock.\n',
        [("The sailors rode the breeze clear of the rocks.",), ('Bill "quoted off the rock.',)],
        [1, 0],
        ("matthews",),
    ),
    (
        "sst2",
        "SST-2",
        "dev.tsv",
        "sentence\tlabel\nit 's a charming journey . \t1\nunflinchingly bleak \t0\n",
        [("it 's a charming journey . ",), ("unflinchingly bleak ",)],
        [1, 0],
        ("accuracy",),
    ),
    (
        "mrpc",
        "MRPC",
        "dev.tsv",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
        '1\t1355540\t1355592\tHe said " so .\t" The foodservice pie\r\n',
        [('He said " so .', '" The foodservice pie')],
        [1],
        ("f1", "accuracy"),
    ),
    (
        "stsb",
        "STS-B",
        "dev.tsv",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tmain-captions\tMSRvid\t2012test\t0000\tnone\tnone\tA man with a hat.\tA man wearing a hat.\t4.750\n",
        [("A man with a hat.", "A man wearing a hat.")],
        [4.75],
        ("pearson", "spearman"),
    ),
    (
        "qqp",
        "QQP",
        "dev.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        "201359\t303345\t303346\tWhy are hispanics so beautiful?\tWhy is it so?\t0\n"
        "7\t8\n",
        [("Why are hispanics so beautiful?", "Why is it so?")],
        [0],
        ("f1", "accuracy"),
    ),
    (
        "mnli",
        "MNLI",
        "dev_matched.tsv",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
        "sentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        "0\t63735\t63735n\tslate\tb1\tb2\tp1\tp2\tThe new rights are nice\tEveryone likes them \t"
        "neutral\tentailment\tneutral\tneutral\tneutral\tneutral\n",
        [("The new rights are nice", "Everyone likes them ")],
        [1],
        ("accuracy",),
    ),
    (
        "mnli-mm",
        "MNLI",
        "dev_mismatched.tsv",
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tYour gift\tMatters.\tneutral\tcontradiction\n",
        [("Your gift", "Matters.")],
        [2],
        ("accuracy",),
    ),
    (
        "qnli",
        "QNLI",
        "dev.tsv",
        "index\tquestion\tsentence\tlabel\n0\tWhat came into force?\tAs of that day\u2028it was.\tentailment\n",
        [("What came into force?", "As of that day\u2028it was.")],
        [0],
        ("accuracy",),
    ),
    (
        "rte",
        "RTE",
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tDana Reeve died.\tReeve had an accident.\tnot_entailment\n",
        [("Dana Reeve died.", "Reeve had an accident.")],
        [1],
        ("accuracy",),
    ),
    (
        "wnli",
        "WNLI",
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tThe drain is clogged.\tThe hair has to be cleaned.\t0\n",
        [("The drain is clogged.", "The hair has to be cleaned.")],
        [0],
        ("accuracy",),
    ),
]


@pytest.mark.parametrize(("name", "folder", "file", "text", "inputs", "targets", "metrics"), OFFICIAL)
def test_official_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    folder: str,
    file: str,
    text: str,
    inputs: list[tuple[str, ...]],
    targets: list[float],
    metrics: tuple[str, ...],
) -> None:
    """Texts as they stand (quotes are no quoting, U+2028 no line end), labels, and the official metrics first; found by
    the folder that the archive unpacks to."""
    (tmp_path / "glue_data" / folder).mkdir(parents=True)
    (tmp_path / "glue_data" / folder / file).write_bytes(text.encode())
    monkeypatch.setenv("EDGEPRISM_DATA", str(tmp_path))
    dataset = load_dataset(name)
    assert (list(dataset.inputs), dataset.targets.tolist(), dataset.metrics) == (inputs, targets, metrics)
    assert dataset.is_regression == (name == "stsb")
    assert bool(dataset.notes) == (name == "qqp"), "a line with fields missing is left out, and said"


def test_test_sets_are_not_labelled(tmp_path: Path) -> None:
    """CoLA's has a header, which its other files have not; MRPC's and others' have another."""
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tBill whistled past the house.\n")
    for name in ("cola", "sst2"):
        dataset = load_dataset(name, split="test", data=tmp_path)
        assert dataset.inputs == [("Bill whistled past the house.",)] and dataset.targets is None


def test_original_mrpc(tmp_path: Path) -> None:
    """GLUE's dev set are the pairs of the training file that dev_ids.tsv lists; the test file is labelled."""
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = "1\t10\t11\ta\tb\r\n0\t20\t21\tc\td\r\n1\t30\t31\te\tf\r\n"
    (tmp_path / "msr_paraphrase_train.txt").write_bytes((header + rows).encode())
    (tmp_path / "msr_paraphrase_test.txt").write_bytes((header + rows).encode())
    with pytest.raises(InputError, match=r"not dev_ids.tsv"):
        load_dataset("mrpc", data=tmp_path)
    (tmp_path / "dev_ids.tsv").write_text("20\t21\n")
    found = {split: load_dataset("mrpc", split=split, data=tmp_path) for split in ("train", "dev", "test")}
    assert found["train"].inputs == [("a", "b"), ("e", "f")]
    assert found["dev"].inputs == [("c", "d")] and found["dev"].targets.tolist() == [0]
    assert len(found["test"].inputs) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sst2", b"sentence,label\ngood,1\n", "dev.tsv, line 1: the header has no column sentence, label"),
        (
            "sst2",
            b"sentence\tlabel\ngood\t1\nbad\n",
            "dev.tsv, line 3: 2 fields with tabs between them are needed, and 1",
        ),
        (
            "sst2",
            b"sentence\tlabel\ngood\t2\n",
            "dev.tsv, line 2: label must be 0 to 1, or negative, positive, not '2'",
        ),
        ("sst2", b"sentence\tlabel\n", "it holds no examples"),
        ("sst2", b"", "dev.tsv: it is empty"),
        ("sst2", b"sentence\tlabel\ngood\t1\n\xff\t1\n", "dev.tsv, line 3: it is not UTF-8"),
        ("cola", b"sentence\tlabel\ngood\t1\n", "dev.tsv, line 1: 4 fields"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\t7\n", "dev.tsv, line 2: score must be a number from 0 to 5"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\tmuch\n", "line 2: score must be"),
        (
            "rte",
            b"sentence1\tsentence2\tlabel\na\tb\tneutral\n",
            "line 2: label must be 0 to 1, or entailment, not_ent",
        ),
    ],
)
def test_wrong_files_are_named_with_the_line(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    """Which file, which line, and what was expected."""
    (tmp_path / "dev.tsv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        load_dataset(name, data=tmp_path)


def test_where_data_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--data, else EDGEPRISM_DATA, else ../shared/data; a file may be named as well as its folder."""
    places = [tmp_path / "given", tmp_path / "set", tmp_path / "shared" / "data"]
    for number, place in enumerate(places):
        (place / "SST-2").mkdir(parents=True)
        (place / "SST-2" / "dev.tsv").write_text("sentence\tlabel\n" + "a\t1\n" * (number + 1))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("EDGEPRISM_DATA", raising=False)
    assert len(load_dataset("sst2").inputs) == 3
    monkeypatch.setenv("EDGEPRISM_DATA", str(places[1]))
    assert len(load_dataset("sst2").inputs) == 2
    for given in (places[0], places[0] / "SST-2", places[0] / "SST-2" / "dev.tsv"):
        assert len(load_dataset("sst2", data=given).inputs) == 1


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, splits and places that do not exist; without the package `datasets` the hub is not asked."""
    with pytest.raises(InputError, match="unknown data set 'sst3'; use one of cifar10, "):
        load_dataset("sst3")
    with pytest.raises(InputError, match="sst2 has no split 'valid'; use one of dev, train, test"):
        load_dataset("sst2", split="valid")
    with pytest.raises(InputError, match=r"--data .*nowhere does not exist"):
        load_dataset("sst2", data=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no sst2 \(dev\) in it; a task of GLUE is a folder with"):
        load_dataset("sst2", data=tmp_path)
    with pytest.raises(InputError, match="--dataset csv is your own: name it with --data"):
        load_dataset("csv")
    monkeypatch.setenv("EDGEPRISM_DATA", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"has no sst2 \(dev\); unpack .* pip install 'edgeprism\[hub\]'"):
        load_dataset("sst2")
    monkeypatch.delenv("EDGEPRISM_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no wnli \(dev\) was found: EDGEPRISM_DATA is not set"):
        load_dataset("wnli")
