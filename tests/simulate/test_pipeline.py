"""The simulated pipeline, against what can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.planner import large, some
from edgeprism.errors import InputError, PlanError
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.throughput import fastest
from edgeprism.simulate.pipeline import RateChange, Run, simulate
from edgeprism.specs.plan import Stage

TWO = (Stage(device=0, start=0, stop=1), Stage(device=1, start=1, stop=2))


def two(cut_bytes: int = 10, rate: float = 10.0) -> Pipeline:
    """Two devices of a second a piece, and a link."""
    return Pipeline(
        piece_s=((1.0, 1.0), (1.0, 1.0)),
        cut_bytes=(0, cut_bytes, 0),
        weight_bytes=(1, 1),
        work_bytes=(0, 0),
        memory_bytes=(math.inf, math.inf),
        latency_s=((0.0, 0.0), (0.0, 0.0)),
        bytes_per_s=((rate, rate), (rate, rate)),
        queue_length=2,
    )


def check(run: Run, num: int) -> None:
    """Every micro-batch once at every stage, in order, and nothing done twice at once."""
    stages = 1 + max(span.stage for span in run.spans)
    for kind, places in (("compute", stages - 1), ("transfer", stages)):
        for stage in range(places):
            spans = [span for span in run.spans if span.kind == kind and span.stage == stage]
            assert [span.micro_batch for span in spans] == list(range(num))
            assert all(one.stop_s <= other.start_s + 1e-9 for one, other in pairwise(spans))
    assert list(run.done_s) == sorted(run.done_s) and len(run.done_s) == num


def test_two_stages() -> None:
    """Filled after three seconds, then one a second."""
    run = simulate(two(), TWO, 10)
    check(run, 10)
    assert run.done_s[0] == pytest.approx(3.0)
    assert run.done_s[-1] == pytest.approx(3.0 + 9)
    assert run.period_s == pytest.approx(1.0)


def test_a_slow_link_is_the_bottleneck() -> None:
    """And queues do not hide it."""
    assert simulate(two(rate=2.0), TWO, 20).period_s == pytest.approx(5.0)


@pytest.mark.parametrize("seed", range(40))
def test_one_alone_and_many(seed: int) -> None:
    """One micro-batch takes what the planner says of a request; many are no faster than the planner's period."""
    pipeline = replace(some(seed), queue_length=2, memory_bytes=(math.inf,) * some(seed).num_devices)
    stages = fastest(pipeline)
    alone = simulate(pipeline, stages, 1)
    assert alone.done_s[0] == pytest.approx(pipeline.request_s(stages))
    many = simulate(pipeline, stages, 60)
    check(many, 60)
    assert many.period_s >= pipeline.period_s(stages) * (1 - 1e-9)


def test_a_full_pipeline_has_the_planners_period() -> None:
    """Of sixteen devices: within a hundredth, once it is full."""
    pipeline = large()
    stages = fastest(pipeline)
    run = simulate(pipeline, stages, 300)
    assert run.period_s == pytest.approx(pipeline.period_s(stages), rel=0.01)


def test_one_medium_adds_up() -> None:
    """Three transfers of two seconds each take six, whoever sends."""
    stages = (*TWO, Stage(device=2, start=2, stop=3))
    pipeline = Pipeline(
        piece_s=((1.0,) * 3,) * 3,
        cut_bytes=(0, 2, 2, 2),
        weight_bytes=(1,) * 3,
        work_bytes=(0,) * 3,
        memory_bytes=(math.inf,) * 3,
        latency_s=((0.0,) * 3,) * 3,
        bytes_per_s=((1.0,) * 3,) * 3,
    )
    assert simulate(pipeline, stages, 40).period_s == pytest.approx(2.0)
    assert simulate(replace(pipeline, has_one_medium=True), stages, 40).period_s == pytest.approx(6.0, rel=0.02)


def test_rates_change_in_the_middle_of_a_transfer() -> None:
    """What is left goes on at the new rate."""
    run = simulate(two(), TWO, 1, changes=[RateChange(at_s=1.5, factor=0.5)])
    assert run.done_s[0] == pytest.approx(1.0 + 0.5 + 1.0 + 1.0)


def test_bad_values() -> None:
    """Are refused."""
    with pytest.raises(InputError, match="at least one"):
        simulate(two(), TWO, 0)
    with pytest.raises(InputError, match="more than nothing"):
        RateChange(at_s=0.0, factor=0.0)
    with pytest.raises(PlanError, match="skips"):
        simulate(two(), (Stage(device=0, start=1, stop=2),), 1)
