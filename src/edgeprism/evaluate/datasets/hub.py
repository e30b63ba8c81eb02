"""Data sets from the hub, where they are not on this disk: by the package `datasets`, if it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeprism.errors import InputError
from edgeprism.evaluate.dataset import Cloze, Dataset, Kind
from edgeprism.evaluate.datasets.cbt import BLANK
from edgeprism.evaluate.datasets.cifar import CIFAR10, CIFAR100
from edgeprism.evaluate.datasets.glue import TASKS

Row = Mapping[str, Any]

_GLUE_COLUMNS = {
    "mrpc": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "mnli-mm": ("premise", "hypothesis"),
}
"""Where the hub calls the texts otherwise than the official files do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the hub has it, and how a row becomes an input and a target (-1: not labelled)."""

    repository: str
    config: str | None = None
    kind: Kind
    read: Callable[[Row], tuple[Any, int | float]]
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    splits: Mapping[str, str] = field(default_factory=dict)
    """The hub's names of splits that are called otherwise here."""


def from_hub(name: str, split: str, *, looked_in: str) -> Dataset:
    """A data set that the hub has. InputError, which says where else was looked, without the package or the network."""
    place = _place(name)
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"{looked_in}; unpack the official archive below the folder EDGEPRISM_DATA, name it with --data, or to "
            "fetch it from the hub: pip install 'edgeprism[hub]'"
        ) from None
    try:
        rows = load_dataset(place.repository, place.config, split=place.splits.get(split, split))
    except Exception as exc:  # offline, moved, no access: each client has a class of its own for it
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise InputError(f"{looked_in}, and the hub gave no {place.repository} ({reason})") from exc
    return from_rows(name, split, rows, place)


def from_rows(name: str, split: str, rows: Sequence[Row], place: _Place | None = None) -> Dataset:
    """The hub's rows as a data set."""
    place = place or _place(name)
    if place.kind == "stream":
        text = "".join(str(row["text"]) for row in rows)
        return Dataset(name=name, split=split, kind="stream", inputs=[text], targets=None, metrics=("perplexity",))
    inputs: list[Any] = []
    targets: list[int | float] = []
    for row in rows:
        given, target = place.read(row)
        inputs.append(given)
        targets.append(target)
    is_labelled = min(targets) >= 0  # the hub gives -1 where GLUE keeps its test labels to itself
    kind = np.int64 if place.labels or place.kind == "cloze" else np.float64
    return Dataset(
        name=name,
        split=split,
        kind=place.kind,
        inputs=inputs,
        targets=np.array(targets, dtype=kind) if is_labelled else None,
        labels=place.labels,
        metrics=place.metrics,
        numbers_are_known=True,
    )


def _place(name: str) -> _Place:
    if name in ("cifar10", "cifar100"):
        image, label, labels = ("img", "label", CIFAR10) if name == "cifar10" else ("img", "fine_label", CIFAR100)
        return _Place(
            repository=f"uoft-cs/{name}",
            kind="pictures",
            read=lambda row: (np.asarray(row[image].convert("RGB")), row[label]),
            labels=labels,
        )
    if name in TASKS:
        return _glue(name)
    if name.startswith("cbt-"):
        return _Place(
            repository="cam-cst/cbt",
            config=name.removeprefix("cbt-").upper(),
            kind="cloze",
            read=_cloze,
            splits={"valid": "validation"},
        )
    if name.startswith("wikitext"):
        return _Place(
            repository="Salesforce/wikitext",
            config=f"wikitext-{name.removeprefix('wikitext')}-raw-v1",
            kind="stream",
            read=lambda row: (row["text"], -1),
            splits={"valid": "validation"},
        )
    raise InputError(f"{name} is not fetched from the hub: it needs an account there; name its folder with --data")


def _glue(name: str) -> _Place:
    task = TASKS[name]
    columns = _GLUE_COLUMNS.get(name, task.columns)
    return _Place(
        repository="nyu-mll/glue",
        config="mnli" if name == "mnli-mm" else name,
        kind="texts",
        read=lambda row: (tuple(str(row[column]) for column in columns), row["label"]),
        labels=task.labels,
        metrics=task.metrics,
        splits={
            "dev": "validation",
            "dev_matched": "validation_matched",
            "dev_mismatched": "validation_mismatched",
        },  # test, test_matched and test_mismatched are called so there too
    )


def _cloze(row: Row) -> tuple[Cloze, int]:
    before, _, after = row["question"].partition(BLANK)
    answer = list(row["options"]).index(row["answer"])
    text = " ".join([*row["sentences"], before]).strip()
    return Cloze(before=text, after=after.strip(), candidates=tuple(row["options"]), answer=answer), answer
