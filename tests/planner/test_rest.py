"""A bound of what is left is never above what any partition really has left, and close where memory is tight."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest

from benchmarks.planner import every_partition, least, some
from edgeprism.planner.pipeline import NOTHING, Pipeline
from edgeprism.planner.quickest import quickest
from edgeprism.planner.rest import Rest
from edgeprism.planner.sets import fits, transfer_seconds


def rest_of(pipeline: Pipeline) -> Rest:
    """The bound of a pipeline."""
    return Rest(pipeline, fits(pipeline), transfer_seconds(pipeline))


def whole_s(pipeline: Pipeline) -> float:
    """With no device used, at the first cut: of pipelines whose transfers take no time."""
    return float(rest_of(pipeline).of(np.zeros(1, dtype=np.int64))[0, 0])


def quick_and_slow(memory_bytes: float, latency_s: float = 0.0) -> Pipeline:
    """Two devices that take 1 s for each of four pieces of 10 bytes, and a slow one that has the inputs, no limit, and
    takes 3 s."""
    return Pipeline(
        piece_s=((1.0,) * 4, (1.0,) * 4, (3.0,) * 4),
        cut_bytes=(0,) * 5,
        weight_bytes=(10,) * 4,
        work_bytes=(0,) * 4,
        memory_bytes=(memory_bytes, memory_bytes, math.inf),
        latency_s=tuple(tuple(0.0 if i == j else latency_s for j in range(3)) for i in range(3)),
        bytes_per_s=((1e9,) * 3,) * 3,
        home=2,
    )


def test_no_partition_has_less_left() -> None:
    """Every partition of many small pipelines, at each of its cuts: what its later stages take, links included."""
    num_checked = 0
    for seed in range(150):
        pipeline = some(seed)
        bounds = rest_of(pipeline).of(np.arange(2**pipeline.num_devices, dtype=np.int64))
        for stages in every_partition(pipeline):
            if not pipeline.fits(stages):
                continue
            used = list(accumulate((1 << stage.device for stage in stages), initial=0))
            transfers = pipeline.transfers(stages)
            for number in range(1, len(stages) + 1):
                later, stop = stages[number:], stages[number - 1].stop
                links = transfers[number:] if stop < pipeline.num_pieces else transfers[number : len(stages)]
                left_s = math.fsum([*map(pipeline.compute_s, later), *links])
                assert bounds[used[number], stop] <= left_s * (1 + 1e-12)
                num_checked += 1
    assert num_checked > 10_000


@pytest.mark.parametrize(("memory_bytes", "least_s"), [(20.0, 4.0), (10.0, 8.0), (0.0, 12.0), (math.inf, 4.0)])
def test_memory_that_many_want_has_its_price(memory_bytes: float, least_s: float) -> None:
    """With room for one of the four pieces each, two go to the slow one: 2 * 1 s + 2 * 3 s. Where pieces count as they
    are quickest, it would be 4 s."""
    assert whole_s(quick_and_slow(memory_bytes)) == pytest.approx(least_s, rel=0.02)


def test_what_a_stage_costs_besides_is_counted() -> None:
    """The slow device is used up at the first cut: three pieces go to the quick ones, which hold two each, over links
    of half a second. So at least 3 s, one and a half stages, and the way home."""
    (bound,) = rest_of(quick_and_slow(20.0, latency_s=0.5)).of(np.array([0b100]))
    assert bound.tolist() == pytest.approx([4 + 2 * 0.5 + 0.5, 3 + 1.5 * 0.5 + 0.5, 2 + 0.5 + 0.5, 1 + 0.25 + 0.5, 0])


def test_with_every_device_used_nothing_can_be_left() -> None:
    """Only at the last cut there is an end."""
    bounds = rest_of(quick_and_slow(20.0)).of(np.array([0b111]))
    assert bounds.tolist() == [[math.inf] * 4 + [0.0]]


def test_devices_that_are_not_to_be_used_count_for_nothing() -> None:
    """Pieces without weights included; then the slow one is all there is."""
    pipeline = replace(quick_and_slow(NOTHING), weight_bytes=(0, 10, 10, 0))
    assert whole_s(pipeline) == pytest.approx(12.0)


def test_answers_far_above_the_bound() -> None:
    """Slow links at home, which the bound knows only in part, and little memory there: the answer is the best."""
    for seed in range(40):
        pipeline = some(seed)
        far = replace(
            pipeline,
            latency_s=tuple(
                tuple(20.0 if pipeline.home in (i, j) and i != j else one for j, one in enumerate(row))
                for i, row in enumerate(pipeline.latency_s)
            ),
            memory_bytes=tuple(40.0 if i == pipeline.home else one for i, one in enumerate(pipeline.memory_bytes)),
        )
        best_s = least(far, far.request_s)
        if best_s < math.inf:
            assert far.request_s(quickest(far)) == pytest.approx(best_s, rel=1e-9)
