"""Batches for training: the same every time, of one length, and never too short for the codec."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgeprism.errors import InputError, PlanError
from edgeprism.evaluate.build import make_examples
from edgeprism.evaluate.dataset import Dataset
from edgeprism.evaluate.datasets.registry import load_dataset
from edgeprism.evaluate.examples import endless
from edgeprism.evaluate.labelled import Labelled
from edgeprism.evaluate.variants import vary
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.model import ModelSpec
from tests.evaluate.tiny import SENTENCES, write_data, write_model_directory


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for texts and data."""
    root = tmp_path_factory.mktemp("examples")
    write_model_directory("BertForSequenceClassification", root / "bert")
    write_data(root / "data")
    return root


def texts(root: Path, codec: str) -> Labelled:
    """The sentences for two devices."""
    spec = ModelSpec.from_directory(root / "bert")
    return Labelled(
        load_dataset("sst2", split="train", data=root / "data"), root / "bert", spec, CodecSpec.parse(codec), 2
    )


def test_texts_of_a_batch_have_one_length(root: Path) -> None:
    """Nothing is padded, and every text takes part once in an epoch."""
    examples = texts(root, "int8")
    assert not examples.notes and len(examples.indices) == len(SENTENCES)
    batches = examples.batches(examples.indices, 3, np.random.default_rng(0))
    assert sorted(index for batch in batches for index in batch) == list(examples.indices)
    for batch in batches:
        inputs, targets = examples.batch(batch)
        assert inputs["attention_mask"].all() and len(batch) <= 3
        assert targets.tolist() == [SENTENCES[index][1] for index in batch]


def test_texts_too_short_for_the_codec_are_left_out(root: Path) -> None:
    """A device needs as many tokens as one mean stands for: four of eight, on two devices."""
    examples = texts(root, "means:4")
    assert [SENTENCES[index][0] for index in examples.indices] == [s for s, _ in SENTENCES if len(s.split()) >= 8]
    num_left_out = len(SENTENCES) - len(examples.indices)
    assert num_left_out and examples.notes == (
        f"{num_left_out} of {len(SENTENCES)} texts are too short for codec means:4 and are left out",
    )
    with pytest.raises(PlanError, match="too short for codec means:20"):
        texts(root, "means:20")


def test_the_order_is_that_of_seed_and_step(root: Path) -> None:
    """Begun at step 7 it goes on as if it had begun at 0, over the ends of epochs; another seed, another order."""
    examples = texts(root, "int8")
    whole = list(islice(endless(examples, examples.indices, 3, seed=5), 20))
    assert list(islice(endless(examples, examples.indices, 3, seed=5, start=7), 13)) == whole[7:]
    assert list(islice(endless(examples, examples.indices, 3, seed=6), 20)) != whole


def test_variants() -> None:
    """Of the same size, the same for the same generator, and each another picture."""
    pixels = torch.rand(4, 3, 20, 28)
    first, again = (vary(pixels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == pixels.shape and torch.equal(first, again)
    assert not torch.equal(first, vary(pixels, torch.Generator().manual_seed(2)))
    assert all((one - two).abs().mean() > 0.01 for one, two in zip(first, pixels, strict=True))


def test_data_that_cannot_be_used(root: Path) -> None:
    """Another kind of input, no labels, labels that the head does not have: said in one line each."""
    spec = ModelSpec.from_directory(root / "bert")

    def examples(**changes: Any) -> Labelled:
        given = {"kind": "texts", "inputs": [("a cat",)], "targets": np.zeros(1, np.int64), "labels": ("bad", "good")}
        data = Dataset(name="d", split="train", **{**given, **changes})
        made = make_examples(data, root / "bert", spec, CodecSpec(), 2, window=16)
        assert isinstance(made, Labelled)
        return made

    with pytest.raises(InputError, match="classifies pictures; BertForSequenceClassification is none"):
        examples(kind="pictures")
    with pytest.raises(InputError, match="needs a causal language model; BertForSequenceClassification is none"):
        examples(kind="stream", inputs=["a cat"])
    with pytest.raises(InputError, match="d has questions; finetune takes labelled inputs, or running text"):
        examples(kind="cloze")
    assert not examples(targets=None).has_targets, "its own answers can be learned"
    with pytest.raises(InputError, match="it has no bad, good"):
        examples()


def test_targets_are_outputs_of_the_head(tmp_path: Path) -> None:
    """A head that names its labels in another order is trained in its own."""
    write_model_directory("BertForSequenceClassification", tmp_path / "bert", id2label={0: "good", 1: "bad"})
    data = Dataset(
        name="d", split="train", kind="texts", inputs=[("a cat",), ("the dog",)], targets=np.array([0, 1]),
        labels=("bad", "good"),
    )  # fmt: skip
    spec = ModelSpec.from_directory(tmp_path / "bert")
    _, targets = Labelled(data, tmp_path / "bert", spec, CodecSpec(), 2).batch([0, 1])
    assert targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "several labels"),
        ({"model_type": "gpt2", "pad_token_id": None}, "pad_token_id"),
    ],
)
def test_heads_that_cannot_be_trained(root: Path, changes: dict[str, Any], message: str) -> None:
    """Several labels at once, and a decoder that cannot find a text's end."""
    config = SimpleNamespace(**{"num_labels": 2, "problem_type": None, "model_type": "bert", **changes})
    with pytest.raises(InputError, match=message):
        texts(root, "int8").check_head(config)
