"""Rows as the hub's data sets have them, and its client's failures."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Cloze
from edgeprism.evaluate.datasets.hub import from_hub, from_rows

PAIR = {"sentence1": "a", "sentence2": "b", "idx": 0}


@pytest.mark.parametrize(
    ("name", "row", "given", "target"),
    [
        ("cola", {"sentence": "a", "label": 1}, ("a",), 1),
        ("sst2", {"sentence": "a", "label": 0}, ("a",), 0),
        ("mrpc", {**PAIR, "label": 1}, ("a", "b"), 1),
        ("stsb", {**PAIR, "label": 3.5}, ("a", "b"), 3.5),
        ("qqp", {"question1": "a", "question2": "b", "label": 1}, ("a", "b"), 1),
        ("mnli", {"premise": "a", "hypothesis": "b", "label": 2}, ("a", "b"), 2),
        ("mnli-mm", {"premise": "a", "hypothesis": "b", "label": 0}, ("a", "b"), 0),
        ("qnli", {"question": "a", "sentence": "b", "label": 1}, ("a", "b"), 1),
        ("rte", {**PAIR, "label": 1}, ("a", "b"), 1),
        ("wnli", {**PAIR, "label": 0}, ("a", "b"), 0),
        (
            "cbt-ne",
            {"sentences": ["s .", "t ."], "question": "the XXXXX ran", "answer": "cat", "options": ["dog", "cat"]},
            Cloze(before="s . t . the", after="ran", candidates=("dog", "cat"), answer=1),
            1,
        ),
    ],
)
def test_rows(name: str, row: dict[str, Any], given: object, target: float) -> None:
    """Columns and numbers of labels are the hub's."""
    dataset = from_rows(name, "dev", [row])
    assert dataset.inputs == [given] and dataset.targets is not None and dataset.targets.tolist() == [target]


def test_pictures_and_running_texts() -> None:
    """CIFAR-100's fine labels count; the lines of WikiText end with their line feeds."""
    image = Image.new("L", (32, 32), 7)
    dataset = from_rows("cifar100", "test", [{"img": image, "fine_label": 99, "coarse_label": 3}])
    assert dataset.inputs[0].shape == (32, 32, 3) and dataset.targets is not None and dataset.targets.tolist() == [99]
    assert from_rows("wikitext2", "valid", [{"text": ""}, {"text": " = H = \n"}]).inputs == [" = H = \n"]


def test_test_sets_are_not_labelled() -> None:
    """The hub writes -1 there."""
    assert from_rows("stsb", "test", [{**PAIR, "label": -1.0}]).targets is None
    assert from_rows("sst2", "test", [{"sentence": "a", "label": -1}]).targets is None


def test_the_hub_is_asked_for_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repository, configuration and split; what its client raises is one line."""
    asked: list[tuple[object, ...]] = []
    client = ModuleType("datasets")

    def load_dataset(repository: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((repository, config, split))
        if split == "train":
            raise ConnectionError("no network\nat all")
        return [{"premise": "a", "hypothesis": "b", "label": np.int64(1)}]

    client.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", client)
    assert from_hub("mnli-mm", "dev_mismatched", looked_in="here is none").labels[1] == "neutral"
    assert asked == [("nyu-mll/glue", "mnli", "validation_mismatched")]
    with pytest.raises(InputError, match=r"^here is none, and the hub gave no nyu-mll/glue \(no network\)$"):
        from_hub("mnli", "train", looked_in="here is none")
    with pytest.raises(InputError, match="imagenet is not fetched from the hub"):
        from_hub("imagenet", "val", looked_in="here is none")
