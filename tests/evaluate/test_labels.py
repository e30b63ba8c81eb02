"""Labels of a data set in a head that may name and order them otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset, Kind
from edgeprism.evaluate.labels import check_head, head_labels, match_labels
from edgeprism.specs.model import ModelSpec
from tests.specs.configs import BERT_BASE, GPT2, VIT_BASE


def dataset(*labels: str, known: bool = False, name: str = "own") -> Dataset:
    """One input for each label."""
    return Dataset(
        name=name,
        split="all",
        kind="texts",
        inputs=["a"] * len(labels),
        targets=np.arange(len(labels)),
        labels=labels,
        numbers_are_known=known,
    )


@pytest.mark.parametrize(
    ("data", "head", "wanted"),
    [
        (dataset("negative", "positive"), ("POSITIVE", "NEGATIVE"), [1, 0]),
        (dataset("not_entailment", "entailment"), ("entailment", "Not Entailment"), [1, 0]),
        (dataset("cat", "dog"), ("bird", "dog", "cat", "fish"), [-1, 1, 0, -4]),
        (dataset("a", "b", known=True), ("LABEL_0", "LABEL_1"), [0, 1]),
        (dataset("2", "0"), ("x", "y", "z"), [1, -2, 0]),
        (dataset("crane"), ("Crane", "crane"), [0, 0]),
        (dataset("n1", "n2", known=True, name="imagenet"), ("tench", "goldfish"), [0, 1]),
    ],
)
def test_matching(data: Dataset, head: tuple[str, ...], wanted: list[int]) -> None:
    """By name in any writing; by number where the head has no names or the labels are numbers; below 0 for the rest."""
    assert match_labels(data, head).tolist() == wanted


@pytest.mark.parametrize(
    ("data", "head", "message"),
    [
        (dataset("cat", "cow"), ("bird", "dog", "cat"), "it has no cow; its 3 labels are bird, dog, cat"),
        (dataset("cat", "cow"), ("LABEL_0", "LABEL_1"), "it has no cat, cow; its 2 labels are LABEL_0, LABEL_1"),
        (dataset("a", "b", known=True), ("LABEL_0", "LABEL_1", "LABEL_2"), "it has no a, b"),
        (
            dataset(*"abcdefgh", known=True),
            tuple("xyzuvwst"),
            "it has no a, b, c, d, e and 3 more; its 8 labels are x, y, z, u, v and",
        ),
        (dataset("7"), ("x", "y"), "its outputs have the numbers 0 to 1, and there are labels 7"),
    ],
)
def test_what_does_not_match_is_named(data: Dataset, head: tuple[str, ...], message: str) -> None:
    """In one line, with the head's labels."""
    with pytest.raises(InputError, match=f"the labels of own do not match the model's head: {message}"):
        match_labels(data, head)


def test_names_of_a_head(tmp_path: Path) -> None:
    """From config.json; transformers leaves them out where there are two without names."""
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "yes", "0": "no"}}))
    assert head_labels(tmp_path, 2) == ("no", "yes")
    (tmp_path / "config.json").write_text("{}")
    assert head_labels(tmp_path, 2) == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("texts", VIT_BASE, "own needs a model that classifies texts; ViTForImageClassification is none"),
        ("pictures", GPT2, "own needs a model that classifies pictures; GPT2LMHeadModel is none"),
        ("texts", BERT_BASE, "own needs a model that classifies texts; BertForMaskedLM is none"),
        ("stream", VIT_BASE, "own needs a causal language model"),
        ("cloze", BERT_BASE, "own needs a causal language model"),
    ],
)
def test_models_of_another_kind(kind: Kind, config: dict[str, Any], message: str) -> None:
    """They are refused by name, before any weight is read."""
    with pytest.raises(InputError, match=message):
        check_head(replace(dataset("a", "b"), kind=kind), ModelSpec.from_config(config))


def test_values_need_one_output() -> None:
    """A regression is no choice between labels."""
    values = Dataset(name="stsb", split="dev", kind="texts", inputs=["a"], targets=np.array([0.5]))
    spec = ModelSpec.from_config({**BERT_BASE, "architectures": ["BertForSequenceClassification"]})
    with pytest.raises(InputError, match="stsb has values, so a head with one output is needed; this one has 2"):
        check_head(values, spec)
    check_head(values, replace(spec, num_labels=1))
