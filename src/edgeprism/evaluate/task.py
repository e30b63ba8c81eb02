"""The Task seam: a data set as requests to a model, and a model's outputs as answers.

for batch in task.batches(size):              # samples of one length: no padding takes part
    output = predict(**batch.inputs)
    kept[batch.samples] = task.read(output, batch)
answers = task.answers(kept)

No sample is ever padded, so an answer depends neither on --batch nor on what else is in it: under `sequence`, padding
would move the borders between partitions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from edgeprism.evaluate.metrics import Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one length, by their numbers, with the keyword arguments of a call."""

    samples: Sequence[int]
    inputs: dict[str, Tensor]
    num_tokens: int


class Task(ABC):
    """See the module. ``num_samples`` requests answer ``num_inputs`` inputs (a cloze question makes ten)."""

    num_inputs: int
    num_samples: int
    notes: tuple[str, ...] = ()
    """What is to be said, such as how many texts were cut."""

    def input_of(self, sample: int) -> int:
        """The number of the input that a sample belongs to."""
        return sample

    @abstractmethod
    def batches(self, size: int) -> Iterator[Batch]:
        """Every sample once, at most ``size`` in a batch."""

    @abstractmethod
    def read(self, output: Mapping[str, Any], batch: Batch) -> list[Any]:
        """What is kept of the output for each sample of the batch."""

    @abstractmethod
    def answers(self, kept: Sequence[Any]) -> Answers:
        """The answers to all inputs; ``kept`` is in the order of the samples."""


def of_equal_length(texts: Sequence[Mapping[str, Sequence[int]]], size: int) -> Iterator[Batch]:
    """Batches of token lists, the shortest first."""

    def length_of(number: int) -> int:
        return len(texts[number]["input_ids"])

    for length, group in groupby(sorted(range(len(texts)), key=length_of), key=length_of):
        numbers = list(group)
        for start in range(0, len(numbers), size):
            samples = numbers[start : start + size]
            inputs = {name: torch.tensor([texts[number][name] for number in samples]) for name in texts[samples[0]]}
            yield Batch(samples=samples, inputs=inputs, num_tokens=length)
