"""A data set's labels in a model's head: which output stands for which, or one line that says what does not match."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Dataset
from edgeprism.specs.model import ModelSpec

SHOWN = 5


def check_head(dataset: Dataset, spec: ModelSpec) -> None:
    """InputError unless the model is of the kind that the data set is for."""
    classifies = "Classification" in spec.architecture
    fits = {
        "pictures": (spec.is_vision and classifies, "a model that classifies pictures"),
        "texts": (not spec.is_vision and classifies, "a model that classifies texts"),
        "cloze": (spec.generates, "a causal language model"),
        "stream": (spec.generates, "a causal language model"),
    }
    does_fit, needed = fits[dataset.kind]
    if not does_fit:
        raise InputError(f"{dataset.name} needs {needed}; {spec.architecture} is none")
    if dataset.is_regression and spec.num_labels != 1:
        raise InputError(
            f"{dataset.name} has values, so a head with one output is needed; this one has {spec.num_labels}"
        )


def head_labels(directory: Path, num_labels: int) -> tuple[str, ...]:
    """The head's labels by number, from the config.json that ``num_labels`` was read from; LABEL_0 and so on where it
    has no names."""
    given = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("id2label")
    if not isinstance(given, Mapping) or len(given) != num_labels:
        return tuple(f"LABEL_{number}" for number in range(num_labels))
    return tuple(str(given.get(str(number), f"LABEL_{number}")) for number in range(num_labels))


def match_labels(dataset: Dataset, head: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each output of the head the number of the data set's label that it stands for; below 0, and another for each,
    where it stands for none.

    By name (case, blanks, underscores and hyphens aside); else by number, where the head has no names or the data set's
    labels are none, and where that can be right. InputError names the labels that do not match.
    """
    stands_for = -1 - np.arange(len(head))
    labels = {_plain(label): number for number, label in enumerate(dataset.labels)}
    for output, name in enumerate(head):  # a head may name two outputs the same (ImageNet's cranes)
        stands_for[output] = labels.get(_plain(name), stands_for[output])
    missing = sorted(set(range(len(dataset.labels))) - set(stands_for.tolist()))
    if missing:
        outputs = _by_number(dataset, head)
        if outputs is None:
            raise InputError(_mismatch(dataset, head, [dataset.labels[number] for number in missing]))
        stands_for = -1 - np.arange(len(head))
        stands_for[list(outputs)] = np.arange(len(dataset.labels))
    return stands_for


def _by_number(dataset: Dataset, head: Sequence[str]) -> Sequence[int] | None:
    """The output of each label."""
    if all(label.isdecimal() and int(label) < len(head) for label in dataset.labels):
        return [int(label) for label in dataset.labels]
    has_no_names = all(re.fullmatch(r"(LABEL_)?\d+", name) for name in head)
    same_count = len(head) == len(dataset.labels)
    if same_count and dataset.numbers_are_known and (has_no_names or dataset.name == "imagenet"):
        return range(len(head))
    return None


def _mismatch(dataset: Dataset, head: Sequence[str], missing: Sequence[str]) -> str:
    if all(re.fullmatch(r"-?\d+", label) for label in dataset.labels):
        missing = [label for label in missing if not 0 <= int(label) < len(head)]
        return (
            f"the labels of {dataset.name} do not match the model's head: its outputs have the numbers 0 to "
            f"{len(head) - 1}, and there are labels {_shown(missing)}"
        )
    return (
        f"the labels of {dataset.name} do not match the model's head: it has no {_shown(missing)}; "
        f"its {len(head)} labels are {_shown(head)}"
    )


def _shown(labels: Sequence[str]) -> str:
    more = len(labels) - SHOWN
    return ", ".join(labels[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _plain(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label.strip().casefold())
