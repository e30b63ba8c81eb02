"""A data set as evaluation sees it: inputs, targets, names of labels, and the metrics it is scored by. No torch.

Loaders (`evaluate.datasets`) make it from files; a `Task` (`evaluate.task`) turns it into a model's inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeprism.errors import InputError

Kind = Literal["pictures", "texts", "cloze", "stream"]
Picture = Path | npt.NDArray[np.uint8]
"""A file, or pixels (rows, columns, 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloze:
    """A text with one word left out, and the words that it may be; ``answer`` is the index of the right one."""

    before: str
    after: str
    candidates: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Made by a loader.

    ``inputs`` by kind: pictures: `Picture`; texts: tuples of one or two texts; cloze: `Cloze`; stream: one text.
    ``targets``: for each input the number of its label (int64), or a value (float64); None where nothing is labelled.
    ``labels``: names by number; none of a regression. ``metrics``: those that it is scored by officially, the first
    before all. ``numbers_are_known``: its numbering is published, so that a head without names may follow it.
    """

    name: str
    split: str
    kind: Kind
    inputs: Sequence[Any]
    targets: npt.NDArray[Any] | None
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    numbers_are_known: bool = False
    notes: tuple[str, ...] = ()
    content: str = ""
    """Of one's own files: what tells them from others of the same name, `digest_of` all inputs and targets."""
    why_no_targets: str = ""
    """For the message where they are needed, such as what the header of a file has."""

    def __post_init__(self) -> None:
        if not len(self.inputs):
            raise InputError(f"{self.name} {self.split} holds no inputs")
        assert self.targets is None or len(self.targets) == len(self.inputs), self.name

    @property
    def is_regression(self) -> bool:
        """Whether its targets are values."""
        return self.targets is not None and self.targets.dtype.kind == "f"

    def first(self, limit: int | None) -> Dataset:
        """The first ``limit`` inputs. A stream is cut once it is tokens."""
        if limit is None or self.kind == "stream" or limit >= len(self.inputs):
            return self
        return replace(self, inputs=self.inputs[:limit], targets=None if self.targets is None else self.targets[:limit])


def digest_of(dataset: Dataset) -> str:
    """The first eight digits of a sha256 of inputs and targets; of a picture in a file, of its name and size."""
    digest = hashlib.sha256()
    for one in dataset.inputs:
        is_file = isinstance(one, Path)
        digest.update(f"{one.name} {one.stat().st_size}".encode() if is_file else repr(one).encode())
        digest.update(b"\n")
    digest.update(b"" if dataset.targets is None else dataset.targets.tobytes())
    return digest.hexdigest()[:8]


def wrong(path: Path, what: str, *, line: int | None = None, record: int | None = None) -> InputError:
    """A file in a wrong format: which, and where in it (lines and records are counted from 1)."""
    where = f", line {line}" if line is not None else f", record {record}" if record is not None else ""
    return InputError(f"{path}{where}: {what}")
