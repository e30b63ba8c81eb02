"""The Examples seam: what a model is trained on. Inputs by number, and the loss of a batch of them.

for indices in endless(examples, examples.indices, size, seed):    # `finetune`, step after step
    inputs, targets = examples.batch(indices)
    examples.loss(student, teacher, inputs, targets, ...).backward()
examples.score(student, held_out, dtype)                          # before and after

No batch is padded: devices divide an input as it is, and padding would move the borders between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from edgeprism.tasks.inputs import Batch

Indices = Sequence[int]


class Examples(ABC):
    """See the module."""

    indices: list[int]
    """Numbers of the inputs that can be trained on."""
    notes: tuple[str, ...] = ()
    """What is to be said, such as how many inputs cannot."""
    measure: str
    """What ``score`` gives."""
    about: Mapping[str, Any]
    """How the data became inputs: a run that goes on must find it the same."""
    can_vary: bool = False
    """Whether inputs are pictures, which may be cropped and flipped."""
    trains_head: ClassVar[bool]
    """Whether low-rank training to targets trains the head too, every weight of it."""
    default_batch: ClassVar[int]
    most_held_out: ClassVar[int]
    """How many inputs tell enough, unless more are asked for."""
    has_targets = True
    """Whether the data has what is to be learnt; without it the model's own answers can be."""

    def check_head(self, config: Any) -> None:  # noqa: B027  # most heads can be
        """InputError where the head of a model with this config cannot be trained on these targets."""

    def take_answers(self, model: PreTrainedModel, indices: Indices, dtype: str) -> None:  # noqa: B027
        """Where there are no targets: what ``model`` answers to these inputs on one device is right from now on."""

    @abstractmethod
    def batches(self, indices: Indices, size: int, rng: np.random.Generator | None = None) -> list[Indices]:
        """``indices`` in batches of one length, at most ``size`` each; in random order where ``rng`` is given."""

    @abstractmethod
    def batch(self, indices: Indices) -> tuple[Batch, Tensor]:
        """Keyword arguments of the model, and the targets."""

    @abstractmethod
    def loss(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        inputs: Batch,
        targets: Tensor,
        *,
        dtype: str,
        temperature: float,
    ) -> Tensor:
        """How far the student's answers are from the teacher's or, without one, from the targets. Products are computed
        in ``dtype``, the loss itself in float32."""

    @abstractmethod
    def score(self, model: PreTrainedModel, indices: Indices, dtype: str) -> float:
        """``measure`` over these inputs."""


def endless(examples: Examples, indices: Indices, size: int, seed: int, start: int = 0) -> Iterator[Indices]:
    """Batch after batch, epoch after epoch, from step ``start`` on; the same every time."""
    epoch, num_skipped = 0, start
    while True:
        made = examples.batches(indices, size, np.random.default_rng([seed, epoch]))
        yield from made[num_skipped:]
        num_skipped, epoch = max(0, num_skipped - len(made)), epoch + 1
