"""Which micro-batch is the best: larger ones read weights less often, smaller ones let devices begin sooner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeprism.errors import PlanError
from edgeprism.planner.fewer import with_fewer
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.quickest import quickest
from edgeprism.planner.throughput import fastest
from edgeprism.specs.plan import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class BestPipeline:
    """The stages, and for what they are the best: micro-batches of so many samples."""

    stages: tuple[Stage, ...]
    pipeline: Pipeline
    micro_batch: int


def best_pipeline(make: Callable[[int], Pipeline], sizes: Sequence[int], batch: int, objective: str) -> BestPipeline:
    """Over micro-batches of these sizes: of most samples a second for "throughput"; else the soonest answer to
    requests of ``batch`` samples, whose micro-batches follow each other. ``make``: the pipeline for a size. PlanError
    where nothing fits."""
    best: tuple[float, BestPipeline] | None = None
    why: PlanError | None = None
    for size in sizes:
        pipeline = make(size)
        try:
            searches = (fastest,) if objective == "throughput" else (quickest, fastest)
            found = [pipeline.runnable(search(pipeline)) for search in searches]
        except PlanError as exc:
            why = why or exc
            continue

        def score_s(stages: Sequence[Stage], pipeline: Pipeline = pipeline, size: int = size) -> float:
            period_s = pipeline.period_s(stages)
            if objective == "throughput":
                return period_s / size
            return pipeline.request_s(stages) + (math.ceil(batch / size) - 1) * period_s

        for stages in (with_fewer(pipeline, one, score_s) for one in found):
            if best is None or score_s(stages) < best[0] * (1 - 1e-9):
                best = score_s(stages), BestPipeline(stages=stages, pipeline=pipeline, micro_batch=size)
    if best is None:
        assert why is not None
        raise why
    return best[1]


def sizes_up_to(batch: int) -> tuple[int, ...]:
    """Of micro-batches that are worth a look: halves of a request, and halves of these."""
    return tuple(sorted({max(1, math.ceil(batch / 2**times)) for times in range(batch.bit_length() + 1)}))
