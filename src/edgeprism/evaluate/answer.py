"""Runs a task through a model in several ways, batch by batch, and counts what each would put on the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprism.errors import PlanError
from edgeprism.evaluate.metrics import Answers
from edgeprism.evaluate.task import Batch, Task
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.registry import count

FLOAT32_BYTES = 4

Predict = Callable[..., Mapping[str, Any]]
"""A forward pass on the keyword arguments that the transformers model takes; its output."""
Progress = Callable[[int], object]
"""Told how many samples were answered since it was told last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of running the model: a plan, and what runs it."""

    plan: Plan
    predict: Predict


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """``num_alone``: inputs too short for the plan, which one device answered. ``relative_bytes``: what was exchanged
    for the others, over float32 rows of their partitions."""

    answers: Answers
    num_alone: int
    relative_bytes: float


def answer(
    task: Task,
    alone: Predict,
    ways: Sequence[Way],
    spec: ModelSpec,
    *,
    element_bytes: int,
    batch: int,
    progress: Progress,
) -> tuple[Answers, list[Answered]]:
    """The answers of one device, and those of each way.

    A sample that a way's plan cannot be carried out on (a text of fewer tokens than one mean stands for) is answered by
    one device, as a user would have to. PlanError where that is so for every one.
    """
    tallies = [_Tally(way, spec, element_bytes) for way in ways]
    exact: dict[int, Any] = {}
    for part in task.batches(batch):
        read = task.read(alone(**part.inputs), part)
        exact.update(zip(part.samples, read, strict=True))
        progress(len(part.samples))
        for tally in tallies:
            tally.take(task, part, read)
            progress(len(part.samples))
    in_order = range(task.num_samples)
    return (
        task.answers([exact[number] for number in in_order]),
        [tally.result(task) for tally in tallies],
    )


class _Tally:
    """One way's answers and bytes so far."""

    def __init__(self, way: Way, spec: ModelSpec, element_bytes: int) -> None:
        self._way, self._spec, self._element_bytes = way, spec, element_bytes
        self._kept: dict[int, Any] = {}
        self._sent = self._full = 0
        self._alone: set[int] = set()  # inputs
        self._refusal: PlanError | None = None

    def take(self, task: Task, part: Batch, exact: Sequence[Any]) -> None:
        num_samples = len(part.samples)
        try:
            cost = count(
                self._spec,
                self._way.plan,
                num_tokens=part.num_tokens,
                batch=num_samples,
                element_bytes=self._element_bytes,
            )
        except PlanError as exc:
            self._refusal = exc
            self._alone.update(map(task.input_of, part.samples))
            self._kept.update(zip(part.samples, exact, strict=True))
            return
        self._sent += cost.exchange_bytes_per_block
        self._full += cost.full_bytes_per_block * FLOAT32_BYTES // self._element_bytes
        self._kept.update(zip(part.samples, task.read(self._way.predict(**part.inputs), part), strict=True))

    def result(self, task: Task) -> Answered:
        if self._refusal is not None and not self._full:
            raise self._refusal
        return Answered(
            answers=task.answers([self._kept[number] for number in range(task.num_samples)]),
            num_alone=len(self._alone),
            relative_bytes=self._sent / self._full if self._full else 0.0,
        )
