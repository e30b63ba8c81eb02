"""`edgeprism evaluate`: tiny models on small data of every kind, and one clear line for what cannot be used."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

import edgeprism
from edgeprism.cli.evaluate import predict_with
from edgeprism.cli.main import main
from edgeprism.errors import EdgeprismError
from edgeprism.evaluate.datasets.cifar import CIFAR10
from edgeprism.models.manifest import fingerprint
from edgeprism.specs.accuracy import AccuracyFile
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from tests.cli.test_run import WORDS, tokenizer
from tests.evaluate.test_cbt import TEXT as CBT
from tests.families import expected, make

NUM_PICTURES = 24
IMAGES = np.random.default_rng(0).integers(256, size=(NUM_PICTURES, 32, 32, 3), dtype=np.uint8)
SENTENCES = ["a cat sat", "the dog went home again", "a mat", "the cat sat on the mat today", "dog", "home again"] * 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and data in official formats. Labels are the models' own answers, so one device is always right."""
    root = tmp_path_factory.mktemp("evaluate")
    vit = make("ViTForImageClassification", id2label=dict(enumerate(CIFAR10)), num_labels=10)
    save(vit, root / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(root / "vit")
    pixels = ViTImageProcessorPil(size={"height": 32, "width": 32})(list(IMAGES), return_tensors="pt")["pixel_values"]
    labels = expected(vit, {"pixel_values": pixels})["logits"].argmax(-1).numpy()
    (root / "cifar10").mkdir()
    np.savez(root / "cifar10" / "test.npz", images=IMAGES, labels=labels)
    (root / "flat").mkdir()
    for number in range(3):
        Image.fromarray(IMAGES[number]).save(root / "flat" / f"{number}.png")
    texts(root)
    return root


def save(model: Any, path: Path) -> None:
    """With a tokenizer where it takes texts."""
    model.save_pretrained(path)
    if "vocab_size" in model.config.to_dict():
        tokenizer().save_pretrained(path)


def texts(root: Path) -> None:
    """Models of texts and their data."""
    bert = make("BertForSequenceClassification", num_labels=2, vocab_size=len(WORDS))
    save(bert, root / "bert")
    save(make("BertForSequenceClassification", num_labels=1), root / "value")
    save(make("GPT2LMHeadModel", vocab_size=len(WORDS)), root / "gpt2")
    save(make("LlamaForCausalLM", vocab_size=len(WORDS)), root / "llama")
    save(make("GPT2ForSequenceClassification", num_labels=2, pad_token_id=None), root / "causal")
    said = [expected(bert, bert_inputs(text))["logits"].argmax(-1).item() for text in SENTENCES]
    (root / "SST-2").mkdir()
    rows = [f"{text}\t{label}" for text, label in zip(SENTENCES, said, strict=True)]
    (root / "SST-2" / "dev.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    (root / "STS-B").mkdir()
    rows = [f"{text}\t{SENTENCES[place - 1]}\t{place % 6}" for place, text in enumerate(SENTENCES)]
    (root / "STS-B" / "dev.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    (root / "own.csv").write_text("\n".join(["text", *SENTENCES]) + "\n")
    (root / "wikitext2").mkdir()
    (root / "wikitext2" / "wiki.valid.raw").write_text("the cat sat on a mat \n a dog went home again today " * 12)
    (root / "cbt").mkdir()
    short = CBT.replace(" , said she .", "").replace("sentence", "cat")
    (root / "cbt" / "cbtest_CN_valid_2000ex.txt").write_text(short * 2)


def bert_inputs(text: str) -> dict[str, torch.Tensor]:
    """One text without padding."""
    return dict(tokenizer()([text], return_tensors="pt", return_token_type_ids=False))


@pytest.fixture(autouse=True)
def _places(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRISM_DATA", str(root))
    monkeypatch.setenv("EDGEPRISM_CACHE", str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command line."""
    try:
        status = main(["evaluate", *map(str, arguments)])
    except SystemExit as exc:
        status = int(exc.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def results(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    """The records of --json."""
    status, out, err = run(capsys, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)["results"]


def test_pictures(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON document and an accuracy file; one device is right about its own answers, exact rows as well, and means
    are compared with both."""
    status, out, err = run(
        capsys, root / "vit", "--dataset", "cifar10", "--codec", "exact,means:L=1,int8", "--batch", 7, "--json"
    )
    document = json.loads(out)
    assert status == 0 and "100%" in err
    exact, means, int8 = document["results"]
    assert document["num_inputs"] == NUM_PICTURES and exact["model"] == fingerprint(root / "vit")
    assert exact["exact"] == exact["value"] == exact["agreement"] == 1.0
    assert means["value"] == means["agreement"] < 1.0 and means["exact"] == 1.0
    assert means["low"] < means["value"] - 1 < means["high"]
    # 17 tokens as 8 and 9; one mean of each; int8: a scale of 4 bytes for 64 values
    assert [round(each["relative_bytes"], 6) for each in (exact, means, int8)] == [1.0, round(2 / 17, 6), 68 / 256]
    kept = AccuracyFile.read(tmp_path / "cache" / "accuracy.json")
    assert [record.to_json() for record in kept.records] == document["results"]
    lost = kept.points_lost(model=exact["model"], codec=CodecSpec.parse("means:L=1"), num_devices=2, dtype="float32")
    assert lost == pytest.approx(100 * (1 - means["value"]))


def test_the_table(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A heading and a row for each codec, on standard output alone; where it was kept, on standard error."""
    file = tmp_path / "here.json"
    words = (root / "vit", "--dataset", "cifar10", "--codec", "means:3+int8", "--shares", "0.2,0.3,0.5", "--limit", 9)
    status, out, err = run(capsys, *words, "--accuracy-file", file)
    heading, _, columns, row = out.splitlines()
    assert status == 0 and f"kept in {file}" in err
    assert heading == "cifar10, test: 3 devices (0.2, 0.3, 0.5), float32"
    assert columns.split()[:4] == ["codec", "bytes", "inputs", "metric"]
    assert row.split()[0] == "means:3+int8" and row.split()[2:6] == ["9", "accuracy", "100.00", "%"]
    assert AccuracyFile.read(file).records[0].num_devices == 3


def test_another_dtype_is_another_measurement(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both stand in the file; a second run of the same replaces its own."""
    words = (root / "vit", "--dataset", "cifar10", "--limit", 6, "--codec", "kv:int8")
    for dtype in ("float32", "bfloat16", "bfloat16"):
        (record,) = results(capsys, *words, "--dtype", dtype)
        assert record["dtype"] == dtype and record["relative_bytes"] == 2 * 68 / 256
    records = AccuracyFile.read(tmp_path / "cache" / "accuracy.json").records
    assert [record.dtype for record in records] == ["float32", "bfloat16"]


def test_batches_change_no_answer(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts of different length are never padded, which would move the borders of partitions."""
    words = (root / "bert", "--dataset", "sst2", "--codec", "means:L=1", "--devices", 2)
    one, many = (results(capsys, *words, "--batch", size) for size in (1, 16))
    assert one == many and one[0]["exact"] == 1.0


def test_texts_too_short_for_a_codec(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One device answers them, as in use, and the table says how many; where all are, it is refused."""
    words = (root / "bert", "--dataset", "sst2")
    status, out, _ = run(capsys, *words, "--codec", "means:3")
    assert status == 0
    assert out.splitlines()[-1] == "means:3: 15 of 18 inputs are too short; one device answered those"
    status, out, err = run(capsys, *words, "--codec", "means:40")
    assert (status, out) == (2, "") and err.splitlines()[-1].startswith("edgeprism: codec means:40 has one mean stand")


def test_values_and_pairs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A regression has its correlations, with intervals, and no agreement; a pair of texts is one input."""
    pearson, spearman = results(capsys, root / "value", "--dataset", "stsb", "--codec", "int4")
    assert (pearson["metric"], spearman["metric"]) == ("pearson", "spearman")
    for record in (pearson, spearman):
        assert record["agreement"] is None and record["low"] <= record["value"] - record["exact"] <= record["high"]
        assert -1 <= record["exact"] <= 1 and record["exact"] != 0


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_running_text(root: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    """Perplexity over windows; exact rows change it by rounding only, means by more."""
    words = (root / model, "--dataset", "wikitext2", "--window", 20, "--limit", 5)
    exact, means = results(capsys, *words, "--codec", "exact,means:L=1")
    assert exact["dataset"] == "wikitext2 window=20" and exact["num_inputs"] == 5
    assert exact["value"] == pytest.approx(exact["exact"], rel=1e-4) and exact["agreement"] == 1.0
    assert abs(means["value"] / means["exact"] - 1) > 1e-3
    (agreement,) = results(capsys, *words, "--codec", "means:L=1", "--metric", "agreement")
    assert agreement["value"] == means["agreement"] and agreement["exact"] == 1.0


def test_cloze_questions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten candidates each."""
    (record,) = results(capsys, root / "gpt2", "--dataset", "cbt-cn", "--codec", "int8")
    assert record["num_inputs"] == 2 and record["metric"] == "accuracy"


def test_agreement_without_labels(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of pictures and a file of texts that nobody has labelled; a causal classifier takes them one by one."""
    for model, words in (
        ("vit", ("--dataset", "pictures", "--data", root / "flat")),
        ("causal", ("--dataset", "csv", "--data", root / "own.csv")),
    ):
        (record,) = results(capsys, root / model, *words, "--codec", "int4", "--metric", "agreement")
        assert record["metric"] == "agreement" and record["exact"] == 1.0 and 0 <= record["value"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("vit", "--dataset", "mnist", "--codec", "int8"), "unknown data set 'mnist'; use one of cifar10"),
        (("vit", "--dataset", "sst2", "--codec", "int8"), "sst2 needs a model that classifies texts; ViTForImage"),
        (("bert", "--dataset", "cifar10", "--codec", "int8"), "cifar10 needs a model that classifies pictures"),
        (("vit", "--dataset", "cifar10", "--codec", "int9"), "unknown codec 'int9'"),
        (("vit", "--dataset", "cifar10", "--codec", "int8,int8"), "--codec int8,int8 names one twice"),
        (("vit", "--dataset", "cifar10", "--codec", "int8", "--devices", 1), "a codec matters from two devices on"),
        (("vit", "--dataset", "cifar10", "--codec", "int8", "--devices", 17), "a cluster has 1 to 16 devices, not 17"),
        (
            ("vit", "--dataset", "cifar10", "--codec", "int8", "--devices", 3, "--shares", "0.5,0.5"),
            "--shares names 2 devices and --devices 3",
        ),
        (("vit", "--dataset", "cifar10", "--codec", "int8", "--metric", "pearson"), "metric pearson does not apply"),
        (("vit", "--dataset", "cifar10", "--codec", "int8", "--limit", 0), "--limit must be at least 1, not 0"),
        (("vit", "--dataset", "cifar10", "--codec", "int8", "--dtype", "int8"), "unknown dtype 'int8'"),
        (("vit", "--dataset", "cifar10", "--codec", "int8", "--accuracy-file", "."), "cannot be read"),
        (
            ("bert", "--dataset", "rte", "--codec", "int8", "--data", "own.csv"),
            "own.csv, line 1: the header has no column",
        ),
        (("bert", "--dataset", "mnli", "--codec", "int8"), "has no mnli"),
        (("gone", "--dataset", "sst2", "--codec", "int8"), "gone"),
        (("vit", "--dataset", "cifar10", "--codec", "int8,means:1000"), "codec means:1000"),
        (("vit", "--dataset", "cifar10", "--codec", "int8", "--device", "tpu"), "cpu or cuda"),
        (("vit", "--dataset", "cifar10", "--codec", "int8", "--shares", "nan,0.5"), "must be a number"),
        (("gpt2", "--dataset", "wikitext2", "--codec", "int8"), "--window must be from 2 to this model's 40 tokens"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...],
    message: str,
) -> None:
    """Exit status 2, nothing on standard output, no accuracy file."""
    monkeypatch.chdir(root)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    status, out, err = run(capsys, root / str(words[0]), *words[1:])
    assert (status, out) == (2, "") and message in err.splitlines()[-1] and "Traceback" not in err
    assert not (root / "accuracy.json").exists()


def test_labels_that_the_head_does_not_have(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named."""
    for label in ("cat", "cow"):
        (tmp_path / "own" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "own" / label / "a.png")
    status, _, err = run(capsys, root / "vit", "--dataset", "pictures", "--data", tmp_path / "own", "--codec", "int8")
    assert status == 2
    assert "the labels of pictures own do not match the model's head: it has no cow; its 10 labels are airplane" in err


def test_numbers_that_the_head_does_not_have(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only those, and what there is."""
    (tmp_path / "own.csv").write_text("text,label\na cat,1\na dog,7\n")
    given = ("--dataset", "csv", "--data", tmp_path / "own.csv", "--codec", "int8")
    status, _, err = run(capsys, root / "bert", *given)
    assert status == 2
    assert "numbers 0 to 1, and there are labels 7" in err


def test_a_column_that_is_mistyped(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the header has is shown."""
    (tmp_path / "own.csv").write_text("text,lable\na cat,1\n")
    status, _, err = run(capsys, root / "bert", "--dataset", "csv", "--data", tmp_path / "own.csv", "--codec", "int8")
    assert status == 2
    assert "no column label in its header, which has text, lable" in err


def test_fewer_inputs_do_not_replace_more(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And are not said to be kept."""
    given = ("--dataset", "cifar10", "--codec", "int8", "--accuracy-file", tmp_path / "a.json")
    assert run(capsys, root / "vit", *given, "--limit", "8")[0] == 0
    status, _, err = run(capsys, root / "vit", *given, "--limit", "4")
    assert status == 0
    assert "keeps an earlier measurement on 8 inputs, more than the 4 of now" in err
    assert "kept in" not in err


def test_a_result_that_cannot_be_kept_is_still_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may have taken an hour."""
    words = (root / "vit", "--dataset", "cifar10", "--codec", "int8", "--limit", 2)
    status, out, err = run(capsys, *words, "--accuracy-file", "/proc/accuracy.json")
    assert status == 2 and "int8" in out and "cannot be written" in err.splitlines()[-1]


def test_one_process_answers_as_real_workers(root: Path) -> None:
    """The predictions that are scored are those of two processes, input by input, and the logits are the same."""
    plan = Plan.even("sequence", 2, CodecSpec.parse("means:4+int8"))
    pixels = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    logits = []
    for cluster in (edgeprism.Cluster.in_process(2), edgeprism.Cluster.spawn(2, share_cores=True)):
        with cluster, edgeprism.load(str(root / "vit"), cluster=cluster) as engine:
            predict = predict_with(engine, plan)
            logits.append(torch.cat([predict(pixel_values=part)["logits"] for part in pixels.split(8)]))
    assert torch.equal(logits[0].argmax(-1), logits[1].argmax(-1))
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    alone = expected(make("ViTForImageClassification", num_labels=10), {"pixel_values": pixels})["logits"]
    assert (logits[0] - alone).abs().max() > 1e-2, "the codec was at work"


def test_an_answer_by_another_plan_is_not_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device is gone the engine finishes alone, exactly; counted as the codec's that would be too good."""
    monkeypatch.setattr("edgeprism.cli.evaluate.PAUSE_S", 0.0)
    plan = Plan.even("sequence", 2, CodecSpec.parse("means:L=1"))
    pixels = torch.randn(2, 3, 32, 32)
    with (
        edgeprism.Cluster.spawn(2, share_cores=True) as cluster,
        edgeprism.load(str(root / "vit"), cluster=cluster) as engine,
    ):
        predict = predict_with(engine, plan)
        predict(pixel_values=pixels)
        os.kill(cluster.pids[0], signal.SIGKILL)
        with pytest.raises(EdgeprismError, match="2 devices of this process did not answer together: device 1"):
            predict(pixel_values=pixels)
