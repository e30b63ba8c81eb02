"""A device that leaves while a pipeline runs: what was not home yet begins anew on the devices that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeprism.errors import InputError
from edgeprism.planner.pipeline import NOTHING, Pipeline
from edgeprism.simulate.pipeline import RateChange, Run, simulate
from edgeprism.specs.plan import Stage

Partition = Callable[[Pipeline], Sequence[Stage]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """At ``at_s`` a device is gone; ``away_s`` later the others have what they lack, and go on."""

    device: int
    at_s: float
    away_s: float = 0.0

    def __post_init__(self) -> None:
        if self.at_s < 0 or self.away_s < 0:
            raise InputError(f"a device leaves at 0 s or later, not at {self.at_s:g} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """``before`` and ``after`` (from when the others go on); ``num_again``: micro-batches that were begun twice."""

    before: Run
    after: Run | None
    stages_after: tuple[Stage, ...]
    num_again: int

    @property
    def done_s(self) -> tuple[float, ...]:
        """When each micro-batch was home."""
        return (*self.before.done_s, *(() if self.after is None else self.after.done_s))


def simulate_leaving(
    pipeline: Pipeline,
    stages: Sequence[Stage],
    num_micro_batches: int,
    leaves: Leaves,
    partition: Partition,
    *,
    changes: Sequence[RateChange] = (),
) -> Interrupted:
    """The same as ``simulate``; ``partition`` makes the new stages. PlanError where nothing fits any more."""
    if not 0 <= leaves.device < pipeline.num_devices:
        last = pipeline.num_devices - 1
        raise InputError(f"device {leaves.device} cannot leave: devices have the numbers 0 to {last}")
    if leaves.device == pipeline.home:
        raise InputError(f"device {leaves.device} cannot leave: it has the inputs, and wants the outputs")
    whole = simulate(pipeline, stages, num_micro_batches, changes=changes)
    is_used = any(stage.device == leaves.device for stage in stages)
    if not is_used or leaves.at_s >= whole.done_s[-1]:
        return Interrupted(before=whole, after=None, stages_after=tuple(stages), num_again=0)
    done_s = tuple(at_s for at_s in whole.done_s if at_s <= leaves.at_s)
    spans = tuple(span for span in whole.spans if span.start_s < leaves.at_s)
    before = Run(spans=tuple(replace(one, stop_s=min(one.stop_s, leaves.at_s)) for one in spans), done_s=done_s)
    without = _without(pipeline, leaves.device)
    new_stages = tuple(partition(without))
    begin_s = leaves.at_s + leaves.away_s
    later = [replace(change, at_s=max(0.0, change.at_s - begin_s)) for change in changes]
    rest = simulate(
        without, new_stages, num_micro_batches - len(done_s), changes=later
    )  # fmt: skip
    after = Run(
        spans=tuple(replace(one, start_s=one.start_s + begin_s, stop_s=one.stop_s + begin_s) for one in rest.spans),
        done_s=tuple(at_s + begin_s for at_s in rest.done_s),
    )
    begun = {span.micro_batch for span in spans if span.kind == "transfer" and span.stage == 0}
    return Interrupted(before=before, after=after, stages_after=new_stages, num_again=len(begun) - len(done_s))


def _without(pipeline: Pipeline, device: int) -> Pipeline:
    """With a device that can hold nothing."""
    memory = list(pipeline.memory_bytes)
    memory[device] = NOTHING
    return replace(pipeline, memory_bytes=tuple(memory))
