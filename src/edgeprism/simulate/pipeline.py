"""A pipeline at work, as discrete events: stages that compute, links that carry, queues that fill.

A device computes one micro-batch at a time, sends one message at a time and receives one at a time; these three go on
side by side. A transfer begins when its receiver has room in the queue before its stage, and a stage when there is room
in the queue behind it: a slow stage holds up those before it, and nothing piles up. Rates may change while it runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Literal

from edgeprism.errors import InputError
from edgeprism.planner.pipeline import Pipeline
from edgeprism.specs.plan import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChange:
    """From ``at_s`` on every link has this part of its rate."""

    at_s: float
    factor: float

    def __post_init__(self) -> None:
        if self.at_s < 0 or self.factor <= 0:
            raise InputError(
                f"a rate changes at 0 s or later, to more than nothing; not at {self.at_s:g} s to {self.factor:g} of it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that took time: a stage that computed, or the transfer to it (after the last stage: home)."""

    kind: Literal["compute", "transfer"]
    stage: int
    micro_batch: int
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What happened, in the order in which it ended."""

    spans: tuple[Span, ...]
    done_s: tuple[float, ...]
    """When each micro-batch was home."""

    @property
    def period_s(self) -> float:
        """Between two that are done, in the middle half: the pipeline is full then, neither filling nor running dry."""
        first, last = len(self.done_s) // 4, (3 * len(self.done_s)) // 4
        if last == first:
            return self.done_s[-1]
        return (self.done_s[last] - self.done_s[first]) / (last - first)


def simulate(
    pipeline: Pipeline,
    stages: Sequence[Stage],
    num_micro_batches: int,
    *,
    changes: Sequence[RateChange] = (),
) -> Run:
    """So many micro-batches that wait at home at 0 s. PlanError for stages that are no partition."""
    pipeline.check(stages)
    if num_micro_batches < 1:
        raise InputError(f"at least one micro-batch is needed, not {num_micro_batches}")
    return _Run(pipeline, stages, num_micro_batches, _Rates(changes)).run()


class _Rates:
    """When so many bytes are through, at rates that change."""

    def __init__(self, changes: Sequence[RateChange]) -> None:
        self._changes = [RateChange(at_s=0.0, factor=1.0), *sorted(changes, key=lambda change: change.at_s)]

    def end_s(self, start_s: float, full_rate_s: float) -> float:
        """Of a transfer that would take ``full_rate_s`` at full rates."""
        for change, following in pairwise([*self._changes, RateChange(at_s=float("inf"), factor=1.0)]):
            if start_s >= following.at_s:
                continue
            start_s = max(start_s, change.at_s)
            takes_s = full_rate_s / change.factor
            if start_s + takes_s <= following.at_s:
                return start_s + takes_s
            full_rate_s -= (following.at_s - start_s) * change.factor
            start_s = following.at_s
        raise AssertionError("the last rate has no end")


class _Run:
    def __init__(self, pipeline: Pipeline, stages: Sequence[Stage], num_micro_batches: int, rates: _Rates) -> None:
        self._pipeline, self._stages, self._rates = pipeline, stages, rates
        self._path = [pipeline.home, *(stage.device for stage in stages), pipeline.home]
        self._num_left = num_micro_batches
        self._capacity = max(1, pipeline.queue_length)
        places = len(stages) + 1
        self._waiting: list[list[int]] = [[] for _ in range(places)]  # before each transfer: computed, or at home
        self._waiting[0] = list(range(num_micro_batches))
        self._arrived: list[list[int]] = [[] for _ in range(places)]  # before each stage
        self._room_before = [self._capacity] * len(stages)
        self._room_behind = [self._capacity] * len(stages)
        self._busy: set[Hashable] = set()
        self._events: list[tuple[float, int, Span, tuple[Hashable, ...]]] = []
        self._order = count()
        self._now_s = 0.0

    def run(self) -> Run:
        spans, done_s = list[Span](), list[float]()
        self._begin()
        while self._events:
            self._now_s, _, span, used = heapq.heappop(self._events)
            self._busy -= {*used}
            spans.append(span)
            if span.kind == "compute":
                self._waiting[span.stage + 1].append(span.micro_batch)
            else:
                if span.stage:
                    self._room_behind[span.stage - 1] += 1
                if span.stage == len(self._stages):
                    done_s.append(self._now_s)
                else:
                    self._arrived[span.stage].append(span.micro_batch)
            self._begin()
        return Run(spans=tuple(spans), done_s=tuple(done_s))

    def _begin(self) -> None:
        """All that can begin now, the last stages first: what is nearly done makes room."""
        for stage in reversed(range(len(self._stages) + 1)):
            if stage < len(self._stages):
                self._compute(stage)
            self._transfer(stage)

    def _compute(self, stage: int) -> None:
        device: Hashable = ("computes", self._stages[stage].device)
        if self._arrived[stage] and self._room_behind[stage] and device not in self._busy:
            self._room_behind[stage] -= 1
            self._room_before[stage] += 1  # what is computed is no longer in the queue
            takes_s = self._pipeline.compute_s(self._stages[stage])
            self._start("compute", stage, self._arrived[stage].pop(0), self._now_s + takes_s, (device,))

    def _transfer(self, stage: int) -> None:
        sender, receiver = self._path[stage], self._path[stage + 1]
        has_room = stage == len(self._stages) or self._room_before[stage] > 0
        used: tuple[Hashable, ...] = (("sends", sender), ("receives", receiver))
        if sender == receiver:
            used = ()
        elif self._pipeline.has_one_medium:
            used = ("medium",)
        if not self._waiting[stage] or not has_room or self._busy & {*used}:
            return
        if stage < len(self._stages):
            self._room_before[stage] -= 1
        cut = 0 if stage == 0 else self._stages[stage - 1].stop
        stop_s = self._now_s
        if used:
            latency_s = self._pipeline.latency_s[sender][receiver]
            sends_s = self._pipeline.cut_bytes[cut] / self._pipeline.bytes_per_s[sender][receiver]
            stop_s = self._rates.end_s(self._now_s + latency_s, sends_s)
        self._start("transfer", stage, self._waiting[stage].pop(0), stop_s, used)

    def _start(
        self,
        kind: Literal["compute", "transfer"],
        stage: int,
        micro_batch: int,
        stop_s: float,
        used: Sequence[Hashable],
    ) -> None:
        self._busy |= {*used}
        span = Span(kind=kind, stage=stage, micro_batch=micro_batch, start_s=self._now_s, stop_s=stop_s)
        heapq.heappush(self._events, (stop_s, next(self._order), span, tuple(used)))
